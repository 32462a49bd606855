"""Layer norm, modulation and the zero start."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_dit as ref
import pytest

from dit_jax.nn import adaln

X = jax.random.normal(jax.random.key(0), (2, 5, 8)) * 3 + 7
C = jax.random.normal(jax.random.key(1), (2, 8))


def test_layer_norm_standardises_and_forgets_scale_and_shift():
  y = adaln.layer_norm(X)
  np.testing.assert_allclose(y.mean(-1), 0, atol=1e-5)
  np.testing.assert_allclose(y.std(-1), 1, atol=1e-4)
  np.testing.assert_allclose(adaln.layer_norm(40 * X - 9), y, atol=1e-4)


def test_layer_norm_of_zeros_has_a_finite_gradient():
  f = lambda x: jnp.sum(jnp.sin(adaln.layer_norm(x)) + adaln.layer_norm(x))
  assert bool(jnp.isfinite(jax.grad(f)(jnp.zeros((1, 2, 8)))).all())


def test_layer_norm_of_bf16_is_computed_in_float32():
  """Around 1000, bf16 has steps of 4: a bf16 mean of these would be off by most of their spread."""
  x = jnp.array([1000.0, 1004.0, 1008.0, 1012.0], jnp.bfloat16)[None, None]
  y = adaln.layer_norm(x)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float32(y)[0, 0], ref.norm(np.float64(x)[0, 0]), rtol=4e-3)


def test_adaln_starts_at_zero_and_modulating_by_zero_is_the_identity():
  layer = adaln.AdaLN(3)
  chunks = layer.apply(layer.init(jax.random.key(0), C), C)
  assert [c.shape for c in chunks] == [(2, 1, 8)] * 3
  assert not any(bool(c.any()) for c in chunks)
  np.testing.assert_array_equal(adaln.modulate(X, chunks[0], chunks[1]), X)


@pytest.mark.parametrize(("dtype", "tol"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.2)])
def test_final_layer_is_zero_at_init_and_matches_numpy(dtype, tol):
  layer = adaln.FinalLayer(3, dtype)
  params = layer.init(jax.random.key(0), X, C)
  assert not layer.apply(params, X, C).any()
  params = ref.random_params(params)
  got = layer.apply(params, X.astype(dtype), C.astype(dtype))
  p = ref.as_float64(params["params"])
  want = np.stack([ref.final(p, np.float64(x), np.float64(c)) for x, c in zip(X, C, strict=True)])
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, want, atol=tol)
