"""SSIM against its definition, window by window, and its bounds."""

import numpy as np
import pytest

from dit_jax.core.errors import UserError
from dit_jax.evals.ssim import ssim


def pictures(n=2, h=14, w=12, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (n, h, w, 3), np.uint8)


def transcribed(x, y):
  """Wang et al. 2004, eq. (13) to (16), of two planes, with sums over each window."""
  offset = np.arange(11) - 5
  window = np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * 1.5**2))
  window /= window.sum()
  found = []
  for i in range(x.shape[0] - 10):
    for j in range(x.shape[1] - 10):
      a, b = (p[i : i + 11, j : j + 11].astype(np.float64) for p in (x, y))
      m_a, m_b = (window * a).sum(), (window * b).sum()
      v_a, v_b = (window * (a - m_a) ** 2).sum(), (window * (b - m_b) ** 2).sum()
      cov = (window * (a - m_a) * (b - m_b)).sum()
      c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
      found.append(
        (2 * m_a * m_b + c1) * (2 * cov + c2) / ((m_a**2 + m_b**2 + c1) * (v_a + v_b + c2))
      )
  return np.mean(found)


def test_agrees_with_the_definition():
  x, noise = pictures(), np.random.default_rng(1).normal(size=(2, 14, 12, 3)) * 30
  y = np.clip(x + noise, 0, 255).astype(np.uint8)
  want = [
    np.mean([transcribed(a[..., c], b[..., c]) for c in range(3)])
    for a, b in zip(x, y, strict=True)
  ]
  np.testing.assert_allclose(ssim(x, y), want, rtol=1e-9)


def test_is_one_of_the_same_and_falls_with_noise():
  x = pictures(3, 20, 20)
  np.testing.assert_allclose(ssim(x, x), 1.0)
  noise = np.random.default_rng(2).normal(size=x.shape)
  means = [ssim(x, np.clip(x + s * noise, 0, 255).astype(np.uint8)).mean() for s in (5, 20, 80)]
  assert 1 > means[0] > means[1] > means[2] > 0
  assert ssim(x, 255 - x).max() < 0  # the negative


def test_knows_no_sides():
  x, y = pictures(seed=3), pictures(seed=4)
  np.testing.assert_allclose(ssim(x, y), ssim(y, x), rtol=1e-12)


def test_pictures_under_the_window_are_refused():
  with pytest.raises(UserError, match="11 px, these pictures have 14 x 10"):
    ssim(pictures(w=10), pictures(w=10))
