"""Attention against numpy; lengths cut keys off exactly and are safe at 0."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_dit as ref

from dit_jax.kernels.attention import attention

B, N, H, D = 3, 7, 2, 4
LENGTHS = jnp.array([7, 3, 0])


def inputs(dtype=jnp.float32, scale=1.0):
  shape = (3, B, N, H, D)
  return list((jax.random.normal(jax.random.key(0), shape) * scale).astype(dtype))


def test_matches_numpy_and_ends_at_the_length():
  q, k, v = inputs()
  got = attention(q, k, v, LENGTHS)
  for b, n in enumerate(LENGTHS[:2]):
    for h in range(H):
      want = ref.attention(*(np.asarray(x[b, :, h], np.float64) for x in (q, k[:, :n], v[:, :n])))
      np.testing.assert_allclose(got[b, :, h], want, atol=1e-5)


def test_full_length_is_no_length():
  q, k, v = inputs()
  np.testing.assert_array_equal(attention(q, k, v, jnp.full(B, N)), attention(q, k, v))


def test_what_lies_past_the_length_changes_no_bit_of_value_or_gradient():
  q, k, v = inputs()
  past = (jnp.arange(N) >= LENGTHS[:, None])[..., None, None]
  other = [jnp.where(past, 100 * x[::-1] + 3, x) for x in (q, k, v)]
  kept = lambda x: jnp.where(past, 0, x)
  loss = lambda q, k, v: jnp.sum(jnp.sin(kept(attention(q, k, v, LENGTHS))))
  for f in (lambda *a: kept(attention(*a, LENGTHS)), jax.grad(loss, argnums=(0, 1, 2))):
    for a, b in zip(jax.tree.leaves(f(q, k, v)), jax.tree.leaves(f(*other)), strict=True):
      np.testing.assert_array_equal(a, b)


def test_length_zero_is_finite_in_value_and_gradient():
  f = lambda *a: jnp.sum(attention(*a, jnp.zeros(B, jnp.int32)) ** 2)
  value, grads = jax.value_and_grad(f, argnums=(0, 1, 2))(*inputs())
  assert all(bool(jnp.isfinite(x).all()) for x in (value, *grads))


def test_bf16_inputs_have_float32_scores():
  """Two scores near 45 and 0.07 apart: in bf16, with steps of 0.25 there, they would be equal."""
  q = jnp.ones((1, 2, 1, 2), jnp.bfloat16)
  k = jnp.array([[64, 0], [64, 0.1]], jnp.bfloat16)[None, :, None]
  v = jnp.array([[0, 0], [1, 1]], jnp.bfloat16)[None, :, None]
  got = attention(q, k, v)
  want = ref.attention(*(np.float64(x[0, :, 0]) for x in (q, k, v)))
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float64(got[0, :, 0]), want, atol=3e-3)
  assert want.min() > 0.51
