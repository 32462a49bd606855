"""The feed-forward half of a transformer block."""

import flax.linen as nn
import jax.numpy as jnp

from dit_jax.core.typing import Array, DTypeLike, Float


class MLP(nn.Module):
  """Linear, GELU (tanh form), linear; the hidden layer is `ratio` times as wide."""

  ratio: int = 4
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    width, init = x.shape[-1], nn.initializers.xavier_uniform()
    h = nn.Dense(self.ratio * width, kernel_init=init, dtype=self.dtype, name="in")(x)
    h = nn.gelu(h, approximate=True)
    return nn.Dense(width, kernel_init=init, dtype=self.dtype, name="out")(h)
