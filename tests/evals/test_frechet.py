"""The Frechet distance against its closed forms and scipy's matrix root; neighbours by hand."""

import numpy as np
import pytest
import scipy.linalg

from dit_jax.evals import frechet


def normal(n, d, seed, scale=1.0, shift=0.0):
  return np.random.default_rng(seed).normal(size=(n, d)) * scale + shift


def test_zero_to_itself_and_to_a_shuffle():
  x = normal(200, 6, 0)
  assert abs(frechet.frechet_distance(x, x)) < 1e-9
  assert abs(frechet.frechet_distance(x, x[::-1])) < 1e-9


def test_a_shift_costs_its_squared_length():
  x = normal(100, 5, 1)
  assert frechet.frechet_distance(x, x + 3.0) == pytest.approx(5 * 9.0)


def test_a_scaling_costs_the_trace_of_the_difference_of_roots():
  x = normal(100, 5, 2)
  x -= x.mean(0)
  want = (2.0 - 1.0) ** 2 * np.trace(np.cov(x, rowvar=False))
  assert frechet.frechet_distance(x, 2.0 * x) == pytest.approx(want)


@pytest.mark.parametrize("n", [4, 300])
def test_agrees_with_scipy_sqrtm(n):
  d = 8  # n = 4 makes both covariances singular
  x, y = normal(n, d, 3), normal(n, d, 4, scale=1.7, shift=0.3) @ normal(d, d, 5)
  s_x, s_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
  root = scipy.linalg.sqrtm(s_x @ s_y)
  want = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(s_x + s_y) - 2 * np.trace(np.real(root))
  assert frechet.frechet_distance(x, y) == pytest.approx(want, rel=1e-4, abs=1e-3)
  swapped = frechet.frechet_distance(y, x)
  assert frechet.frechet_distance(x, y) == pytest.approx(swapped, rel=1e-6)


@pytest.mark.parametrize(("n", "m"), [(300, 420), (30, 45), (30, 300), (5, 5)])
def test_agrees_with_adm_on_features_like_a_trunks(n, m):
  """Never below 0, of falling spread; singular covariances where there are fewer rows than 60."""
  d = 60
  spread = normal(d, d, 8) / np.arange(1, d + 1) ** 0.8
  x, y = (np.maximum(normal(k, d, seed) @ spread + 0.2, 0) for k, seed in ((n, 9), (m, 10)))
  s_x, s_y = np.cov(x, rowvar=False), np.cov(1.3 * y, rowvar=False)
  root = scipy.linalg.sqrtm(s_x @ s_y)
  gap = np.sum((x.mean(0) - 1.3 * y.mean(0)) ** 2)
  want = gap + np.trace(s_x) + np.trace(s_y) - 2 * np.trace(np.real(root))
  assert frechet.frechet_distance(x, 1.3 * y) == pytest.approx(want, rel=1e-6)
  a, b = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, 1.3 * y))
  exact = np.linalg.svd(a @ b.T, compute_uv=False).sum()  # of the rows, without a covariance
  want = gap + np.trace(s_x) + np.trace(s_y) - 2 * exact
  assert frechet.frechet_distance(x, 1.3 * y) == pytest.approx(want, rel=1e-11)


def test_one_row_is_refused():
  with pytest.raises(ValueError, match="two rows"):
    frechet.frechet_distance(np.zeros((1, 3)), np.zeros((5, 3)))


def test_nearest_by_brute_force():
  x, y = normal(7, 12, 6), normal(9, 12, 7)
  place, distance = frechet.nearest(x, y)
  every = np.linalg.norm(x[:, None] - y[None], axis=-1)
  np.testing.assert_array_equal(place, every.argmin(1))
  np.testing.assert_allclose(distance, every.min(1))


def test_psnr_of_a_known_error():
  x = np.zeros((2, 4, 4, 3), np.uint8)
  y = x.copy()
  y[1] = 255
  np.testing.assert_allclose(frechet.psnr(x, y)[1], 0.0, atol=1e-9)
  assert frechet.psnr(x, x)[0] > 100
  assert frechet.psnr(x, x + np.uint8(16))[0] == pytest.approx(20 * np.log10(255 / 16))
