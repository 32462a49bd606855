"""Class labels as vectors, with one more row for "no class"."""

import flax.linen as nn
import jax.numpy as jnp

from dit_jax.core.typing import Array, DTypeLike, Float, Int


class LabelEmbedder(nn.Module):
  """num_classes + 1 learned rows; row num_classes is the null class of classifier-free guidance.

  An unconditional model has num_classes = 0: the null row alone, its one learned vector. Who drops
  labels puts num_classes in their place before the call.
  """

  num_classes: int
  width: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, label: Int[Array, " b"]) -> Float[Array, "b d"]:
    init = nn.initializers.normal(0.02)
    embed = nn.Embed(
      self.num_classes + 1, self.width, embedding_init=init, dtype=self.dtype, name="table"
    )
    return embed(label)
