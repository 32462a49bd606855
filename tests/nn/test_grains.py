"""Laws of the grain structure: copies are equal, unique codes count once, projection is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import repeat

from dit_jax.core import rng
from dit_jax.nn import grains as structure

FACTORS = [(8,), (8, 16), (4, 8, 16)]


def some_maps(factors, b=3, rows=4):
  return jnp.asarray(np.random.default_rng(0).integers(0, len(factors), (b, rows, rows)))


def codes_are_constant(x, grains, factors):
  """Whether every code's copies are equal, by slicing region after region."""
  p = factors[-1] // factors[0]
  for b, r, c in np.ndindex(grains.shape):
    region = np.asarray(x[b, r * p : (r + 1) * p, c * p : (c + 1) * p])
    s = structure.spans(factors)[int(grains[b, r, c])]
    for i in range(0, p, s):
      for j in range(0, p, s):
        code = region[i : i + s, j : j + s]
        if not np.array_equal(code, np.broadcast_to(code[:1, :1], code.shape)):
          return False
  return True


def test_spans_of_the_paper():
  assert structure.spans((8, 16)) == (2, 1)
  assert structure.spans((8, 16, 32)) == (4, 2, 1)


@pytest.mark.parametrize("factors", FACTORS)
def test_weights_count_every_unique_code_once(factors):
  grains = some_maps(factors)
  per_region = np.asarray([(factors[-1] // factors[0] // s) ** 2 for s in structure.spans(factors)])
  want = per_region[np.asarray(grains)].sum((1, 2))
  got = structure.unique_weights(grains, factors).sum((1, 2))
  np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("factors", FACTORS)
def test_noise_has_the_structure_and_unit_variance(factors):
  grains = some_maps(factors, b=4, rows=16)
  eps = structure.structured_noise(rng.sample_keys(0, jnp.arange(4)), grains, factors, 4)
  assert codes_are_constant(eps, grains, factors)
  weights = structure.unique_weights(grains, factors)[..., None]
  variance = float(jnp.sum(weights * eps**2) / jnp.sum(weights) / 4)
  codes = float(jnp.sum(weights)) * 4
  assert abs(variance - 1) < 5 * np.sqrt(2 / codes)


def test_noise_of_a_region_ignores_the_other_regions():
  factors = (8, 16)
  keys = rng.sample_keys(0, jnp.arange(1))
  a = jnp.zeros((1, 4, 4), jnp.int32).at[0, 1, 2].set(1)
  b = jnp.ones((1, 4, 4), jnp.int32)
  x, y = (structure.structured_noise(keys, g, factors, 4) for g in (a, b))
  np.testing.assert_array_equal(x[0, 2:4, 4:6], y[0, 2:4, 4:6])
  assert not np.array_equal(x[0, :2, :2], y[0, :2, :2])


def test_noise_of_an_image_ignores_the_batch():
  factors, grains = (8, 16), some_maps((8, 16))
  keys = rng.sample_keys(7, jnp.arange(3))
  together = structure.structured_noise(keys, grains, factors, 4)
  alone = structure.structured_noise(keys[2:], grains[2:], factors, 4)
  np.testing.assert_array_equal(together[2:], alone)


@pytest.mark.parametrize("factors", FACTORS)
def test_projection_is_idempotent_and_keeps_the_mean(factors):
  grains = some_maps(factors)
  side = 4 * factors[-1] // factors[0]
  x = jax.random.normal(jax.random.key(1), (3, side, side, 2))
  once = structure.project(x, grains, factors)
  assert codes_are_constant(once, grains, factors)
  np.testing.assert_allclose(structure.project(once, grains, factors), once, atol=1e-6)
  np.testing.assert_allclose(once.mean((1, 2)), x.mean((1, 2)), atol=1e-6)


def test_all_fine_selects_the_finest_and_all_coarse_the_coarsest():
  factors = (8, 16)
  coarse, fine = jnp.ones((1, 4, 4, 2)), jnp.full((1, 8, 8, 2), 2.0)
  pick = lambda g: structure.select([coarse, fine], jnp.full((1, 4, 4), g), factors)
  np.testing.assert_array_equal(pick(1), fine)
  np.testing.assert_array_equal(pick(0), repeat(coarse, "b h w c -> b (h 2) (w 2) c"))


def test_standardize_round_trip_and_moments():
  factors, rng_ = (8, 16), np.random.default_rng(3)
  grains = some_maps(factors, rows=16)
  mean, std = jnp.asarray(rng_.normal(size=(2, 4))), jnp.asarray(rng_.uniform(0.5, 2, (2, 4)))
  mean, std = mean.astype(jnp.float32), std.astype(jnp.float32)
  cells = structure.cell_grains(grains, factors)
  z = mean[cells] + std[cells] * jax.random.normal(jax.random.key(0), (3, 32, 32, 4))
  flat = structure.standardize(z, grains, factors, mean, std)
  for g in range(2):
    assert float(jnp.abs(flat[cells == g].mean(0)).max()) < 0.1
    assert float(jnp.abs(flat[cells == g].std(0) - 1).max()) < 0.1
  back = structure.unstandardize(flat, grains, factors, mean, std)
  np.testing.assert_allclose(back, z, atol=1e-5)
