"""Safetensors, and new files that are there whole or not at all."""

import contextlib
import os
import pathlib
import shutil

import jax  # noqa: F401  (numpy learns bfloat16 from it, which safetensors then reads and writes)
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from dit_jax.core.errors import UserError


def load_safetensors(path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """The arrays of a file by name, and its metadata.

  Raises:
    UserError: the file is missing, torn, or not of the format.
  """
  name = os.fspath(path)
  try:
    with safetensors.safe_open(path, framework="np") as f:
      return {key: f.get_tensor(key) for key in f.keys()}, dict(f.metadata() or {})  # noqa: SIM118
  except OSError as e:
    reason = e.strerror or str(e)
    raise UserError(f"{name} cannot be read ({reason}); check the path.") from e
  except (safetensors.SafetensorError, TypeError, ValueError, LookupError, MemoryError) as e:
    raise UserError(f"{name} is not a whole safetensors file ({e}); download it again.") from e


def save_safetensors(path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
  """Writes arrays by name; `path` should come from `new_path`."""
  whole = {name: np.ascontiguousarray(x).reshape(x.shape) for name, x in arrays.items()}
  safetensors_numpy.save_file(whole, path, metadata)


@contextlib.contextmanager
def new_path(destination):
  """A temporary path beside `destination`, which takes its place when the block ends well.

  It has the suffix of the destination. Folders on the way are made; where nothing came, none stays.

  Raises:
    UserError: the destination exists, or its folder cannot be written to.
  """
  destination = pathlib.Path(destination)
  if destination.exists() or destination.is_symlink():
    raise UserError(f"{destination} exists already; delete it or choose another name.")
  temporary = destination.with_name(f".tmp{os.getpid()}.{destination.name}")
  made = []
  try:
    made += [folder for folder in destination.parents if not folder.exists()]  # innermost first
    destination.parent.mkdir(parents=True, exist_ok=True)
    yield temporary
    os.rename(temporary, destination)
  except OSError as e:
    raise UserError(f"{destination} cannot be written ({e.strerror or e}); choose another.") from e
  finally:
    if temporary.is_dir():
      shutil.rmtree(temporary)
    elif temporary.exists():
      temporary.unlink()
    with contextlib.suppress(OSError):  # one that holds something stays
      for folder in made:
        folder.rmdir()
