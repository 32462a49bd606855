"""Multi-head self-attention over an image's tokens."""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange

from dit_jax.core.errors import UserError
from dit_jax.core.typing import Array, DTypeLike, Float, Int
from dit_jax.kernels.attention import attention


def check_heads(width: int, num_heads: int) -> None:
  """Raises UserError unless the heads share the width evenly."""
  if num_heads < 1 or width % num_heads:
    raise UserError(
      f"{width=} must be a multiple of {num_heads=}; change one of the two in the model's config."
    )


class SelfAttention(nn.Module):
  """Attention among n tokens; with lengths, among the first lengths[i] of image i.

  qk_norm divides every query and key by its root mean square (in float32) and scales it by a
  learned vector, which keeps the scores bounded over long bf16 runs.
  """

  num_heads: int
  width: int
  qk_norm: bool = False
  dtype: DTypeLike = jnp.float32

  def __post_init__(self):
    super().__post_init__()
    check_heads(self.width, self.num_heads)

  @nn.compact
  def __call__(
    self, x: Float[Array, "b n d"], lengths: Int[Array, " b"] | None = None
  ) -> Float[Array, "b n d"]:
    init = nn.initializers.xavier_uniform()
    qkv = nn.Dense(3 * self.width, kernel_init=init, dtype=self.dtype, name="qkv")(x)
    q, k, v = rearrange(qkv, "b n (three h d) -> three b n h d", three=3, h=self.num_heads)
    if self.qk_norm:
      q = nn.RMSNorm(dtype=jnp.float32, name="q_norm")(q).astype(self.dtype)
      k = nn.RMSNorm(dtype=jnp.float32, name="k_norm")(k).astype(self.dtype)
    out = rearrange(attention(q, k, v, lengths), "b n h d -> b n (h d)")
    return nn.Dense(self.width, kernel_init=init, dtype=self.dtype, name="proj")(out)
