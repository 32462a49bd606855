"""The door to attention over whole sequences, dense or with a length for the tail."""

import jax

from dit_jax.core.typing import Array, Float, Int


def attention(
  q: Float[Array, "b n h d"],
  k: Float[Array, "b n h d"],
  v: Float[Array, "b n h d"],
  lengths: Int[Array, " b"] | None = None,
) -> Float[Array, "b n h d"]:
  """softmax(q k^T / sqrt(d)) v per head; the softmax is in float32 whatever the inputs are.

  Args:
    q: queries.
    k: keys.
    v: values.
    lengths: keys at or past an image's length get a finite score that the softmax turns into an
      exact 0. Queries past the length are computed and mean nothing; they are finite, at length 0
      too.
  """
  return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths, implementation="xla")
