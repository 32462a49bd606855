"""A hostile pickle is refused and nothing of it runs; an honest one reads as `pickle` reads it."""

import builtins
import collections
import copyreg
import io
import os
import pickle
import sys

import numpy as np
import pytest

from dit_jax.core.errors import UserError
from dit_jax.weights import unpickle


class Call:
  """Pickles as a call of `function` with `args`."""

  def __init__(self, function, *args, state=None):
    self.parts = (function, args) if state is None else (function, args, state)

  def __reduce__(self):
    return self.parts


class Build:
  """An instance whose state, set by BUILD, runs code."""

  def __setstate__(self, path):
    open(path, "w").close()


class Referee(pickle.Pickler):
  """Writes every `Call` as a persistent id."""

  def persistent_id(self, obj):
    return ("os", "system") if isinstance(obj, Call) else None


def touch(path: str) -> bytes:
  return f"open({path!r}, 'w').close()".encode()


def by_hand(path: str) -> dict[str, bytes]:
  """Hostile programs that no pickler writes."""
  p, code = path.encode(), touch(path)
  text = b"(V" + p + b"\nVw\nt"  # the arguments (path, "w")
  unicode = lambda s: b"\x8c" + bytes([len(s)]) + s  # SHORT_BINUNICODE
  stack_global = b"\x80\x04" + unicode(b"builtins") + unicode(b"open") + b"\x93"
  memo = b"\x80\x04" + unicode(b"open") + b"\x94" + unicode(b"builtins") + b"h\x00\x93"
  dotted = b"\x80\x04" + unicode(b"io") + unicode(b"FileIO.__class__.__call__") + b"\x93"
  file_io = b"cio\nFileIO\n" + b"V" + p + b"\nVw\n\x87R."
  return {
    "GLOBAL and REDUCE": b"cbuiltins\nopen\n" + text + b"R.",
    "INST": b"(V" + p + b"\nVw\nibuiltins\nopen\n.",
    "OBJ": b"(cio\nFileIO\nV" + p + b"\nVw\no.",
    "NEWOBJ": b"\x80\x02cio\nFileIO\n" + text + b"\x81" + text + b"b.",
    "NEWOBJ_EX": b"\x80\x04cio\nFileIO\n" + text + b"}\x92.",
    "STACK_GLOBAL": stack_global + text + b"R.",
    "STACK_GLOBAL from the memo": memo + text + b"R.",
    "STACK_GLOBAL, dotted": dotted + b"cio\nFileIO\nV" + p + b"\nVw\n\x87R.",
    "GLOBAL with the allowed name in the middle": b"cos\nnumpy.dtype\n(tR" + file_io,
    "exec": b"cbuiltins\nexec\n(V" + code + b"\ntR.",
    "code after an array's start": b"cnumpy.core.multiarray\n_reconstruct\n0" + file_io,
    "code after STOP's value": b"}" + file_io,
    "an allowed name called through BUILD": b"cnumpy\nndarray\n}b0" + file_io,
    "state for a class": b"ccollections\nOrderedDict\n(N}t}b0" + file_io,
  }


def by_pickler(path: str) -> dict[str, bytes]:
  """Hostile objects, written by the pickler itself."""
  lookup = Call(getattr, builtins, "open")
  module = Call(__import__, "builtins")
  hidden = {"conv": {"kernel": np.zeros(3), "bias": Call(open, path, "w")}}
  values = {
    "os.system": Call(os.system, f"touch {path}"),
    "eval": Call(eval, touch(path).decode()),
    "nested reduce": Call(list, Call(map, Call(eval, f"lambda p: {touch('x').decode()}"), [])),
    "getattr chain": Call(Call(getattr, module, "open"), path, "w"),
    "getattr": Call(lookup, path, "w"),
    "beside arrays": hidden,
    "in an array of objects": np.array([Call(open, path, "w")], dtype=object),
    "state": Call(collections.OrderedDict, state=Call(open, path, "w")),
    "codecs": Call(__import__("codecs").open, path, "w"),
    "partial": Call(__import__("functools").partial, open, path),
  }
  values |= {"set state": Build.__new__(Build)}
  out = {}
  for name, value in values.items():
    for protocol in (2, 4):
      try:
        out[f"{name}, protocol {protocol}"] = pickle.dumps(value, protocol)
      except (pickle.PicklingError, TypeError, AttributeError):
        continue  # a module, say, has no pickle; the reduce forms cover it
  return out


