"""A hostile `.pt` file is refused and nothing of it runs; an honest one gives its tensors back."""

import io
import pickle
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
import test_unpickle as hostile

from dit_jax.core.errors import UserError
from dit_jax.weights import torch_file

pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")  # one of the lies

WEIGHTS = {
  "w": np.arange(12, dtype=np.float32).reshape(3, 4),
  "b": np.arange(5).astype(ml_dtypes.bfloat16),
  "h": np.arange(6).astype(np.float16).reshape(1, 2, 3),
  "n": np.array(7, np.int64),
  "empty": np.zeros((0, 3), np.float32),
}


def spell(x) -> bytes:
  return pickle.dumps(x, 2)[2:-1]


def glob(path: str) -> bytes:
  module, _, name = path.rpartition(".")
  return f"c{module}\n{name}\n".encode()


HOOKS = glob("collections.OrderedDict") + b")R"


def storage(kind="torch.FloatStorage", key="0", count=4, tag="storage") -> bytes:
  """A storage of 4 floats, with any of its parts replaced."""
  parts = spell(tag) + glob(kind) + spell(key) + spell("cpu") + spell(count)
  return b"(" + parts + b"tQ"


def tensor(source=None, offset=0, shape=(2, 2), strides=(2, 1), hooks=HOOKS) -> bytes:
  """A 2 x 2 tensor of that storage, with any of its parts replaced."""
  view = spell(offset) + spell(shape) + spell(strides) + spell(False)
  source = storage() if source is None else source
  return glob("torch._utils._rebuild_tensor_v2") + b"(" + source + view + hooks + b"tR"


def program(value: bytes) -> bytes:
  """The pickle of {"w": value}."""
  return b"\x80\x02}" + spell("w") + value + b"s."


def archive(data=None, numbers=bytes(16), compression=zipfile.ZIP_STORED, extra=(), root="m/"):
  """The bytes of a `.pt` file with one storage."""
  out = io.BytesIO()
  with zipfile.ZipFile(out, "w", compression) as z:
    members = [(f"{root}data.pkl", program(tensor()) if data is None else data)]
    members += [(f"{root}data/0", numbers), (f"{root}version", b"3\n"), *extra]
    for name, content in members:
      info = zipfile.ZipInfo(name)
      info.filename = name  # which zipfile would clean
      z.writestr(info, content, compression)
  return out.getvalue()


def resized(size: int) -> bytes:
  """The file with another size of its storage in both headers."""
  data = archive()
  at = data.index(b"m/data/0")
  central = data.rindex(b"m/data/0")
  field = struct.pack("<I", size)
  for start in (at - 12, at - 8, central - 26, central - 22):  # compressed size, size
    data = data[:start] + field + data[start + 4 :]
  return data


