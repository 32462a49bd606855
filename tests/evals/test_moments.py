"""Moments against numpy's mean and covariance, wherever the set is cut."""

import functools

import numpy as np
import pytest

from dit_jax.evals.moments import Moments


def values(n=300, d=7, seed=0):
  """Far from 0 against their spread, where sums of squares would lose half of the digits."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 1e3 * np.arange(d)
  return x.astype(np.float32)


def together(parts):
  return functools.reduce(Moments.merged, map(Moments.of, parts))


def agree(got, x):
  x = x.astype(np.float64)
  assert got.count == len(x)
  np.testing.assert_allclose(got.mean, x.mean(0), rtol=1e-10)
  want = np.cov(x, rowvar=False)
  np.testing.assert_allclose(got.covariance, want, rtol=0, atol=1e-10 * np.abs(want).max())


@pytest.mark.parametrize("cuts", [(), (1,), (299,), (10, 11, 12, 200), range(1, 300)], ids=str)
def test_chunks_change_nothing(cuts):
  x = values()
  agree(together(np.split(x, list(cuts))), x)


def test_processes_may_be_merged_in_any_order():
  x = values()
  rows = [x[i::4] for i in range(4)]  # what four processes see
  for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
    agree(together([rows[i] for i in order]), x)
  a, b, c, d = map(Moments.of, rows)
  agree(a.merged(b).merged(c.merged(d)), x)


def test_one_row_has_no_covariance():
  one = Moments.of(values(1))
  np.testing.assert_array_equal(one.mean, values(1)[0])
  with pytest.raises(ValueError, match="two rows"):
    one.covariance  # noqa: B018
