"""Structural similarity of pictures (Wang et al. 2004).

    SSIM(x, y) = (2 m_x m_y + c1) (2 s_xy + c2) / ((m_x^2 + m_y^2 + c1) (s_x^2 + s_y^2 + c2))   (1)

with means, variances and covariance under a Gaussian window that slides over the picture.
"""

import numpy as np

from dit_jax.core.errors import UserError

WINDOW, SIGMA = 11, 1.5  # pixels: section III-C of the paper
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def ssim(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """The mean of eq. (1) over channels and over windows inside the picture, one an image.

  Args:
    x: uint8 [n, h, w, c].
    y: likewise.

  Returns:
    float64 [n].

  Raises:
    UserError: the window does not fit into the pictures.
  """
  if min(x.shape[1:3]) < WINDOW:
    raise UserError(
      f"SSIM looks through windows of {WINDOW} px, these pictures have {x.shape[1]} x {x.shape[2]};"
      " compare larger ones, or their PSNR."
    )
  return np.asarray([_mean_of_map(*pair) for pair in zip(x, y, strict=True)])


def _mean_of_map(x: np.ndarray, y: np.ndarray) -> float:
  x, y = x.astype(np.float64), y.astype(np.float64)
  m_x, m_y = _blurred(x), _blurred(y)
  s_x, s_y = _blurred(x * x) - m_x * m_x, _blurred(y * y) - m_y * m_y
  s_xy = _blurred(x * y) - m_x * m_y
  above = (2 * m_x * m_y + _C1) * (2 * s_xy + _C2)
  return float(np.mean(above / ((m_x**2 + m_y**2 + _C1) * (s_x + s_y + _C2))))


def _blurred(image: np.ndarray) -> np.ndarray:
  """Means under the window, [h - 10, w - 10, c]: a Gaussian is a column times a row."""
  weights = np.exp(-((np.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * SIGMA**2))
  weights /= weights.sum()
  for axis in (0, 1):
    length = image.shape[axis] - WINDOW + 1
    cuts = (image.take(range(i, i + length), axis) for i in range(WINDOW))
    image = sum(w * cut for w, cut in zip(weights, cuts, strict=True))
  return image
