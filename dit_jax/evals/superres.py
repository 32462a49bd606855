"""How close an enlarged picture is to the real one, in luma as super-resolution is compared."""

import numpy as np

from dit_jax.evals import frechet

_BT601 = np.asarray([65.481, 128.553, 24.966]) / 255  # the luma of studio range, 16 to 235


def luma(images: np.ndarray) -> np.ndarray:
  """Y of YCbCr (ITU-R BT.601) of uint8 [n, h, w, 3], float64 [n, h, w, 1]."""
  return (16 + images.astype(np.float64) @ _BT601)[..., None]


def luma_psnr(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """PSNR in dB of the luma of uint8 [n, h, w, 3], one an image; whole pictures, borders too."""
  return frechet.psnr(luma(x), luma(y))
