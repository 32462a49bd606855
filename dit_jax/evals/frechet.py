"""Distances between sets of pictures, in the features of a trunk that the caller brings.

The features decide the name: on AlexNet or VGG they are a feature distance, never "FID".
"""

import numpy as np

from dit_jax.evals.moments import Moments


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
  """The distance `between` the means and covariances (ddof 1) of features [n, d] and [m, d].

  Raises:
    ValueError: fewer than two rows on a side.
  """
  x, y = Moments.of(x), Moments.of(y)
  return between(x.mean, x.covariance, y.mean, y.covariance)


def between(mu_x: np.ndarray, s_x: np.ndarray, mu_y: np.ndarray, s_y: np.ndarray) -> float:
  """|mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)) in float64 (Heusel et al. 2017).

  With S = A A^T the trace of the root is the sum of the singular values of A_x^T A_y. It is exact
  where a covariance is singular (fewer images than features), and nothing imaginary has to be
  dropped; a root of the product itself (`scipy.linalg.sqrtm`) is off there by some 1e-7.
  """
  trace_of_root = np.linalg.svd(_root(s_x).T @ _root(s_y), compute_uv=False).sum()
  gap = np.sum((mu_x - mu_y) ** 2)
  return float(gap + np.trace(s_x) + np.trace(s_y) - 2 * trace_of_root)


def _root(covariance: np.ndarray) -> np.ndarray:
  """A of S = A A^T, [d, rank]: columns that rounding alone would fill are left out."""
  values, vectors = np.linalg.eigh(covariance)
  kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
  return vectors[:, kept] * np.sqrt(values[kept])


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
