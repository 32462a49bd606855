"""Pooled features of pictures: what the distances between sets are measured in."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.core import tree as trees
from dit_jax.core.errors import UserError
from dit_jax.models import lpips
from dit_jax.sampling import generate


@dataclasses.dataclass(frozen=True)
class Features:
  """Pooled features of a set, and what made them.

  Attributes:
    values: float32 [n, d].
    trunk: the network's name.
    weights: hash of the trunk's parameters.
    image_size: pixels a side of the images.
    eval_size: pixels a side that the trunk saw.
  """

  values: np.ndarray
  trunk: str
  weights: str
  image_size: int
  eval_size: int
  spatial: np.ndarray | None = None
  logits: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.values)

  def take(self, rows: np.ndarray) -> "Features":
    """The features of some of the images."""
    return dataclasses.replace(self, values=self.values[rows])


class Extractor:
  """Features of uint8 images by a trunk of LPIPS, in float32 on every device.

  Args:
    trunk: "vgg16" (512 features) or "alexnet" (256).
    eval_size: pixels a side to resize to first (bicubic, antialiased); 0 takes images as they are.
    batch: images a call of the compiled trunk; changes no feature.
  """

  def __init__(self, trunk: str = "vgg16", eval_size: int = 0, batch: int = 32):
    self.trunk, self.eval_size, self.batch = trunk, eval_size, batch
    model, params = lpips.LPIPS(trunk), lpips.load_weights(trunk)
    self.weights = trees.content_hash(params)
    self._params = jax.device_put(params)

    @jax.jit
    def forward(params, images):
      x = generate.to_float(images)
      if eval_size not in (0, x.shape[1]):
        shape = (len(x), eval_size, eval_size, 3)
        x = jnp.clip(jax.image.resize(x, shape, "cubic"), -1, 1)  # as a stored picture would be
      with jax.default_matmul_precision("highest"):  # TPUs and GPUs round inputs otherwise
        return model.apply({"params": params}, x, method="features")

    self._forward = forward

  def __call__(self, images: np.ndarray) -> Features:
    """Features of uint8 images [n, s, s, 3].

    Raises:
      UserError: the array is something else, or the images are too small for the trunk.
    """
    square = images.ndim == 4 and images.shape[1] == images.shape[2] and images.shape[3] == 3
    if images.dtype != np.uint8 or not square or not len(images):
      raise UserError(
        f"scoring takes uint8 images [n, s, s, 3], this is {images.dtype} {list(images.shape)}; "
        "crop to squares and convert first."
      )
    size = self.eval_size or images.shape[1]
    if size < lpips.SMALLEST[self.trunk]:
      raise UserError(
        f"{self.trunk} needs {lpips.SMALLEST[self.trunk]} px or more, not {size}; "
        "score larger images, or ask for a resize with eval_size=64."
      )
    values = in_batches(lambda x: self._forward(self._params, x), images, size=self.batch)
    return Features(values, self.trunk, self.weights, images.shape[1], size)


def in_batches(fn, *arrays: np.ndarray, size: int = 32) -> np.ndarray:
  """fn over rows, `size` at a time; the last batch is padded, so that fn compiles once."""
  total, out = len(arrays[0]), []
  for start in range(0, total, size):
    rows = np.minimum(np.arange(start, start + size), total - 1)
    out.append(np.asarray(fn(*(a[rows] for a in arrays)))[: total - start])
  return np.concatenate(out)
