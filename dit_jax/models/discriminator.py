"""PatchGAN: judges overlapping patches instead of the whole image (pix2pix, section 3.2.2)."""

import flax.linen as nn
import jax.numpy as jnp

from dit_jax.core.typing import Array, DTypeLike, Float
from dit_jax.nn import conv

SLOPE = 0.2


class PatchGAN(nn.Module):
  """Strided 4 x 4 convolutions, then one logit a patch; 70 pixels a patch at 3 layers.

  GroupNorm where pix2pix has batch norm: statistics of a batch do not shard. Padding is "SAME"
  throughout, so that images of any size have at least one patch.
  """

  filters: int = 64
  layers: int = 3
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b H W 3"]) -> Float[Array, "b h w"]:
    x = self._conv(self.filters, 2, "conv_0")(x)
    x = nn.leaky_relu(x, SLOPE)
    for i in range(1, self.layers + 1):
      features = self.filters * min(2**i, 8)
      x = self._conv(features, 2 if i < self.layers else 1, f"conv_{i}", use_bias=False)(x)
      x = nn.leaky_relu(conv.group_norm(features, f"norm_{i}")(x), SLOPE)
    logits = self._conv(1, 1, "conv_out")(x)[..., 0]
    return logits.astype(jnp.float32)

  def _conv(self, features: int, strides: int, name: str, use_bias: bool = True) -> nn.Conv:
    init = nn.initializers.normal(0.02)
    options = dict(use_bias=use_bias, kernel_init=init, dtype=self.dtype, name=name)
    return nn.Conv(features, (4, 4), strides=strides, padding="SAME", **options)


def hinge_real(logits: Float[Array, "b h w"]) -> Float[Array, " b"]:
  """The critic's loss on real images: mean over patches of max(0, 1 - D)."""
  return jnp.mean(nn.relu(1 - logits), axis=(1, 2))


def hinge_fake(logits: Float[Array, "b h w"]) -> Float[Array, " b"]:
  """The critic's loss on reconstructions: mean over patches of max(0, 1 + D)."""
  return jnp.mean(nn.relu(1 + logits), axis=(1, 2))


def generator_loss(logits: Float[Array, "b h w"]) -> Float[Array, " b"]:
  """The decoder's loss: minus the mean over patches of D."""
  return -jnp.mean(logits, axis=(1, 2))
