"""Reads and writes PyTorch's `.pt` files of tensors without PyTorch, and runs nothing of a file.

Since PyTorch 1.6 such a file is a zip archive whose members are stored as they are:

    NAME/data.pkl   a pickle: a tensor is _rebuild_tensor_v2(storage, offset, shape, strides)
    NAME/data/KEY   the bytes of one storage; the pickle refers to it by a persistent id

The pickle is interpreted by `unpickle`, which knows the names below and no other. A storage is read
where its size is the one declared, a tensor where it lies inside its storage.
"""

import collections
import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import pickle
import struct
import zipfile

import jax.numpy as jnp
import numpy as np

from dit_jax.core.errors import UserError
from dit_jax.weights import unpickle
from dit_jax.weights.unpickle import Name, Refused

MAX_PICKLE = 2**24  # bytes: that of DiT-XL with its optimizer has 2**18
MAX_AXES = 8
STORAGES = {
  "torch.DoubleStorage": np.dtype("<f8"),
  "torch.FloatStorage": np.dtype("<f4"),
  "torch.HalfStorage": np.dtype("<f2"),
  "torch.BFloat16Storage": np.dtype(jnp.bfloat16),
  "torch.LongStorage": np.dtype("<i8"),
  "torch.IntStorage": np.dtype("<i4"),
  "torch.ShortStorage": np.dtype("<i2"),
  "torch.CharStorage": np.dtype("i1"),
  "torch.ByteStorage": np.dtype("u1"),
  "torch.BoolStorage": np.dtype("?"),
}
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number that the old format starts with
TORN = (
  *(zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, ValueError),
  *(OverflowError, MemoryError, struct.error, LookupError),
)


@dataclasses.dataclass(frozen=True)
class Storage(unpickle.Token):
  """A member of the archive as `count` numbers."""

  member: str
  dtype: np.dtype
  count: int


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A view of a storage; offset and strides count elements."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.storage.dtype.itemsize


class StateDict(collections.OrderedDict, unpickle.Pending):
  """collections.OrderedDict; the versions that a module hangs on it are dropped."""

  def set_state(self, state) -> None:
    if not (isinstance(state, dict) and set(state) <= {"_metadata"}):
      raise Refused("the state of a dict")


class Namespace(unpickle.Pending):
  """argparse.Namespace, which DiT's training stores beside the weights; its content is dropped."""

  def set_state(self, state) -> None:
    if not isinstance(state, dict):
      raise Refused("the state of a namespace")