HOSTILE = sorted({**by_hand("x"), **by_pickler("x")})


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_and_not_run(name, tmp_path):
  canary = tmp_path / "canary"
  data = {**by_hand(str(canary)), **by_pickler(str(canary))}[name]
  (tmp_path / "w.ckpt").write_bytes(data)
  with pytest.raises(UserError, match=r"w\.ckpt.*refused and not run"):
    unpickle.load(tmp_path / "w.ckpt")
  assert not canary.exists()


@pytest.mark.parametrize("name", ["GLOBAL and REDUCE", "INST", "OBJ", "STACK_GLOBAL", "exec"])
def test_the_hostile_pickles_are_hostile(name, tmp_path):
  """Under the standard machine they do leave their mark: the test above has teeth."""
  canary = tmp_path / "canary"
  pickle.loads(by_hand(str(canary))[name])
  assert canary.exists()


def test_persistent_ids_are_refused():
  f = io.BytesIO()
  Referee(f, 2).dump({"w": Call(open)})
  for data in (f.getvalue(), b"Pos.system\n."):
    with pytest.raises(UserError, match="PERSID"):
      unpickle.loads(data)


def test_registered_extensions_are_refused():
  copyreg.add_extension("os", "system", 240)
  try:
    for code in (b"\x80\x02\x82\xf0.", b"\x80\x02\x83\xf0\x00.", b"\x80\x02\x84\xf0\x00\x00\x00."):
      with pytest.raises(UserError, match="EXT"):
        unpickle.loads(code)
  finally:
    copyreg.remove_extension("os", "system", 240)


@pytest.mark.parametrize(
  "data",
  [b"", b"garbage", b"\x80\x04.", b"}", b"(", b"h\x07.", b"\x85.", b"t.", b"R.", b"]}u.", b"](a."],
)
def test_broken_pickles_are_one_line_errors(data):
  with pytest.raises(UserError, match="pickle") as e:
    unpickle.loads(data)
  assert "\n" not in str(e.value)


def array_pickle(shape=(2,), dtype="f4", data=b"\0" * 8, order="<") -> bytes:
  """The pickle of an array, with any of its parts replaced."""
  state = (3, order, None, None, None, -1, -1, 0)
  spell = lambda x: pickle.dumps(x, 2)[2:-1]  # without PROTO and STOP
  body = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + spell((0,)) + b"C\x01b\x87R"
  kind = b"cnumpy\ndtype\n" + spell((dtype, False, True)) + b"R" + spell(state) + b"b"
  bytes_ = b"B" + len(data).to_bytes(4, "little") + data
  return b"\x80\x03" + body + b"(K\x01" + spell(shape) + kind + b"\x89" + bytes_ + b"tb."


def test_arrays_are_made_from_consistent_parts_only():
  np.testing.assert_array_equal(unpickle.loads(array_pickle()), np.zeros(2, np.float32))
  big = unpickle.loads(array_pickle(order=">", data=b"\x3f\x80\0\0" * 2))
  np.testing.assert_array_equal(big, np.ones(2))
  bad = [
    dict(shape=(3,)),
    dict(shape=(-2,)),
    dict(shape=(2**62, 4)),  # overflows a machine word to 0
    dict(shape=(2.0,)),
    dict(dtype="O8"),
    dict(dtype="V8"),
    dict(dtype="f4,O"),
    dict(dtype=""),
  ]
  for parts in bad:
    with pytest.raises(UserError):
      unpickle.loads(array_pickle(**parts))


