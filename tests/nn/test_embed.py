"""Embeddings against their formulas, cell by cell."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_dit as ref
import pytest

from dit_jax.nn import embed


def test_timestep_embedder_matches_numpy():
  model = embed.TimestepEmbedder(12)
  t = jnp.array([0.0, 3.5, 999.0])
  params = ref.random_params(model.init(jax.random.key(0), t))
  p = ref.as_float64(params["params"])
  fake = {"time": p, "label": {"table": {"embedding": np.zeros((1, 12))}}}
  want = np.stack([ref.condition(fake, float(x), 0) for x in t])
  np.testing.assert_allclose(model.apply(params, t), want, rtol=1e-3, atol=2e-3)
  other = embed.TimestepEmbedder(12, max_period=5_000.0).apply(params, t)
  assert np.abs(other - want).max() > 0.1


def test_frequencies_fall_evenly_in_the_exponent():
  """By a step of the period's logarithm over half the channels; diffusers' are another period's."""
  for period, step in ((10_000.0, 128), (10_000.0 ** (128 / 127), 127)):
    want = 10_000.0 ** (-np.arange(128) / step)
    got = embed.sinusoids(jnp.array([0.1]), 256, period)[0]
    np.testing.assert_allclose(got[:128], np.cos(0.1 * want), atol=1e-6)
    np.testing.assert_allclose(got[128:], np.sin(0.1 * want), rtol=2e-6)


@pytest.mark.parametrize("width", [8, 12])
def test_sincos_table_encodes_column_then_row(width):
  table = embed.sincos_table(3, 5, width).reshape(3, 5, width)
  q = width // 4
  for i, j, m in np.ndindex(3, 5, q):
    w = 10_000 ** (-m / q)
    want = [np.sin(j * w), np.cos(j * w), np.sin(i * w), np.cos(i * w)]
    np.testing.assert_allclose(table[i, j, m::q], want, atol=1e-6)


def test_sincos_rows_differ_in_any_width():
  for width in (6, 7, 9):
    table = embed.sincos_table(4, 4, width)
    assert table.shape == (16, width)
    assert len(np.unique(table.round(5), axis=0)) == 16


def test_position_table_starts_as_sincos_and_learns():
  model = embed.PositionTable(2, 3, 8)
  params = model.init(jax.random.key(0))
  np.testing.assert_array_equal(model.apply(params), embed.sincos_table(2, 3, 8))
  grad = jax.grad(lambda p: model.apply(p).sum())(params)
  np.testing.assert_array_equal(grad["params"]["table"], np.ones((6, 8)))


def test_patch_embed_matches_slicing():
  model = embed.PatchEmbed(2, 5)
  z = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
  params = ref.random_params(model.init(jax.random.key(0), z))
  p = {"patch_embed": ref.as_float64(params["params"])}
  want = np.stack([ref.patch_tokens(p, np.asarray(x, np.float64), 2) for x in z])
  np.testing.assert_allclose(model.apply(params, z), want, atol=1e-5)
