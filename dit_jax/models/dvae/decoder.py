"""The decoder of the dynamic VAE: from the dense latent grid to pixels (D2iT, section 3)."""

import flax.linen as nn
import jax.numpy as jnp

from dit_jax.core.typing import Array, DTypeLike, Float
from dit_jax.nn import conv, fourier


class Trunk(nn.Module):
  """Everything before the last convolution: positions, mid block, levels, norm and swish.

  The fields are those of `Decoder`.
  """

  factor: int
  width: int
  mults: tuple[int, ...]
  res_blocks: int
  attention: bool
  stem: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, z: Float[Array, "b h w c"]) -> Float[Array, "b _H _W d"]:
    levels = [(2**i, self.width * m) for i, m in enumerate(self.mults) if 2**i >= self.stem]
    x = fourier.GridPosition(self.dtype, name="position")(z)
    x = conv.conv3(levels[-1][1], self.dtype, "conv_in")(x)
    x = conv.MidBlock(self.attention, self.dtype, name="mid")(x)
    for factor, features in reversed(levels):
      for i in range(self.res_blocks):
        x = conv.ResBlock(features, self.dtype, name=f"level_{factor}_res_{i}")(x)
        if self.attention and factor >= self.factor:
          x = conv.AttnBlock(self.dtype, name=f"level_{factor}_attn_{i}")(x)
      if factor > self.stem:
        x = conv.Up(self.dtype, name=f"up_{factor}")(x)
    return nn.swish(conv.group_norm(x.shape[-1], "norm_out")(x))


class Decoder(nn.Module):
  """Latent to image in [-1, 1] (not clipped).

  The last convolution is a step of its own, `head`, at the path conv_out: the adaptive weight of
  the adversarial loss needs gradients with respect to its kernel and nothing below.

  Attributes:
    factor: f_1, pixels a side of a latent cell.
    width: channels at multiplier 1.
    mults: multiplier of the level of factor 2^i, i = 0 .. log2 f_1.
    res_blocks: residual blocks a level.
    attention: self-attention at the level of factor f_1 and in the mid block.
    stem: pixels a side unfolded from channels at the output; levels of factor < stem vanish.
    dtype: of the arithmetic.
  """

  factor: int
  width: int
  mults: tuple[int, ...]
  res_blocks: int = 3
  attention: bool = True
  stem: int = 1
  dtype: DTypeLike = jnp.float32

  def setup(self):
    shape = self.factor, self.width, self.mults, self.res_blocks
    self.trunk = Trunk(*shape, self.attention, self.stem, self.dtype)
    self.conv_out = conv.conv3(3 * self.stem**2, self.dtype)

  def features(self, z: Float[Array, "b h w c"]) -> Float[Array, "b _H _W d"]:
    """What the last convolution reads."""
    return self.trunk(z)

  def head(self, features: Float[Array, "b h w d"]) -> Float[Array, "b _H _W 3"]:
    """The last convolution, in f32 at the output."""
    return conv.depth_to_space(self.conv_out(features).astype(jnp.float32), self.stem)

  def __call__(self, z: Float[Array, "b h w c"]) -> Float[Array, "b _H _W 3"]:
    return self.head(self.features(z))