def overlapping() -> bytes:
  """A file whose second storage is inside the first: its members hold more than it does."""
  inner, out = io.BytesIO(), io.BytesIO()
  with zipfile.ZipFile(inner, "w") as z:
    z.writestr("m/data/1", bytes(2**12))
  size = len(inner.getvalue()) // 4 * 4
  whole = tensor(storage(count=size // 4), shape=(size // 4,), strides=(1,))
  with zipfile.ZipFile(out, "w") as z:
    z.writestr("m/data.pkl", program(whole))
    z.writestr("m/data/0", inner.getvalue()[:size])
    first, (second,) = z.infolist()[1], zipfile.ZipFile(inner).infolist()
    second.header_offset = first.header_offset + 30 + len(first.filename)
    z.filelist.append(second)
  return out.getvalue()


def structure() -> dict[str, bytes]:
  """Files whose pickle names nothing foreign and whose structure lies."""
  whole, huge = archive(), 2**61
  flipped = bytearray(whole)
  flipped[whole.index(bytes(16))] ^= 1
  shared = tensor(storage(count=2**14), shape=(2**14,), strides=(1,))
  same = b"".join(spell(f"w{i}") + shared for i in range(500))
  call = lambda name, args: archive(program(glob(name) + b"(" + args + b"tR"))
  colliding = b"".join(spell(k * (2**61 - 1)) + b"N" for k in range(2**16))
  beside = spell("w") + tensor() + spell("x") + spell("y")
  foreign = b"}" + spell("__class__") + spell("os") + b"sb"
  return {
    "no file": b"",
    "half": whole[: len(whole) // 2],
    "without its last bytes": whole[:-5],
    "a flipped bit in a storage": bytes(flipped),
    "a member beyond the end": resized(2**31),
    "a member of another size": resized(12),
    "compressed": archive(compression=zipfile.ZIP_DEFLATED),
    "a bomb of zeros": archive(numbers=bytes(2**22), compression=zipfile.ZIP_DEFLATED),
    "two members of a name": archive(extra=[("m/data/0", b"\1" * 16)]),
    "two pickles": archive(extra=[("other/data.pkl", program(tensor()))]),
    "no pickle": archive(data=b"").replace(b"data.pkl", b"data.txt"),
    "an absolute member": archive(extra=[("/etc/passwd", b"x")]),
    "a member inside another": overlapping(),
    "a member that climbs": archive(extra=[("m/../../x", b"x")]),
    "a member with backslashes": archive(extra=[("..\\x", b"x")]),
    "a member on a drive": archive(extra=[("c:/x", b"x")]),
    "a key that climbs": archive(program(tensor(storage(key="../data.pkl")))),
    "a key that is not there": archive(program(tensor(storage(key="7")))),
    "big-endian": archive(extra=[("m/byteorder", b"big")]),
    "a huge pickle": archive(b"\x80\x02" + b"N0" * (torch_file.MAX_PICKLE // 2)),
    "a storage with more numbers": archive(program(tensor(storage(count=5)))),
    "a storage with fewer numbers": archive(program(tensor(storage(count=3)))),
    "a storage of a huge count": archive(program(tensor(storage(count=huge)))),
    "a storage of a negative count": archive(program(tensor(storage(count=-4)))),
    "a storage of another width": archive(program(tensor(storage("torch.DoubleStorage")))),
    "a storage of objects": archive(program(tensor(storage("torch.ObjectStorage")))),
    "a storage that is a function": archive(program(tensor(storage("os.system")))),
    "an id that is no storage": archive(program(tensor(storage(tag="module")))),
    "an id as text": archive(program(b"Pos.system\n")),
    "a storage as data": archive(program(storage())),
    "a name as data": archive(program(glob("torch.FloatStorage"))),
    "a storage that is called": archive(program(glob("torch.FloatStorage") + b")R")),
    "a tensor of no storage": archive(program(tensor(spell("0")))),
    "an offset past the end": archive(program(tensor(offset=1))),
    "a negative offset": archive(program(tensor(offset=-1))),
    "a negative stride": archive(program(tensor(offset=3, strides=(-2, -1)))),
    "a stride past the end": archive(program(tensor(strides=(3, 1)))),
    "more strides than axes": archive(program(tensor(strides=(4, 2, 1)))),
    "a shape that overflows": archive(program(tensor(shape=(2**62, 4), strides=(0, 0)))),
    "a number repeated for ever": archive(program(tensor(shape=(2**40,), strides=(0,)))),
    "a shape of floats": archive(program(tensor(shape=(2.0, 2.0)))),
    "a negative shape": archive(program(tensor(shape=(-2, -2)))),
    "many axes": archive(program(tensor(shape=(1,) * 60, strides=(1,) * 60))),
    "keys that share a hash": archive(b"\x80\x02}(" + colliding + b"u."),
    "hooks": archive(program(tensor(hooks=HOOKS + spell("x") + spell("y") + b"s"))),
    "one storage many times": archive(b"\x80\x02}(" + same + b"u.", bytes(2**16)),
    "a parameter of no tensor": call(
      "torch._utils._rebuild_parameter", spell("w") + b"\x89" + HOOKS
    ),
    "a list for a dict": archive(b"\x80\x02](" + tensor() + b"e."),
    "text beside tensors": archive(b"\x80\x02}(" + beside + b"u."),
    "an empty dict": archive(b"\x80\x02}."),
    "getattr": call("builtins.getattr", glob("torch.FloatStorage") + spell("a")),
    "a class for a state": archive(program(HOOKS + foreign)),
    "a tensor for a storage": archive(program(tensor(tensor()))),
    "a tensor with a state": archive(program(tensor() + b"}b")),
    "a script": archive(program(glob("__torch__.Net") + b")\x81")),
    "before 1.6": pickle.dumps(0x1950A86A20F9469CFC6C, 2),
    "a tar": bytes(257) + b"ustar" + bytes(250),
  }


def corpus(canary: str) -> dict[str, bytes]:
  """Every hostile file: lies about structure, and programs that write to `canary` when run."""
  programs = {**hostile.by_hand(canary), **hostile.by_pickler(canary)}
  return structure() | {f"program: {name}": archive(data) for name, data in programs.items()}


def attempt(path, data: bytes) -> tuple[str, int]:
  """The refusal of a file, "" where it is read, and the most bytes that reading it took."""
  path.write_bytes(data)
  tracemalloc.start()
  try:
    torch_file.load(path)
    return "", 0
  except UserError as e:
    return str(e), tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()


def test_hostile_files_are_refused_and_not_run(tmp_path):
  canary = tmp_path / "canary"
  tried = corpus(str(canary))
  read = []
  for name, data in tried.items():
    refusal, peak = attempt(tmp_path / "w.pt", data)
    if not refusal:
      read.append(name)
    assert "\n" not in refusal, name
    assert not canary.exists(), name
    assert peak < 3 * len(data) + 2**22, (name, peak)
  print(f"refused {len(tried) - len(read)} of {len(tried)} hostile files")
  assert read == []
  assert len(tried) >= 89


def test_the_programs_are_hostile(tmp_path):
  """The same pickle under the standard machine leaves its mark: the corpus has teeth."""
  canary = tmp_path / "canary"
  with zipfile.ZipFile(io.BytesIO(corpus(str(canary))["program: GLOBAL and REDUCE"])) as z:
    pickle.loads(z.read("m/data.pkl"))
  assert canary.exists()


def test_the_parts_of_the_corpus_make_an_honest_file(tmp_path):
  """What the lies are told about: without them the file is read."""
  numbers = np.arange(4, dtype=np.float32)
  (tmp_path / "w.pt").write_bytes(archive(numbers=numbers.tobytes()))
  np.testing.assert_array_equal(torch_file.load(tmp_path / "w.pt")["w"], numbers.reshape(2, 2))
  views = {"turned": tensor(strides=(1, 2)), "end": tensor(offset=3, shape=(1,), strides=(1,))}
  data = b"\x80\x02}(" + b"".join(spell(k) + v for k, v in views.items()) + b"u."
  (tmp_path / "v.pt").write_bytes(archive(data, numbers.tobytes()))
  got = torch_file.load(tmp_path / "v.pt")
  np.testing.assert_array_equal(got["turned"], numbers.reshape(2, 2).T)
  np.testing.assert_array_equal(got["end"], [3])


def test_a_storage_is_read_once(tmp_path, monkeypatch):
  """However many tensors share it, in whatever order."""
  views = [
    spell(f"w{i}") + tensor(storage(key=str(i % 2)), offset=i % 4, shape=(1,), strides=(1,))
    for i in range(8)
  ]
  numbers = np.arange(8, dtype=np.float32)
  data = archive(
    b"\x80\x02}(" + b"".join(views) + b"u.",
    numbers[:4].tobytes(),
    extra=[("m/data/1", numbers[4:].tobytes())],
  )
  (tmp_path / "w.pt").write_bytes(data)
  reads, read = [], zipfile.ZipFile.read
  count = lambda self, name: reads.append(name) or read(self, name)
  monkeypatch.setattr(zipfile.ZipFile, "read", count)
  got = torch_file.load(tmp_path / "w.pt")
  assert sorted(reads) == ["m/data.pkl", "m/data/0", "m/data/1"]
  assert list(got) == [f"w{i}" for i in range(8)]
  assert [x.item() for x in got.values()] == [4 * (i % 2) + i % 4 for i in range(8)]


def test_round_trip_is_exact(tmp_path):
  torch_file.save(tmp_path / "w.pt", WEIGHTS)
  got = torch_file.load(tmp_path / "w.pt")
  assert list(got) == list(WEIGHTS)
  for name, x in WEIGHTS.items():
    assert (got[name].dtype, got[name].shape) == (x.dtype, x.shape)
    assert got[name].tobytes() == x.tobytes()
  torch_file.save(tmp_path / "again.pt", {name: x.copy(order="F") for name, x in got.items()})
  assert (tmp_path / "w.pt").read_bytes() == (tmp_path / "again.pt").read_bytes()


def test_the_best_of_a_checkpoint_is_read(tmp_path):
  """DiT's training file: {"model", "ema", "opt", "args"}, dicts with versions and a namespace."""
  versions = b"}" + spell("_metadata") + HOOKS + b"sb"
  state = lambda offset: HOOKS + spell("w") + tensor(offset=offset, shape=(1,), strides=(1,)) + b"s"
  namespace = glob("argparse.Namespace") + b")\x81}" + spell("lr") + spell(0.1) + b"sb"
  parts = [("model", state(0) + versions), ("ema", state(1)), ("args", namespace)]
  data = b"\x80\x02}(" + b"".join(spell(k) + v for k, v in parts) + b"u."
  numbers = np.arange(4, dtype=np.float32).tobytes()
  (tmp_path / "w.pt").write_bytes(archive(data, numbers))
  for keys, want in ((("ema", "model"), 1), (("absent", "model"), 0)):
    np.testing.assert_array_equal(torch_file.load(tmp_path / "w.pt", keys)["w"], [want])
  with pytest.raises(UserError, match="state dict"):
    torch_file.load(tmp_path / "w.pt")


def test_what_cannot_be_read_or_written_is_said(tmp_path):
  with pytest.raises(UserError, match="cannot be read"):
    torch_file.load(tmp_path / "absent.pt")
  (tmp_path / "old.pt").write_bytes(structure()["before 1.6"])
  with pytest.raises(UserError, match=r"before 1\.6"):
    torch_file.load(tmp_path / "old.pt")
  with pytest.raises(UserError, match="complex64"):
    torch_file.save(tmp_path / "w.pt", {"w": np.zeros(2, np.complex64)})
