"""Distances between sets of pictures, in the features of a trunk that the caller brings.

The features decide the name: on AlexNet or VGG they are a feature distance, never "FID".
"""

import numpy as np


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
  """|mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)) of features [n, d] (Heusel et al. 2017).

  Means and covariances (ddof 1) in float64. The trace of the root comes from the eigenvalues of
  S_x^(1/2) S_y S_x^(1/2), which is symmetric, so nothing imaginary has to be dropped.

  Raises:
    ValueError: fewer than two rows on a side.
  """
  if min(len(x), len(y)) < 2:
    raise ValueError(f"A covariance needs two rows or more; got {len(x)} and {len(y)}.")
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  s_x, s_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
  values, vectors = np.linalg.eigh(np.atleast_2d(s_x))
  root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
  inner = np.linalg.eigvalsh(root @ np.atleast_2d(s_y) @ root)
  trace_of_root = np.sqrt(np.maximum(inner, 0)).sum()
  gap = np.sum((x.mean(0) - y.mean(0)) ** 2)
  return float(
    gap + np.trace(np.atleast_2d(s_x)) + np.trace(np.atleast_2d(s_y)) - 2 * trace_of_root
  )


def nearest(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """For every row of x, the nearest row of y (Euclidean) and its distance."""
  x, y = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (x, y))
  squares = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
  place = squares.argmin(1)
  return place, np.sqrt(np.maximum(squares[np.arange(len(x)), place], 0))


def psnr(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Peak signal-to-noise ratio in dB of uint8 images [n, h, w, c], one an image."""
  error = np.mean((x.astype(np.float64) - y.astype(np.float64)) ** 2, axis=(1, 2, 3))
  return 10 * np.log10(255.0**2 / np.maximum(error, 1e-12))
