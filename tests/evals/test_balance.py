"""Classes to draw: their shares, their order and the numbers under which `sample` draws them."""

import numpy as np
import pytest

from dit_jax.evals import balance


@pytest.mark.parametrize(("n", "classes"), [(12, 4), (14, 4), (3, 7), (1, 1), (50, 3)])
def test_balanced_differs_by_one_at_most_in_every_stretch(n, classes):
  label = balance.balanced(n, classes)
  assert (label.dtype, label.shape) == (np.int32, (n,))
  for end in range(1, n + 1):
    counts = np.bincount(label[: end // classes * classes], minlength=classes)
    assert np.ptp(counts) == 0
  assert np.ptp(np.bincount(label, minlength=classes)) <= 1


def test_a_short_round_is_spread_over_the_classes():
  assert balance.balanced(3, 9).tolist() == [0, 3, 6]


def test_random_is_the_seeds_and_uniform():
  label = balance.random(30_000, 5, seed=1)
  np.testing.assert_array_equal(label, balance.random(30_000, 5, seed=1))
  assert (label != balance.random(30_000, 5, seed=2)).any()
  np.testing.assert_allclose(np.bincount(label) / 30_000, 0.2, atol=0.01)


def test_like_keeps_counts_and_order():
  labels = np.array([2, 2, 0, 1, 1, 1], np.int32)
  np.testing.assert_array_equal(balance.like(labels, 6), labels)
  np.testing.assert_array_equal(balance.like(labels, 12), [*labels, *labels])
  np.testing.assert_array_equal(balance.like(labels, 3), labels[[0, 2, 4]])
  assert np.bincount(balance.like(labels, 15)).tolist() == [3, 7, 5]


def test_numbers_count_within_a_class_and_never_meet():
  """As `sample` numbers them: j times the named nodes, plus the node."""
  label = np.array([1, 0, 1, 1, 4, 0])
  assert balance.numbers(label, 5).tolist() == [1, 0, 6, 11, 4, 5]
  many = balance.random(500, 7, seed=0)
  assert len(set(balance.numbers(many, 9).tolist())) == 500
  np.testing.assert_array_equal(balance.numbers(np.zeros(4, int), 1), np.arange(4))
