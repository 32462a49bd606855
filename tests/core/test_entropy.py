"""Entropies equal formula (1) transcribed; thresholds never cut an atom and meet their shares."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_jax.core import entropy
from dit_jax.core.errors import UserError


def transcription(image, region):
  """Equation (1) as it stands: every pixel against every bin, float64."""
  r, g, b = (image[..., c].astype(np.float64) / 255 for c in range(3))
  grey = 0.2989 * r + 0.5870 * g + 0.1140 * b
  bins = np.linspace(0, 1, 256)
  out = np.empty((image.shape[0] // region, image.shape[1] // region))
  for i, j in np.ndindex(out.shape):
    x = grey[i * region : (i + 1) * region, j * region : (j + 1) * region].ravel()
    p = np.exp(-0.5 * ((x[:, None] - bins) / 0.01) ** 2).mean(0)
    p = p / p.sum()
    out[i, j] = -sum(v * np.log(v) for v in p if v > 0)
  return out


def photo(height, width, seed=0):
  """Smooth colours plus a little grain on one half."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:height, :width]
  waves = [np.sin(x / (5 + c) + c) * np.cos(y / (9 - c)) for c in range(3)]
  image = 127 + 100 * np.stack(waves, -1)
  image[:, : width // 2] += rng.normal(0, 20, (height, width // 2, 3))
  return image.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("shape", "region"), [((32, 48), 16), ((64, 32), 8), ((32, 32), 32)])
def test_equals_the_formula(shape, region):
  image = photo(*shape)
  got = entropy.region_entropy(image, region)
  assert got.dtype == np.float64
  np.testing.assert_allclose(got, transcription(image, region), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
  "values", [(0, 255), (0, 1), (254, 255), (0,), (255,), (3, 77, 200), range(256)], ids=str
)
def test_equals_the_formula_at_the_edges_and_in_sparse_regions(values):
  """Bins that no kernel reaches underflow to p = 0, which adds nothing (xlogy)."""
  grey = np.resize(np.array(list(values), np.uint8), (16, 16))
  image = np.repeat(grey[..., None], 3, -1)
  got = entropy.region_entropy(image, 16)
  np.testing.assert_allclose(got, transcription(image, 16), rtol=0, atol=1e-9)


def test_flat_regions_have_the_documented_values():
  def flat(value):
    return entropy.region_entropy(np.full((16, 16, 3), value, np.uint8), 16).item()

  for grey in (11, 64, 128, 200, 244):  # 0.04 to 0.96
    assert flat(grey) == pytest.approx(2.355, abs=5e-4)
  assert flat(0) == pytest.approx(1.740, abs=5e-4)
  assert flat(255) == pytest.approx(1.744, abs=5e-4)  # the grey weights sum to 0.9999


def test_bounds_and_order():
  """Noise over all greys is close to ln 256, and more detail never has less entropy."""
  noise = np.random.default_rng(0).integers(0, 256, (64, 64, 1), np.uint8).repeat(3, -1)
  ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None], (64, 64, 3))
  flat = np.full((64, 64, 3), 90, np.uint8)
  values = [entropy.region_entropy(x, 64).item() for x in (flat, ramp, noise)]
  assert values == sorted(values)
  assert np.log(256) - 0.05 < values[-1] <= np.log(256)


def test_a_region_sees_only_its_own_pixels_in_any_order():
  image = photo(32, 32)
  whole = entropy.region_entropy(image, 16)
  for i, j in itertools.product(range(2), range(2)):
    part = image[16 * i : 16 * i + 16, 16 * j : 16 * j + 16]
    mixed = np.random.default_rng(1).permutation(part.reshape(-1, 3)).reshape(part.shape)
    np.testing.assert_allclose(entropy.region_entropy(mixed, 16), whole[i, j], rtol=1e-12)


def test_regions_must_tile_the_image():
  with pytest.raises(UserError, match="60 x 64 is not a whole number of regions of 16"):
    entropy.region_entropy(np.zeros((60, 64, 3), np.uint8), 16)


def shares(entropies, taus, grains):
  counts = np.bincount(entropy.grain_map(entropies, taus).ravel(), minlength=grains)
  return counts / counts.sum()


@pytest.mark.parametrize(
  "ratios", [(0.5, 0.5), (0.3, 0.7), (0.9, 0.1), (0.5, 0.3, 0.2), (0.0, 1.0), (1.0, 0.0), (1.0,)]
)
def test_shares_are_met_on_smooth_entropies(ratios):
  e = np.random.default_rng(0).normal(3.9, 0.7, 4000)
  taus = entropy.thresholds(e, ratios)
  assert len(taus) == len(ratios) - 1
  np.testing.assert_allclose(shares(e, taus, len(ratios)), ratios, atol=1 / 4000)
  assert all(entropy.atom_mass(e, t) <= 2 / 4000 for t in taus)


@settings(max_examples=60, deadline=None)
@given(
  values=st.lists(st.integers(17, 55), min_size=2, max_size=60).filter(lambda v: len(set(v)) > 1),
  fine=st.floats(0.01, 0.99),
)
def test_no_atom_straddles_a_threshold_and_the_miss_is_below_the_atom(values, fine):
  exact = np.asarray(values) / 10
  e = exact + np.random.default_rng(0).uniform(-2e-7, 2e-7, len(values))  # rounding noise
  (tau,) = entropy.thresholds(e, (1 - fine, fine))
  grains = entropy.grain_map(e, (tau,))
  for value in set(exact):
    assert len(set(grains[exact == value])) == 1
  assert len(set(grains)) == 2
  assert abs(grains.mean() - fine) <= max(0.01, entropy.atom_mass(e, tau)) + 1e-9


def test_white_atom_of_known_mass():
  e = np.concatenate([np.full(30, 1.7436), np.linspace(2, 5, 70)])
  (tau,) = entropy.thresholds(e, (0.2, 0.8))
  assert tau == pytest.approx((1.7436 + 2) / 2)
  assert entropy.atom_mass(e, tau) == pytest.approx(0.3)


def test_thresholds_depend_on_the_set_not_on_its_order_or_size():
  e = np.random.default_rng(0).gamma(4, 1, 501)
  want = entropy.thresholds(e, (0.4, 0.6))
  assert entropy.thresholds(np.random.default_rng(1).permutation(e), (0.4, 0.6)) == want
  assert entropy.thresholds(np.tile(e, 3), (0.4, 0.6)) == want


def test_grain_is_the_number_of_thresholds_exceeded():
  taus = (2.0, 3.0, 4.0)
  e = np.array([[1.0, 2.0, 2.1], [3.5, 4.0, 9.0]])
  got = entropy.grain_map(e, taus)
  assert got.dtype == np.uint8
  np.testing.assert_array_equal(got, sum((e > t).astype(int) for t in taus))
  np.testing.assert_array_equal(entropy.grain_map(e, ()), np.zeros((2, 3)))


@pytest.mark.parametrize("ratios", [(0.5, 0.6), (-0.1, 1.1), (), (float("nan"), 0.5)])
def test_refuses_what_is_no_share(ratios):
  with pytest.raises(UserError, match="sum to 1"):
    entropy.thresholds(np.arange(4.0), ratios)


def test_refuses_to_route_equal_regions():
  with pytest.raises(UserError, match="all 9 training regions"):
    entropy.thresholds(np.full(9, 2.355), (0.5, 0.5))
