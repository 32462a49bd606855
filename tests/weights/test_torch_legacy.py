"""Files of PyTorch before 1.6: an honest one gives its tensors, a lie is refused and nothing runs.

Files that torch.save itself wrote are read in tests/parity/test_torch_inception.py.
"""

import pickle
import struct
import tracemalloc

import numpy as np
import test_torch_file as zipped
import test_unpickle as hostile

from dit_jax.core.errors import UserError
from dit_jax.weights import torch_file, torch_legacy

NUMBERS = np.arange(4, dtype=np.float32)
WHOLE = ((4, NUMBERS.tobytes()),)
MACHINE = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}


def storage(kind="torch.FloatStorage", key="940", count=4, tag="storage", view=None) -> bytes:
  """A storage of 4 floats, with any of its parts replaced."""
  parts = zipped.spell(tag) + zipped.glob(kind) + zipped.spell(key) + zipped.spell("cuda:0")
  return b"(" + parts + zipped.spell(count) + zipped.spell(view) + b"tQ"


def tensor(source=None, **parts) -> bytes:
  return zipped.tensor(storage() if source is None else source, **parts)


def legacy(data=None, keys=("940",), numbers=WHOLE, magic=None, machine=None, more=b"") -> bytes:
  """The bytes of a file with one tensor "w", with any part replaced."""
  start = [torch_legacy.MAGIC if magic is None else magic, 1001, machine or MACHINE]
  out = b"".join(pickle.dumps(x, 2) for x in start)
  out += zipped.program(tensor()) if data is None else data
  out += pickle.dumps(keys if isinstance(keys, dict) else list(keys), 2)
  return out + b"".join(struct.pack("<q", n) + x for n, x in numbers) + more


def lies() -> dict[str, bytes]:
  two = b"}(" + zipped.spell("a") + tensor() + zipped.spell("b")
  whole = legacy()
  return {
    "half": whole[: len(whole) // 2],
    "without its last byte": whole[:-1],
    "with one byte more": legacy(more=b"x"),
    "nothing after the magic number": pickle.dumps(torch_legacy.MAGIC, 2),
    "another protocol": whole.replace(pickle.dumps(1001, 2), pickle.dumps(1002, 2), 1),
    "big-endian": legacy(machine=MACHINE | {"little_endian": False}),
    "no facts of the machine": legacy(machine=[1]),
    "no keys": legacy(keys=()),
    "another key": legacy(keys=("941",)),
    "a key twice": legacy(keys=("940", "940"), numbers=WHOLE * 2),
    "keys that are no list": legacy(keys={"940": 1}),
    "another count in front": legacy(numbers=((3, NUMBERS.tobytes()),)),
    "a huge count": legacy(zipped.program(tensor(storage(count=2**61)))),
    "a negative count": legacy(zipped.program(tensor(storage(count=-4)))),
    "a count that is a truth": legacy(zipped.program(tensor(storage(count=True)))),
    "a storage of another width": legacy(zipped.program(tensor(storage("torch.HalfStorage")))),
    "a storage of objects": legacy(zipped.program(tensor(storage("torch.ObjectStorage")))),
    "a view": legacy(zipped.program(tensor(storage(view=("1", 0, 4))))),
    "an id that is no storage": legacy(zipped.program(tensor(storage(tag="module")))),
    "a storage of two sizes": legacy(b"\x80\x02" + two + tensor(storage(count=2)) + b"u."),
    "an offset past the end": legacy(zipped.program(tensor(offset=1))),
    "a number repeated for ever": legacy(zipped.program(tensor(shape=(2**40,), strides=(0,)))),
    "no tensors": legacy(b"\x80\x02}.", (), ()),
  }


def attempt(path, data: bytes) -> tuple[str, int]:
  """The refusal of a file, "" where it is read, and the most bytes that reading it took."""
  path.write_bytes(data)
  tracemalloc.start()
  try:
    torch_legacy.load(path)
    return "", 0
  except UserError as e:
    return str(e), tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()


def test_an_honest_file_is_read(tmp_path):
  (tmp_path / "w.pth").write_bytes(legacy())
  assert torch_legacy.is_legacy(tmp_path / "w.pth")
  got = torch_legacy.load(tmp_path / "w.pth")
  assert list(got) == ["w"]
  np.testing.assert_array_equal(got["w"], NUMBERS.reshape(2, 2))


def test_storages_come_in_the_order_of_the_keys_and_may_be_shared(tmp_path):
  parts = {
    "turned": tensor(strides=(1, 2)),
    "end": tensor(offset=3, shape=(1,), strides=(1,)),
    "other": tensor(storage("torch.LongStorage", "7", 2), shape=(2,), strides=(1,)),
  }
  program = b"\x80\x02}(" + b"".join(zipped.spell(k) + v for k, v in parts.items()) + b"u."
  other = np.array([5, 6], np.int64)
  numbers = ((2, other.tobytes()), (4, NUMBERS.tobytes()))
  (tmp_path / "w.pth").write_bytes(legacy(program, ("7", "940"), numbers))
  got = torch_legacy.load(tmp_path / "w.pth")
  assert list(got) == list(parts)
  np.testing.assert_array_equal(got["turned"], NUMBERS.reshape(2, 2).T)
  np.testing.assert_array_equal(got["end"], [3])
  np.testing.assert_array_equal(got["other"], other)


def test_hostile_files_are_refused_and_not_run(tmp_path):
  canary, path = tmp_path / "canary", tmp_path / "w.pth"
  programs = {**hostile.by_hand(str(canary)), **hostile.by_pickler(str(canary))}
  tried = lies() | {f"program: {name}": legacy(data) for name, data in programs.items()}
  tried |= {f"in the keys: {name}": legacy()[:-24] + data for name, data in programs.items()}
  for name, data in tried.items():
    refusal, peak = attempt(path, data)
    assert refusal.startswith(str(path)), (name, "was read")
    assert "\n" not in refusal, name
    assert peak < 3 * len(data) + 2**22, (name, peak)
    assert not canary.exists(), name


def test_todays_files_and_none_are_of_another_format(tmp_path):
  torch_file.save(tmp_path / "w.pt", {"w": NUMBERS})
  assert not torch_legacy.is_legacy(tmp_path / "w.pt")
  assert not torch_legacy.is_legacy(tmp_path / "absent.pt")
