"""KID against a loop over pairs, and the laws of an unbiased estimate."""

import math

import numpy as np
import pytest

from dit_jax.evals import kid


def normal(n, d, seed, scale=1.0, shift=0.0):
  return np.random.default_rng(seed).normal(size=(n, d)) * scale + shift


def by_pairs(x, y):
  """Binkowski et al. 2018, eq. (4), one pair at a time."""

  def k(a, b):
    return (math.fsum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

  def own(z):
    pairs = [k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]
    return math.fsum(pairs) / len(pairs)

  cross = [k(a, b) for a in x for b in y]
  return own(x) + own(y) - 2 * math.fsum(cross) / len(cross)


@pytest.mark.parametrize(("n", "m"), [(12, 12), (7, 15)])
def test_agrees_with_a_loop_over_pairs(n, m, monkeypatch):
  monkeypatch.setattr(kid, "_ROWS", 5)  # several blocks, the last one short
  x, y = normal(n, 6, 0), normal(m, 6, 1, scale=1.3, shift=0.2)
  assert kid.mmd2(x, y) == pytest.approx(by_pairs(x, y), rel=1e-9)


def test_subsets_agree_with_the_loop():
  x, y = normal(9, 4, 2), normal(8, 4, 3, shift=0.5)
  rng, want = np.random.default_rng(11), []
  for _ in range(100):
    a, b = rng.choice(9, 4, replace=False), rng.choice(8, 4, replace=False)
    want.append(by_pairs(x[a], y[b]))
  got = kid.kid(x, y, seed=11)
  assert (got.mean, got.sd) == pytest.approx((np.mean(want), np.std(want, ddof=1)), rel=1e-6)
  assert got.subset == 4
  assert got == kid.kid(x, y, seed=11)
  assert got.mean != kid.kid(x, y, seed=12).mean


def test_subsets_have_a_thousand_rows_where_there_are_twice_as_many(monkeypatch):
  monkeypatch.setattr(kid, "SUBSETS", 2)
  assert kid.kid(normal(2100, 1, 0), normal(2000, 1, 1)).subset == 1000
  assert kid.kid(normal(2100, 1, 0), normal(1999, 1, 1)).subset == 999


def test_has_no_bias_even_at_eight_rows():
  """For numbers, (xy + 1)^3 compares the first three moments with weights 3, 3 and 1."""
  mu = 0.4
  moments = np.array([(0, mu), (1, 1 + mu**2), (0, mu**3 + 3 * mu)])
  want = np.sum([3, 3, 1] * (moments[:, 0] - moments[:, 1]) ** 2)
  rng = np.random.default_rng(0)
  values = [kid.mmd2(x, y + mu) for x, y in rng.normal(size=(5_000, 2, 8, 1))]
  error = np.std(values) / np.sqrt(len(values))
  assert abs(np.mean(values) - want) < 4 * error
  assert error < 0.1 * want


def test_alike_sets_are_near_zero_on_either_side():
  values = [kid.kid(normal(120, 5, s), normal(120, 5, s + 50), s) for s in range(20)]
  assert all(abs(k.value) < 4 * k.sd for k in values)
  assert 3 < sum(k.value < 0 for k in values) < 20


def test_the_spread_of_half_samples_is_the_error_of_the_whole(monkeypatch):
  monkeypatch.setattr(kid, "SUBSETS", 30)
  values = [kid.kid(normal(100, 3, s), normal(100, 3, s + 500, shift=0.5)) for s in range(80)]
  told = np.mean([k.sd for k in values])
  assert 0.75 < told / np.std([k.value for k in values]) < 1.33


def test_order_does_not_matter_and_noise_does():
  x, y = normal(80, 5, 4), normal(80, 5, 5)
  noise = normal(80, 5, 6)
  assert kid.mmd2(x[::-1], y) == pytest.approx(kid.mmd2(x, y), abs=1e-12)
  assert kid.mmd2(y, x) == pytest.approx(kid.mmd2(x, y), abs=1e-12)
  near, far, farther = (kid.mmd2(x, y + a * noise) for a in (0, 1, 2))
  assert near < far < farther


def test_one_row_is_refused():
  with pytest.raises(ValueError, match="two rows"):
    kid.mmd2(np.zeros((1, 3)), np.zeros((5, 3)))