def load(path, keys: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
  """The tensors of a `.pt` file by name.

  Args:
    path: the file.
    keys: of the dicts that a checkpoint may hold, best first; the first that is there is read, and
      the whole file where none is.

  Raises:
    UserError: the file is missing, damaged, of another format, holds something else than tensors
      by name, or names anything that is not on the list; nothing of it has been run.
  """
  with refusals(path), open(path, "rb") as f:
    start, size = f.read(512), os.fstat(f.fileno()).st_size
    _refuse_legacy(start)
    with zipfile.ZipFile(f) as archive:
      return _read(archive, size, keys)


@contextlib.contextmanager
def refusals(path):
  """Makes every failure to read a file of tensors a UserError that names it."""
  name = os.fspath(path)
  try:
    yield
  except OSError as e:
    raise UserError(f"{name} cannot be read ({e.strerror or e}); check the path.") from e
  except UserError as e:
    raise UserError(f"{name}: {e}") from e.__cause__
  except Refused as e:
    raise UserError(
      f"{name}: this file was refused and not run: it holds {e}; take weights from a source that "
      "you trust, best as safetensors."
    ) from e
  except TORN as e:
    raise UserError(
      f"{name} is not a whole PyTorch file ({type(e).__name__}: {str(e)[:80]}); download it again."
    ) from e


def _refuse_legacy(start: bytes) -> None:
  if start.startswith(LEGACY) or start[257:262] == b"ustar":
    raise UserError(
      "this is PyTorch's format from before 1.6 (a bare pickle or a tar), which is not read; open "
      "it in PyTorch, if you trust it, and torch.save it again."
    )


def _read(archive: zipfile.ZipFile, size: int, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
  """The wanted tensors of an open archive of `size` bytes."""
  members = _members(archive, size)
  roots = [n.removesuffix("data.pkl") for n in members if pathlib.PurePath(n).name == "data.pkl"]
  if len(roots) != 1:
    raise Refused(f"{len(roots)} members called data.pkl in place of one")
  root = roots[0]
  if members[f"{root}data.pkl"] > MAX_PICKLE:
    raise Refused(f"a pickle of {members[f'{root}data.pkl']:,} bytes, over {MAX_PICKLE:,}")
  order = f"{root}byteorder"
  if order in members and archive.read(order) != b"little":
    raise Refused("numbers that are not little-endian")
  tree = unpickle.loads(
    archive.read(f"{root}data.pkl"), GLOBALS, functools.partial(_storage, members, f"{root}data/")
  )
  for key in keys:
    if isinstance(tree, dict) and isinstance(tree.get(key), dict):
      tree = tree[key]
      break
  sharers, arrays = by_storage(tree, size), {}
  for member, names in sharers.items():  # each is read once, and one is held at a time
    data = archive.read(member)
    arrays |= {name: array(tree[name], data) for name in names}
  return {name: arrays[name] for name in tree}


def by_storage(tree, size: int) -> dict[str, list[str]]:
  """Names of tensors by the storage that holds them, of a state dict in a file of `size` bytes."""
  tensors = isinstance(tree, dict) and all(isinstance(x, Tensor) for x in tree.values())
  if not tensors or not tree or not all(isinstance(name, str) for name in tree):
    raise UserError("this file does not hold tensors by name (a state dict); give one that does.")
  if sum(x.nbytes for x in tree.values()) > size:
    raise Refused("tensors that hold more than the file does")
  out = {}
  for name, x in tree.items():
    out.setdefault(x.storage.member, []).append(name)
  return out


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, int]:
  """Bytes of every member by name, once none is suspicious."""
  members = {}
  for info in archive.infolist():
    name, parts = info.orig_filename, info.orig_filename.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\0" in name:
      raise Refused(f"a member called {name[:60]!r}")
    if info.filename in members:
      raise Refused(f"two members called {name[:60]!r}")
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
      raise Refused(f"the compressed member {name[:60]!r}")
    if info.header_offset + info.file_size > size or info.flag_bits & 1:
      raise Refused(f"the member {name[:60]!r}, which is encrypted or longer than the file")
    members[info.filename] = info.file_size
  if sum(members.values()) > size:
    raise Refused("members that overlap")
  return members


def _storage(members: dict[str, int], folder: str, reference) -> Storage:
  """The storage that a persistent id means."""
  match reference:
    case ("storage", Name(path=path), str(key), str(), int(count)) if path in STORAGES:
      storage = Storage(f"{folder}{key}", STORAGES[path], count)
    case _:
      raise Refused(f"the persistent id {unpickle.show(reference)}")
  if not key.isdigit() or storage.member not in members:
    raise Refused(f"the storage {key[:60]!r}, which is not in the file")
  if isinstance(count, bool) or count * storage.dtype.itemsize != members[storage.member]:
    raise Refused(
      f"a storage of {count} {storage.dtype} whose member has {members[storage.member]} bytes"
    )
  return storage


def _rebuild_tensor(args: tuple) -> Tensor:
  """torch._utils._rebuild_tensor_v2: (storage, offset, shape, strides, grad, hooks[, metadata])."""
  match args:
    case (Storage() as storage, offset, tuple(shape), tuple(strides), bool(), dict(hooks), *rest):
      numbers = (offset, *shape, *strides)
      sound = all(type(n) is int and 0 <= n < 2**62 for n in numbers) and not hooks
    case _:
      raise Refused(f"a tensor made from {unpickle.show(args)}")
  if not sound or len(shape) != len(strides) or len(shape) > MAX_AXES or rest not in ([], [None]):
    raise Refused(f"a tensor made from {unpickle.show(args[1:])}")
  count = math.prod(shape)
  last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
  if count > storage.count or (count and last >= storage.count):
    raise Refused(
      f"a tensor of shape {shape}, strides {strides} and offset {offset} in a storage of "
      f"{storage.count} numbers"
    )
  return Tensor(storage, offset, shape, strides)


def _rebuild_parameter(args: tuple) -> Tensor:
  """torch._utils._rebuild_parameter: (tensor, requires_grad, hooks)."""
  match args:
    case (Tensor() as tensor, bool(), dict(hooks)) if not hooks:
      return tensor
  raise Refused(f"a parameter made from {unpickle.show(args)}")


def _make(kind: type):
  """A call without arguments."""

  def make(args: tuple):
    if args:
      raise Refused(f"{kind.__name__} with arguments")
    return kind()

  return make


GLOBALS = {
  "collections.OrderedDict": _make(StateDict),
  "argparse.Namespace": _make(Namespace),
  "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
  "torch._utils._rebuild_parameter": _rebuild_parameter,
  **dict.fromkeys(STORAGES),  # named, never called
}


def array(tensor: Tensor, data: bytes) -> np.ndarray:
  """The numbers of a tensor, whose storage has these bytes."""
  flat = np.frombuffer(data, tensor.storage.dtype)[tensor.offset :]
  steps = [stride * flat.itemsize for stride in tensor.strides]
  if not math.prod(tensor.shape):  # where an offset may be the storage's end
    return np.zeros(tensor.shape, flat.dtype)
  return np.lib.stride_tricks.as_strided(flat, tensor.shape, steps).copy()


def save(path, tensors: dict[str, np.ndarray]) -> None:
  """Writes arrays by name as a file that torch.load reads; equal arrays give equal bytes.

  Raises:
    UserError: an array of a dtype that PyTorch has not.
  """
  names = {dtype: name for name, dtype in STORAGES.items()}
  with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
    write = lambda member, data: archive.writestr(zipfile.ZipInfo(f"archive/{member}"), data)
    program = b"\x80\x02}("
    for i, (name, x) in enumerate(tensors.items()):
      dtype = x.dtype.newbyteorder("<")
      if dtype not in names:
        raise UserError(f"{name} is of dtype {x.dtype}, which a .pt file cannot hold.")
      program += _spell(name) + _tensor_program(names[dtype], str(i), x.shape)
    write("data.pkl", program + b"u.")
    write("byteorder", "little")
    for i, x in enumerate(tensors.values()):
      write(f"data/{i}", x.astype(x.dtype.newbyteorder("<"), copy=False).tobytes())
    write("version", "3\n")


def _tensor_program(storage: str, key: str, shape: tuple[int, ...]) -> bytes:
  """The instructions that rebuild a contiguous tensor of a storage of its own."""
  strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
  glob = lambda path: b"c" + "\n".join(path.rsplit(".", 1)).encode() + b"\n"
  reference = b"(" + _spell("storage") + glob(storage)
  reference += _spell(key) + _spell("cpu") + _spell(math.prod(shape)) + b"tQ"
  hooks = glob("collections.OrderedDict") + b")R"
  view = _spell(0) + _spell(shape) + _spell(strides) + _spell(False)
  return glob("torch._utils._rebuild_tensor_v2") + b"(" + reference + view + hooks + b"tR"


def _spell(x) -> bytes:
  """The instructions that make text, a number or a tuple of numbers."""
  return pickle.dumps(x, 2)[2:-1]  # without the protocol and the stop
