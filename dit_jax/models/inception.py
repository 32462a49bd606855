"""The network of the FID: Inception v3 as TensorFlow's graph of 2015-12-05 has it, 1008 outputs.

It differs from the Inception v3 of the libraries: means of 3 x 3 do not count what is padded, the
last block takes a maximum in place of a mean, and pictures come to 299 px by TensorFlow 1's
bilinear kernel. Blocks and layers have the names of the ports to PyTorch.

sFID takes the first 7 channels of the graph's `mixed_6/conv:0`. Certain: the graph counts mixed,
mixed_1, .. from Mixed_5b on, so mixed_6 is Mixed_6d, and `mixed_6/conv` is its branch of one 1 x 1
convolution. In the graph's list of nodes that name comes after `mixed_6/conv/Conv2D`, `/batchnorm`,
`/CheckNumerics` and `/control_dependency`: it is the layer's result, not its product. Our reading:
that last node is the ReLU, as no other node could be. The graph itself has not been run beside it.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.traverse_util import unflatten_dict

from dit_jax.core import tree as trees
from dit_jax.core.typing import Array, Float
from dit_jax.weights import inception as table

SIZE = 299  # pixels a side
OUTPUTS = 1008
SPATIAL_CHANNELS = 7
EPSILON = 1e-3


class Outputs(NamedTuple):
  """What the metrics read.

  Attributes:
    pool: mean over positions of the last block.
    spatial: of sFID, see above.
    logits: of the 1008 outputs, without their bias, as the Inception Score has them.
  """

  pool: Float[Array, "b 2048"]
  spatial: Float[Array, "b 2023"]
  logits: Float[Array, "b 1008"]


class Conv(nn.Module):
  """relu(norm(conv(x))), the norm by running statistics; padded at stride 1 unless `valid`.

  A convolution that is not padded is one that is, cut: XLA's CPU convolutions take 2 to 5 times as
  long without padding (jax 0.10.2, 2026-11-29), and 3 to 5 % more positions cost others little.
  """

  features: int
  kernel: tuple[int, int] = (1, 1)
  stride: int = 1
  valid: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _h _w d"]:
    init, shape = nn.initializers, (self.features,)
    kernel = self.param("kernel", init.he_normal(), (*self.kernel, x.shape[-1], self.features))
    scale, var = (self.param(name, init.ones, shape) for name in ("scale", "var"))
    bias, mean = (self.param(name, init.zeros, shape) for name in ("bias", "mean"))
    scale = scale * jax.lax.rsqrt(var + EPSILON)  # goes into the kernel: a pass less
    x = jax.lax.conv_general_dilated(
      x,
      kernel * scale,
      (self.stride,) * 2,
      "VALID" if self.stride > 1 else "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    if self.valid and self.stride == 1:
      rows, columns = (n // 2 for n in self.kernel)
      x = x[:, rows : x.shape[1] - rows, columns : x.shape[2] - columns]
    return nn.relu(x + (bias - mean * scale))


class BlockA(nn.Module):
  """35 x 35 positions: 1 x 1, 5 x 5, twice 3 x 3, a mean."""

  pool_features: int

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
    one = Conv(64, name="branch1x1")(x)
    five = _chain("branch5x5", x, (48, 1, 1), (64, 5, 5))
    three = _chain("branch3x3dbl", x, (64, 1, 1), (96, 3, 3), (96, 3, 3))
    pool = Conv(self.pool_features, name="branch_pool")(mean_3x3(x))
    return jnp.concatenate([one, five, three, pool], -1)


class BlockB(nn.Module):
  """To 17 x 17 positions."""

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _h _w d"]:
    three = Conv(384, (3, 3), 2, name="branch3x3")(x)
    twice = _chain("branch3x3dbl", x, (64, 1, 1), (96, 3, 3), (96, 3, 3, 2))
    return jnp.concatenate([three, twice, nn.max_pool(x, (3, 3), (2, 2))], -1)


class BlockC(nn.Module):
  """17 x 17 positions: 1 x 1, 7 x 7 in two parts, twice that, a mean."""

  features: int

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
    c = self.features
    one = Conv(192, name="branch1x1")(x)
    seven = _chain("branch7x7", x, (c, 1, 1), (c, 1, 7), (192, 7, 1))
    twice = ((c, 1, 1), (c, 7, 1), (c, 1, 7), (c, 7, 1), (192, 1, 7))
    twice = _chain("branch7x7dbl", x, *twice)
    pool = Conv(192, name="branch_pool")(mean_3x3(x))
    return jnp.concatenate([one, seven, twice, pool], -1)


class BlockD(nn.Module):
  """To 8 x 8 positions."""

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _h _w d"]:
    three = _chain("branch3x3", x, (192, 1, 1), (320, 3, 3, 2))
    seven = _chain("branch7x7x3", x, (192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3, 2))
    return jnp.concatenate([three, seven, nn.max_pool(x, (3, 3), (2, 2))], -1)


class BlockE(nn.Module):
  """8 x 8 positions; the branches fork into a row and a column.

  Attributes:
    maximum: pools by it in place of the mean.
  """

  maximum: bool

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
    one = Conv(320, name="branch1x1")(x)
    three = _fork("branch3x3_2", _chain("branch3x3", x, (384, 1, 1)))
    twice = _fork("branch3x3dbl_3", _chain("branch3x3dbl", x, (448, 1, 1), (384, 3, 3)))
    pooled = nn.max_pool(x, (3, 3), padding="SAME") if self.maximum else mean_3x3(x)
    pool = Conv(192, name="branch_pool")(pooled)
    return jnp.concatenate([one, *three, *twice, pool], -1)


class InceptionV3(nn.Module):
  """The whole network, in float32."""

  @nn.compact
  def __call__(self, x: Float[Array, "b h w 3"]) -> Outputs:
    """Outputs of pictures that `prepare` made."""
    x = Conv(32, (3, 3), 2, name="Conv2d_1a_3x3")(x)
    x = Conv(32, (3, 3), valid=True, name="Conv2d_2a_3x3")(x)
    x = Conv(64, (3, 3), name="Conv2d_2b_3x3")(x)
    x = nn.max_pool(x, (3, 3), (2, 2))
    x = Conv(80, name="Conv2d_3b_1x1")(x)
    x = Conv(192, (3, 3), valid=True, name="Conv2d_4a_3x3")(x)
    x = nn.max_pool(x, (3, 3), (2, 2))
    for letter, features in zip("bcd", (32, 64, 64), strict=True):
      x = BlockA(features, name=f"Mixed_5{letter}")(x)
    x = BlockB(name="Mixed_6a")(x)
    for letter, features in zip("bcde", (128, 160, 160, 192), strict=True):
      x = BlockC(features, name=f"Mixed_6{letter}")(x)
      if letter == "d":  # whose first channels are those of branch1x1
        spatial = rearrange(x[..., :SPATIAL_CHANNELS], "b h w c -> b (h w c)")
    x = BlockD(name="Mixed_7a")(x)
    x = BlockE(maximum=False, name="Mixed_7b")(x)
    x = BlockE(maximum=True, name="Mixed_7c")(x)
    pool = jnp.mean(x, axis=(1, 2))
    return Outputs(pool, spatial, nn.Dense(OUTPUTS, use_bias=False, name="fc")(pool))


def prepare(images) -> Float[Array, "b 299 299 3"]:
  """Images [b, h, w, 3] of 0 to 255, uint8 or float, as the graph takes them: 299 px, in [-1, 1).

  The resize is TensorFlow 1's bilinear kernel without half-pixel centres: place i lies at i h / 299
  in the picture, between two pixels, also where many pixels fall between two places. So nothing is
  smoothed, and what is enlarged ends in copies of its last pixels.
  """
  x = images.astype(jnp.float32)
  for axis in (2, 1):  # first along rows, as there
    low, high, weight = _places(x.shape[axis])
    weight = weight.reshape((-1,) + (1,) * (3 - axis))
    a, b = jnp.take(x, low, axis), jnp.take(x, high, axis)
    x = a + (b - a) * weight
  return (x - 128) / 128


def mean_3x3(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
  """Means of 3 x 3 positions, at the borders of those that there are."""
  there = np.outer(*(np.convolve(np.ones(n), np.ones(3), "same") for n in x.shape[1:3]))
  return nn.avg_pool(x, (3, 3), padding="SAME") * (9 / there[..., None]).astype(np.float32)


def load_weights(path) -> dict:
  """Parameters of `InceptionV3` from a file that `weights.inception` describes.

  Raises:
    UserError: there is no such file, it is damaged, or not of this network.
  """
  blank = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
  shapes = jax.eval_shape(InceptionV3().init, jax.random.key(0), blank)["params"]
  return unflatten_dict(table.load(path, trees.flatten(shapes)), sep="/")


def _chain(name: str, x, *layers: tuple) -> Float[Array, "b _h _w d"]:
  """Layers NAME_1, NAME_2, .., each (features, rows, columns) of its kernel, then the stride."""
  for i, (features, rows, columns, *stride) in enumerate(layers, 1):
    x = Conv(features, (rows, columns), *stride, name=f"{name}_{i}")(x)
  return x


def _fork(name: str, x) -> list[Float[Array, "b h w 384"]]:
  ends = {"a": (1, 3), "b": (3, 1)}
  return [Conv(384, kernel, name=f"{name}{end}")(x) for end, kernel in ends.items()]


def _places(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """For each of the 299 places: the pixels around it, and the weight of the latter."""
  at = np.arange(SIZE, dtype=np.float32) * (np.float32(size) / np.float32(SIZE))
  low = at.astype(np.int32)
  return low, np.minimum(low + 1, size - 1), at - low
