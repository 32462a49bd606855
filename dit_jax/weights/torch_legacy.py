"""Reads `.pt` files of PyTorch before 1.6, as `torch_file` reads today's, and runs nothing of them.

Such a file is five pickles and then the storages, each a count (int64) and its numbers:

    magic number, 1001, facts of the machine, the state dict, [KEY, ..] in the storages' order

A storage is (tag, kind, KEY, place, count, None) in the state dict. It is read where the counts
agree and all storages together end where the file does.
"""

import itertools
import os
import pickletools
import struct
from io import BytesIO

import numpy as np

from dit_jax.weights import torch_file, unpickle
from dit_jax.weights.torch_file import Storage
from dit_jax.weights.unpickle import Name, Refused

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
COUNT = struct.Struct("<q")


def is_legacy(path) -> bool:
  """Whether a file is there and begins as this format does."""
  try:
    with open(path, "rb") as f:
      return f.read(len(torch_file.LEGACY)) == torch_file.LEGACY
  except OSError:
    return False


def load(path) -> dict[str, np.ndarray]:
  """The tensors of a file by name.

  Raises:
    UserError: as `torch_file.load` does.
  """
  with torch_file.refusals(path), open(path, "rb") as f:
    size = os.fstat(f.fileno()).st_size
    pickles, start = _pickles(f.read(min(size, torch_file.MAX_PICKLE)), 5)
    magic, protocol, machine = (unpickle.loads(data, {}) for data in pickles[:3])
    if (magic, protocol) != (MAGIC, PROTOCOL) or not isinstance(machine, dict):
      raise Refused(f"the numbers {unpickle.show((magic, protocol))} at its start")
    if machine.get("little_endian") is not True:
      raise Refused("numbers that are not little-endian")
    storages = {}
    tree = unpickle.loads(
      pickles[3], torch_file.GLOBALS, lambda reference: _storage(storages, reference)
    )
    keys = unpickle.loads(pickles[4], {})
    _check_keys(keys, storages, size - start)
    sharers, arrays = torch_file.by_storage(tree, size), {}
    f.seek(start)
    for key in keys:  # one is held at a time
      if f.read(COUNT.size) != COUNT.pack(storages[key].count):
        raise Refused(f"the storage {key[:60]!r}, whose two counts differ")
      data = f.read(_nbytes(storages[key]))
      arrays |= {name: torch_file.array(tree[name], data) for name in sharers.get(key, ())}
    return {name: arrays[name] for name in tree}


def _pickles(data: bytes, count: int) -> tuple[list[bytes], int]:
  """The first pickles that follow each other in data, and where they end."""
  stream, ends = BytesIO(data), [0]
  for _ in range(count):
    for _ in pickletools.genops(stream):  # ends behind STOP
      pass
    ends.append(stream.tell())
  return [data[a:b] for a, b in itertools.pairwise(ends)], ends[-1]


def _storage(storages: dict[str, Storage], reference) -> Storage:
  """The storage that a persistent id means, which `storages` then holds by its key."""
  match reference:
    case ("storage", Name(path=path), str(key), str(), int(count), None) if (
      path in torch_file.STORAGES and type(count) is int and 0 <= count < 2**62
    ):
      storage = Storage(key, torch_file.STORAGES[path], count)
    case _:
      raise Refused(f"the persistent id {unpickle.show(reference)}")
  if storages.setdefault(key, storage) != storage:
    raise Refused(f"two storages called {key[:60]!r}")
  return storage


def _check_keys(keys, storages: dict[str, Storage], left: int) -> None:
  """Refuses keys that are not those of the storages, and storages that do not fill what is left."""
  text = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
  if not text or len(keys) != len(storages) or set(keys) != set(storages):
    raise Refused(f"the keys {unpickle.show(keys)}, which are not those of its storages")
  needed = sum(COUNT.size + _nbytes(storage) for storage in storages.values())
  if needed != left:
    raise Refused(f"storages of {needed:,} bytes where {left:,} are left")


def _nbytes(storage: Storage) -> int:
  return storage.count * storage.dtype.itemsize
