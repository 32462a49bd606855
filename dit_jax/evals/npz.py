"""Files of arrays that somebody else wrote: nothing in them is run, damage is one line."""

import contextlib
import math
import zipfile
import zlib
from collections.abc import Collection, Iterator

import numpy as np

from dit_jax.core import files
from dit_jax.core.errors import UserError

_LENGTHS = 26  # bytes of a member's header before the lengths that end it
LARGEST = 2**32  # bytes of an array that is read whole: a small file may unpack to any size
_HEADERS = {
  (1, 0): np.lib.format.read_array_header_1_0,
  (2, 0): np.lib.format.read_array_header_2_0,
}
_DAMAGE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def names(path) -> set[str]:
  """Names of the arrays in an npz file.

  Raises:
    UserError: the file is missing or no npz.
  """
  with _opened(path) as file:
    return _names(file)


def read(path, wanted: Collection[str]) -> dict[str, np.ndarray]:
  """Those of the wanted arrays that the file has.

  Raises:
    UserError: the file is missing, damaged, no npz, or holds Python objects or too much.
  """
  found = {}
  with _opened(path) as file:
    for name in sorted(set(wanted) & _names(file)):
      shape, _, dtype, _ = _header(file, name)
      if math.prod(shape) * dtype.itemsize > LARGEST:
        raise UserError(f"{name} of {path} is {list(shape)}, more than {LARGEST:,} bytes; cut it.")
      with file.open(f"{name}.npy") as member:
        found[name] = np.lib.format.read_array(member, allow_pickle=False)
  return found


def mapped(path, name: str) -> np.ndarray:
  """One array; of a file that packs nothing (`np.savez`) its rows stay on disk until asked for.

  Raises:
    UserError: as `read`, or there is no such array.
  """
  with _opened(path) as file:
    if name not in _names(file):
      held = ", ".join(sorted(_names(file))) or "nothing"
      raise UserError(f"{path} has no {name} but {held}; give an npz file that has it.")
    shape, fortran, dtype, start = _header(file, name)
    info = file.getinfo(f"{name}.npy")
    if info.compress_type == zipfile.ZIP_STORED and math.prod(shape):
      with open(path, "rb") as raw:
        raw.seek(info.header_offset + _LENGTHS)
        lengths = np.frombuffer(raw.read(4), "<u2")  # of the name and of what follows it
      offset = info.header_offset + _LENGTHS + 4 + int(lengths.sum()) + start
      return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")
  return read(path, [name])[name]


def images(path, size: int = 512) -> Iterator[np.ndarray]:
  """The uint8 images [n, s, s, 3] of `arr_0`, `size` at a time: 50,000 need not fit into memory.

  Raises:
    UserError: as `read`, or `arr_0` is something else.
  """
  with _opened(path) as file:
    if "arr_0" not in _names(file):
      raise UserError(f"{path} has no arr_0; give uint8 images [n, s, s, 3] of that name.")
    shape, fortran, dtype, start = _header(file, "arr_0")
    square = len(shape) == 4 and shape[1] == shape[2] and shape[3] == 3
    if dtype != np.uint8 or not square or not shape[0] or fortran:
      order = " in Fortran's order" if fortran else ""
      raise UserError(
        f"arr_0 of {path} is {dtype} {list(shape)}{order}, not uint8 images [n, s, s, 3]; save "
        "such, in C's order."
      )
    with file.open("arr_0.npy") as member:
      member.seek(start)
      for first in range(0, shape[0], size):
        part = (min(size, shape[0] - first), *shape[1:])
        yield np.frombuffer(member.read(math.prod(part)), np.uint8).reshape(part)


def write(path, arrays: dict[str, np.ndarray]) -> None:
  """An npz file of this very name in one move: neither a kill nor a full disk leaves half of one.

  Raises:
    UserError: it cannot be written.
  """
  try:
    with files.in_one_move(path) as half, half.open("wb") as file:  # of a name numpy makes .npz
      np.savez(file, **arrays)
  except OSError as error:
    raise UserError(
      f"{path} cannot be written ({error.strerror}); make room there, or name a file elsewhere."
    ) from error


@contextlib.contextmanager
def _opened(path) -> Iterator[zipfile.ZipFile]:
  """The file; what is wrong with it, inside this block too, becomes one line."""
  try:
    with zipfile.ZipFile(path) as file:
      yield file
  except UserError:
    raise
  except FileNotFoundError:
    raise UserError(f"{path} does not exist; give an npz file that does.") from None
  except _DAMAGE as error:
    raise UserError(
      f"{path} is damaged or no npz file ({error}); make it or fetch it again."
    ) from error


def _names(file: zipfile.ZipFile) -> set[str]:
  return {name.removesuffix(".npy") for name in file.namelist() if name.endswith(".npy")}


def _header(file: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], bool, np.dtype, int]:
  """Shape, whether in Fortran's order, dtype and the place of the first number."""
  with file.open(f"{name}.npy") as member:
    version = np.lib.format.read_magic(member)
    if version not in _HEADERS:
      raise ValueError(f"{name} has format {version}")
    shape, fortran, dtype = _HEADERS[version](member)
    start = member.tell()
  if dtype.hasobject:
    raise UserError(
      f"{name} of {file.filename} holds Python objects, which are not read; save plain numbers."
    )
  if start + math.prod(shape) * dtype.itemsize != file.getinfo(f"{name}.npy").file_size:
    raise ValueError(f"{name} has not the length of its shape {list(shape)}")
  return shape, fortran, dtype, start
