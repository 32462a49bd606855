"""Mean and covariance of features that never lie in memory together."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Moments:
  """What a set's mean and covariance are made of; those of two sets give those of both.

  A set may be cut anywhere, over chunks or over processes: the parts' moments, merged in any order,
  are those of the whole, to float64's rounding (Chan, Golub and LeVeque 1983).

  Attributes:
    count: rows.
    mean: float64 [d].
    scatter: float64 [d, d], the sum of (x - mean)(x - mean)^T.
  """

  count: int
  mean: np.ndarray
  scatter: np.ndarray

  @classmethod
  def of(cls, values: np.ndarray) -> "Moments":
    """Of rows [n, d], n at least 1."""
    values = np.asarray(values, np.float64)
    mean = values.mean(0)
    gap = values - mean
    return cls(len(values), mean, gap.T @ gap)

  def merged(self, other: "Moments") -> "Moments":
    """Of the rows of both."""
    count = self.count + other.count
    gap = other.mean - self.mean
    scatter = np.outer(gap, gap)
    scatter *= self.count * other.count / count
    scatter += self.scatter
    scatter += other.scatter
    return Moments(count, self.mean + gap * (other.count / count), scatter)

  @property
  def covariance(self) -> np.ndarray:
    """float64 [d, d], divided by count - 1 (`np.cov`'s default).

    Raises:
      ValueError: fewer than two rows.
    """
    if self.count < 2:
      raise ValueError(f"A covariance needs two rows or more; got {self.count}.")
    return self.scatter / (self.count - 1)
