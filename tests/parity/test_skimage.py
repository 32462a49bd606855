"""PSNR and SSIM against scikit-image's."""

import numpy as np
import pytest

from dit_jax.evals import frechet
from dit_jax.evals.ssim import ssim

pytestmark = pytest.mark.all
metrics = pytest.importorskip("skimage.metrics", reason="skimage is not installed: parity")


def pairs():
  """Noise on noise, and on a smooth picture; not square."""
  rng = np.random.default_rng(0)
  across, down = np.meshgrid(np.linspace(0, 6, 40), np.linspace(0, 3, 33))
  smooth = 127 + 120 * np.sin(np.stack([across, down, across * down], -1))
  x = np.stack([rng.integers(0, 256, smooth.shape), smooth]).astype(np.uint8)
  return x, np.clip(x + 25 * rng.normal(size=x.shape), 0, 255).astype(np.uint8)


def test_ssim():
  x, y = pairs()
  settings = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
  want = [
    metrics.structural_similarity(a, b, channel_axis=-1, data_range=255, **settings)
    for a, b in zip(x, y, strict=True)
  ]
  np.testing.assert_allclose(ssim(x, y), want, rtol=1e-6)


def test_psnr():
  x, y = pairs()
  want = [metrics.peak_signal_noise_ratio(a, b) for a, b in zip(x, y, strict=True)]
  np.testing.assert_allclose(frechet.psnr(x, y), want, rtol=1e-9)
