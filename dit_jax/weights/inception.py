"""The weights of the FID's Inception under the names of the ports to PyTorch.

pytorch-fid and torch-fidelity have them as a state dict in a `.pth`, of PyTorch before 1.6 or of
today's; a `.safetensors` or `.npz` with the same keys and layouts (OIHW kernels, [out, in] for the
last layer) is read, too.
"""

import os
import pathlib
import zipfile
import zlib

import numpy as np

from dit_jax.core.errors import UserError
from dit_jax.weights import rename, torch_file, torch_legacy

DAMAGE = (ValueError, EOFError, zipfile.BadZipFile, zlib.error, MemoryError, NotImplementedError)
LEAVES = {  # of a layer, and how it lies there
  "kernel": ("conv.weight", rename.CONV),
  "scale": ("bn.weight", rename.SAME),
  "bias": ("bn.bias", rename.SAME),
  "mean": ("bn.running_mean", rename.SAME),
  "var": ("bn.running_var", rename.SAME),
}
LAST = "fc/kernel"
MOST_BYTES = 2**28  # of an .npz, unpacked: the network has 2**27 in float64
WHERE = "a .pth as pytorch-fid and torch-fidelity publish it (pt_inception-2015-12-05-6726825d.pth)"


def load(path, shapes: dict) -> dict[str, np.ndarray]:
  """Our leaves of a file, in float32.

  Args:
    path: `.pth` or `.pt`, `.safetensors`, or `.npz`.
    shapes: of every leaf of the network, by path.

  Raises:
    UserError: the file is missing, damaged or refused; or, listing every unused key, every unfilled
      leaf and every shape that differs, of another network.
  """
  arrays = {key: x for key, x in _read(path).items() if not _is_idle(key)}
  try:
    leaves = rename.to_ours(rows(shapes), arrays, shapes)
  except UserError as e:
    raise UserError(f"{os.fspath(path)}: {e} Give {WHERE}.") from e
  return {name: np.asarray(x, np.float32) for name, x in leaves.items()}


def rows(paths) -> list[rename.Row]:
  """The table of a network whose leaves have these paths."""
  out = []
  for path in paths:
    layer, leaf = path.rsplit("/", 1)
    theirs, layout = ("weight", rename.LINEAR) if path == LAST else LEAVES[leaf]
    out.append(rename.Row(path, (f"{layer.replace('/', '.')}.{theirs}",), layout))
  return out


def _is_idle(key: str) -> bool:
  """Whether no metric reads it: the second classifier, the bias of the first, BatchNorm's count."""
  return key.startswith("AuxLogits.") or key == "fc.bias" or key.endswith(".num_batches_tracked")


def _read(path) -> dict[str, np.ndarray]:
  match pathlib.Path(path).suffix:
    case ".safetensors":
      from dit_jax.weights import files

      return files.load_safetensors(path)[0]
    case ".npz":
      return _read_npz(path)
    case ".pth" | ".pt":
      return (torch_legacy if torch_legacy.is_legacy(path) else torch_file).load(path)
  raise UserError(f"{os.fspath(path)} is no .pth, .pt, .safetensors or .npz; give {WHERE}.")


def _read_npz(path) -> dict[str, np.ndarray]:
  name = os.fspath(path)
  try:
    with zipfile.ZipFile(path) as archive:
      size = sum(info.file_size for info in archive.infolist())
    if size > MOST_BYTES:
      raise UserError(f"{name} unpacks to {size:,} bytes, over {MOST_BYTES:,}; give {WHERE}.")
    with np.load(path, allow_pickle=False) as archive:
      return dict(archive)
  except OSError as e:
    raise UserError(f"{name} cannot be read ({e.strerror or e}); check the path.") from e
  except UserError:
    raise
  except (
    ValueError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    MemoryError,
    NotImplementedError,
  ) as e:
    raise UserError(f"{name} is not a whole .npz of arrays ({e}); download it again.") from e
