"""The hierarchical encoder of the dynamic VAE: one grid of moments a grain (D2iT, section 3)."""

import flax.linen as nn
import jax.numpy as jnp

from dit_jax.core.typing import Array, DTypeLike, Float
from dit_jax.nn import conv


class Head(nn.Module):
  """One grain's own mid block and output: features -> (mean, logvar), 2 n_z channels, in f32."""

  z_channels: int
  attention: bool = True
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
    x = conv.MidBlock(self.attention, self.dtype, name="mid")(x)
    x = nn.swish(conv.group_norm(x.shape[-1], "norm_out")(x))
    return conv.conv3(2 * self.z_channels, self.dtype, "conv_out")(x).astype(jnp.float32)


class Encoder(nn.Module):
  """Levels of residual blocks, each half the size of the one before; a head where a grain lives.

  Serial: a coarser grain continues from the features that the finer grain's head reads.

  Attributes:
    factors: f_1 < ... < f_k, powers of two.
    z_channels: n_z.
    width: channels at multiplier 1.
    mults: multiplier of the level of factor 2^i, i = 0 .. log2 f_k.
    res_blocks: residual blocks a level.
    attention: self-attention at the levels of factor >= f_1 and in the heads.
    stem: pixels a side folded into channels at the input; levels of factor < stem vanish.
    dtype: of the arithmetic.
  """

  factors: tuple[int, ...]
  z_channels: int
  width: int
  mults: tuple[int, ...]
  res_blocks: int = 2
  attention: bool = True
  stem: int = 1
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b H W 3"]) -> list[Float[Array, "b _h _w d"]]:
    """Moments by grain, coarsest first: grain g is [b, H / f_{k-g}, W / f_{k-g}, 2 n_z]."""
    levels = [(2**i, self.width * m) for i, m in enumerate(self.mults) if 2**i >= self.stem]
    h = conv.space_to_depth(x, self.stem)
    h = conv.conv3(levels[0][1], self.dtype, "conv_in")(h)
    moments = []
    for factor, features in levels:
      if factor > self.stem:
        h = conv.Down(self.dtype, name=f"down_{factor}")(h)
      for i in range(self.res_blocks):
        h = conv.ResBlock(features, self.dtype, name=f"level_{factor}_res_{i}")(h)
        if self.attention and factor >= self.factors[0]:
          h = conv.AttnBlock(self.dtype, name=f"level_{factor}_attn_{i}")(h)
      if factor in self.factors:
        head = Head(self.z_channels, self.attention, self.dtype, name=f"head_{factor}")
        moments.append(head(h))
    return moments[::-1]
