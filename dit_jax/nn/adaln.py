"""Adaptive layer norm with a zero start, adaLN-Zero (DiT, section 3.2)."""

import flax.linen as nn
import jax.numpy as jnp

from dit_jax.core.typing import Array, DTypeLike, Float
from dit_jax.nn.pack import Pack


def layer_norm(
  x: Float[Array, "b n d"],
  scale: Float[Array, " d"] | None = None,
  bias: Float[Array, " d"] | None = None,
) -> Float[Array, "b n d"]:
  """Layer norm, eps 1e-6; computed in float32, its affine too, returned in the dtype of x."""
  y = x.astype(jnp.float32)
  y = y - y.mean(-1, keepdims=True)
  y = y / jnp.sqrt((y * y).mean(-1, keepdims=True) + 1e-6)
  return (y if scale is None else y * scale + bias).astype(x.dtype)


def modulate(
  x: Float[Array, "b n d"], shift: Float[Array, "b #n d"], scale: Float[Array, "b #n d"]
) -> Float[Array, "b n d"]:
  """x (1 + scale) + shift."""
  return x * (1 + scale) + shift


class LayerNorm(nn.Module):
  """`layer_norm`; with `affine` a learned scale and bias, which start as 1 and 0: as without.

  DiT's norms have none. Fine-tuning adds them, before the modulation (FineDiffusion, arXiv
  2402.18331).
  """

  affine: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    if not self.affine:
      return layer_norm(x)
    scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
    return layer_norm(x, scale, self.param("bias", nn.initializers.zeros, x.shape[-1:]))


class AdaLN(nn.Module):
  """Shifts, scales and gates from a condition; zero at init, so a block starts as the identity.

  They are the same for every token of an image: [b, 1, d], or at each token of a packed batch.
  """

  chunks: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, c: Float[Array, "b d"], pack: Pack | None = None
  ) -> list[Float[Array, "s n d"]]:
    zeros = nn.initializers.zeros
    width = self.chunks * c.shape[-1]
    out = nn.Dense(width, kernel_init=zeros, dtype=self.dtype, name="proj")(nn.silu(c))
    chunks = jnp.split(out, self.chunks, axis=-1)
    return [x[:, None] if pack is None else pack.spread(x) for x in chunks]


class FinalLayer(nn.Module):
  """Modulated layer norm and a linear map, zero at init; the result is float32."""

  out_channels: int
  dtype: DTypeLike = jnp.float32
  affine: bool = False

  @nn.compact
  def __call__(
    self, x: Float[Array, "s n d"], c: Float[Array, "b d"], pack: Pack | None = None
  ) -> Float[Array, "s n o"]:
    shift, scale = AdaLN(2, dtype=self.dtype, name="adaln")(c, pack)
    x = modulate(LayerNorm(self.affine, name="norm")(x), shift, scale)
    zeros = nn.initializers.zeros
    x = nn.Dense(self.out_channels, kernel_init=zeros, dtype=self.dtype, name="linear")(x)
    return x.astype(jnp.float32)