def test_small_files_cannot_ask_for_much_work():
  """Nested shared containers are exponentially large when printed or walked as trees."""
  shared = []
  for _ in range(60):
    shared = [shared, shared]
  assert len(unpickle.loads(pickle.dumps(shared, 2))) == 2
  data = pickle.dumps(shared, 2)
  for tail in (b"}b.", b"(tR."):
    with pytest.raises(UserError):
      unpickle.loads(data[:-1] + tail)
  with pytest.raises(UserError, match="key"):  # hashing a nested tuple would take as long
    unpickle.loads(b"}))\x86K\x01s.")
  cycle = []
  cycle.append(cycle)
  with pytest.raises(UserError, match="itself"):
    unpickle.loads(pickle.dumps(cycle, 2))
  with pytest.raises(UserError):
    unpickle.loads(b"]" * 100_000 + b"a" * 99_999 + b".")


def test_keys_that_share_a_hash_are_refused():
  """k (2**61 - 1) hashes to 0 for every k: 2**16 of them cost 2**31 comparisons."""
  step = sys.hash_info.modulus
  for bad in (step, -step, 3 * step):
    with pytest.raises(UserError, match="a key that is neither text nor a number of common size"):
      unpickle.loads(pickle.dumps({bad: 1}, 2))
  with pytest.raises(UserError, match="PUT"):
    unpickle.loads(f"Np{step}\n.".encode())
  many = pickle.dumps({k * step: None for k in range(1, 200)}, 2)
  with pytest.raises(UserError, match="key"):
    unpickle.loads(many)
  state = {"state": {0: {"step": 1.0}, 140_234_567_890_123: {}, -1: {}}, "groups": [{"lr": 0.1}]}
  assert unpickle.loads(pickle.dumps(state, 2)) == state  # an optimizer's, by number or address


def test_a_refusal_is_short_whatever_it_shows():
  """Nested shared dicts of any kind are exponentially long when written out."""
  for kind in (dict, collections.OrderedDict):
    shared = kind()
    for _ in range(60):
      shared = kind(a=shared, b=shared)
    with pytest.raises(UserError, match="a call of") as e:
      unpickle.loads(pickle.dumps(shared, 2)[:-1] + b")R.")
    assert len(str(e.value)) < 300


@pytest.mark.parametrize("protocol", [3, 4])
def test_reads_what_pickle_reads(protocol):
  r = np.random.default_rng(0)
  kinds = ("f2", "f4", "f8", "i4", "i8", "u1", "b1", "c8", ">f4")
  shared = r.normal(size=(2, 3))
  want = collections.OrderedDict(
    arrays={k: (100 * r.normal(size=(3, 2))).astype(k) for k in kinds},
    fortran=np.asfortranarray(shared),
    scalar=np.array(3.0),
    empty=np.zeros((0, 4), np.float32),
    twice=[shared, shared],
    plain=(1, -(2**70), 0.5, "text", b"bytes", None, True, [1, (2,), ()], {"a": {}, 3: "b"}),
  )
  got = unpickle.loads(pickle.dumps(want, protocol))
  assert type(got) is collections.OrderedDict
  assert list(got) == list(want)
  assert got["plain"] == want["plain"]
  for k in kinds:
    assert got["arrays"][k].dtype == want["arrays"][k].dtype
  np.testing.assert_equal(got, want)
  assert got["twice"][0] is got["twice"][1]


def test_missing_file_is_a_user_error(tmp_path):
  with pytest.raises(UserError, match="cannot be read"):
    unpickle.load(tmp_path / "absent.ckpt")


def test_further_names_are_given_by_value():
  """A reader of another format passes its own list; the default list does not grow."""
  data = pickle.dumps(Call(complex, 1.0, 2.0), 2)
  with pytest.raises(UserError, match="complex"):
    unpickle.loads(data)
  name = "__builtin__.complex"  # protocol 2 spells builtins as Python 2 did
  assert unpickle.loads(data, {name: lambda args: list(args)}) == [1.0, 2.0]
