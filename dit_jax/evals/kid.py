"""KID: the squared maximum mean discrepancy under a cubic kernel (Binkowski et al. 2018).

    k(x, y) = (x . y / d + 1)^3                                                              (1)
    MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)   (2)

Eq. (2) has no bias at any size, so it falls below 0 as often as not where the sets are alike.
"""

from typing import NamedTuple

import numpy as np

SUBSETS, LARGEST = 100, 1000  # Binkowski et al. 2018, section 4
_ROWS = 1024  # of the kernel's matrix at a time: 50,000 images would fill 20 GB


class Kid(NamedTuple):
  """An estimate and its spread.

  Attributes:
    value: eq. (2) on every row.
    mean: of eq. (2) over subsets.
    sd: over the same.
    subset: rows of a subset on each side.
  """

  value: float
  mean: float
  sd: float
  subset: int


def kid(x: np.ndarray, y: np.ndarray, seed: int = 0) -> Kid:
  """Eq. (2) on all rows and on 100 subsets, drawn from each side without replacement.

  A subset has 1000 rows, as the paper's, but never more than half of the smaller set: subsets as
  large as the set would all be the set, with an sd of 0. The sd of half samples estimates the
  standard error of `value` (the delete-half jackknife of Shao and Wu 1989).

  Args:
    x: features [n, d], four rows or more; in float64 from here on.
    y: features [m, d], likewise.
    seed: of the subsets.
  """
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  size = min(LARGEST, len(x) // 2, len(y) // 2)
  draw = np.random.default_rng(seed).choice
  values = [mmd2(*(a[draw(len(a), size, replace=False)] for a in (x, y))) for _ in range(SUBSETS)]
  return Kid(mmd2(x, y), float(np.mean(values)), float(np.std(values, ddof=1)), size)


def mmd2(x: np.ndarray, y: np.ndarray) -> float:
  """Eq. (2) of float64 features [n, d] and [m, d].

  Raises:
    ValueError: fewer than two rows on a side.
  """
  n, m = len(x), len(y)
  if min(n, m) < 2:
    raise ValueError(f"A mean over pairs needs two rows or more; got {n} and {m}.")
  own = sum((_total(a, a) - _diagonal(a)) / (len(a) * (len(a) - 1)) for a in (x, y))
  return float(own - 2 * _total(x, y) / (n * m))


def _total(x: np.ndarray, y: np.ndarray) -> float:
  """The sum of eq. (1) over all pairs."""
  parts = (x[i : i + _ROWS] for i in range(0, len(x), _ROWS))
  return sum(_cube_sum(part @ y.T, x.shape[1]) for part in parts)


def _diagonal(x: np.ndarray) -> float:
  """The sum of eq. (1) over pairs of a row with itself."""
  return _cube_sum((x**2).sum(1), x.shape[1])


def _cube_sum(dot: np.ndarray, d: int) -> float:
  """The sum of eq. (1) over scalar products; numpy's x**3 is many times slower than products."""
  base = dot / d + 1
  return np.sum(base * base * base)
