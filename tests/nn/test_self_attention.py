"""Self-attention against numpy, with and without normed queries and keys."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_dit as ref
import pytest

from dit_jax.core.errors import UserError
from dit_jax.nn.attention import SelfAttention, check_heads

X = jax.random.normal(jax.random.key(0), (3, 6, 8))
LENGTHS = jnp.array([6, 2, 5])


@pytest.mark.parametrize("qk_norm", [False, True])
def test_matches_numpy_with_lengths(qk_norm):
  layer = SelfAttention(2, 8, qk_norm)
  params = ref.random_params(layer.init(jax.random.key(0), X))
  got, p = layer.apply(params, X, LENGTHS), ref.as_float64(params["params"])
  for b, n in enumerate(LENGTHS):
    want = ref.self_attention(p, np.float64(X[b, :n]), 2)
    np.testing.assert_allclose(got[b, :n], want, atol=2e-5)


def test_is_equivariant_to_the_order_of_tokens():
  layer = SelfAttention(2, 8)
  params = ref.random_params(layer.init(jax.random.key(0), X))
  order = jnp.array([3, 0, 5, 1, 4, 2])
  got = layer.apply(params, X[:, order])
  np.testing.assert_allclose(got, layer.apply(params, X)[:, order], atol=1e-5)


def test_qk_norm_bounds_the_scores():
  """Queries and keys a thousand times larger give the same attention."""
  layer = SelfAttention(2, 8, qk_norm=True)
  params = layer.init(jax.random.key(0), X)
  large = jax.tree.map(lambda x: x, params)
  kernel = params["params"]["qkv"]["kernel"]
  large["params"]["qkv"]["kernel"] = kernel.at[:, :16].multiply(1000)
  np.testing.assert_allclose(layer.apply(large, X), layer.apply(params, X), atol=1e-4)


@pytest.mark.parametrize("heads", [0, 3, 16])
def test_heads_that_do_not_share_the_width_are_refused_by_both_numbers(heads):
  with pytest.raises(UserError, match=rf"width=8 .*num_heads={heads}"):
    SelfAttention(heads, 8)
  check_heads(1152, 16)
