"""The convolutional blocks of an autoencoder: residual, attention, down, up (LDM, Appendix E).

Names and padding follow the public autoencoders of latent diffusion, so weights can be renamed.
Norms and the softmax run in f32 whatever `dtype` is.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from dit_jax.core.typing import Array, DTypeLike, Float

GROUPS = 32
MIN_GROUP = 4  # 128 / 32: a group of one channel would erase that channel's mean, hence its colour


def num_groups(channels: int) -> int:
  """32, or for narrow layers the largest divisor that leaves 4 channels a group (at least 1)."""
  most = max(1, min(GROUPS, channels // MIN_GROUP))
  return max(n for n in range(1, most + 1) if channels % n == 0)


def group_norm(channels: int, name: str | None = None) -> nn.GroupNorm:
  """GroupNorm over `num_groups(channels)` groups, in f32."""
  return nn.GroupNorm(num_groups(channels), epsilon=1e-6, dtype=jnp.float32, name=name)


def conv3(features: int, dtype: DTypeLike, name: str | None = None) -> nn.Conv:
  """A 3 x 3 convolution that keeps the size."""
  return nn.Conv(features, (3, 3), padding=1, dtype=dtype, name=name)


class ResBlock(nn.Module):
  """x + conv(swish(norm(conv(swish(norm(x)))))), with a 1 x 1 shortcut where the width changes."""

  features: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
    h = nn.swish(group_norm(x.shape[-1], "norm1")(x))
    h = conv3(self.features, self.dtype, "conv1")(h)
    h = nn.swish(group_norm(self.features, "norm2")(h))
    h = conv3(self.features, self.dtype, "conv2")(h)
    if x.shape[-1] != self.features:
      x = nn.Conv(self.features, (1, 1), dtype=self.dtype, name="shortcut")(x)
    return x + h


class AttnBlock(nn.Module):
  """x + single-head self-attention over all positions."""

  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    c = x.shape[-1]
    y = rearrange(group_norm(c, "norm")(x), "b h w c -> b (h w) c")
    q, k, v = (nn.Dense(c, dtype=self.dtype, name=name)(y) for name in "qkv")
    scores = jnp.einsum("bnc,bmc->bnm", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores * c**-0.5, axis=-1).astype(v.dtype)
    y = nn.Dense(c, dtype=self.dtype, name="proj_out")(jnp.einsum("bnm,bmc->bnc", weights, v))
    return x + rearrange(y, "b (h w) c -> b h w c", h=x.shape[1])


class MidBlock(nn.Module):
  """ResBlock, AttnBlock, ResBlock at one width; `attention=False` leaves the middle one out."""

  attention: bool = True
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    x = ResBlock(x.shape[-1], self.dtype, name="block_1")(x)
    if self.attention:
      x = AttnBlock(self.dtype, name="attn_1")(x)
    return ResBlock(x.shape[-1], self.dtype, name="block_2")(x)


class Down(nn.Module):
  """Half the size by a strided 3 x 3 convolution, padded below and on the right only."""

  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _h _w c"]:
    pad = ((0, 1), (0, 1))
    conv = nn.Conv(x.shape[-1], (3, 3), strides=2, padding=pad, dtype=self.dtype, name="conv")
    return conv(x)


class Up(nn.Module):
  """Twice the size by nearest neighbours, then a 3 x 3 convolution."""

  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _h _w c"]:
    x = repeat(x, "b h w c -> b (h s) (w t) c", s=2, t=2)
    return conv3(x.shape[-1], self.dtype, "conv")(x)


def space_to_depth(x: Float[Array, "b h w c"], s: int) -> Float[Array, "b _h _w _c"]:
  """Blocks of s x s pixels into channels, raster order inside a block."""
  return rearrange(x, "b (h s) (w t) c -> b h w (s t c)", s=s, t=s)


def depth_to_space(x: Float[Array, "b h w c"], s: int) -> Float[Array, "b _h _w _c"]:
  """The inverse of `space_to_depth`."""
  return rearrange(x, "b h w (s t c) -> b (h s) (w t) c", s=s, t=s)
