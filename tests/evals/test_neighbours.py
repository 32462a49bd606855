"""Precision and recall against distances one by one, and which side is which."""

import numpy as np
import pytest
import scipy.spatial

from dit_jax.evals import neighbours
from dit_jax.evals.neighbours import precision_recall


def normal(n, d=5, seed=0, scale=1.0, shift=0.0):
  return np.random.default_rng(seed).normal(size=(n, d)) * scale + shift


def transcribed(x, y, k):
  """Kynkaanniemi et al. 2019, eq. (1) and (2), with scipy's distances."""

  def share(a, b):
    found = 0
    own = scipy.spatial.distance.cdist(b, b)
    for row in a:
      reach = [sorted(np.delete(own[j], j))[k - 1] for j in range(len(b))]
      found += any(np.linalg.norm(row - b[j]) <= reach[j] for j in range(len(b)))
    return found / len(a)

  return share(x, y), share(y, x)


@pytest.mark.parametrize(("n", "m", "k"), [(25, 25, 3), (18, 31, 3), (20, 20, 1), (4, 12, 3)])
def test_agrees_with_a_transcription(n, m, k, monkeypatch):
  monkeypatch.setattr(neighbours, "_ROWS", 7)  # several blocks, the last one short
  x, y = normal(n, seed=1), normal(m, seed=2, scale=1.6, shift=0.4)
  want = transcribed(x, y, k)
  assert precision_recall(x, y, k) == pytest.approx(want)
  assert len({*want, 0.0, 1.0}) > 2  # something between the bounds


def test_samples_of_one_mode_are_precise_and_recall_half():
  a, b = normal(60, seed=3), normal(60, seed=4, shift=50)
  both = np.concatenate([normal(60, seed=5), normal(60, seed=6, shift=50)])
  precision, recall = precision_recall(a, both)
  assert precision > 0.6 > 0.5 >= recall > 0.2
  assert precision_recall(np.concatenate([a, b]), both[:60])[0] <= 0.5


def test_exchanging_the_sides_exchanges_the_numbers():
  x, y = normal(40, seed=1), normal(50, seed=2, scale=1.5)
  assert precision_recall(x, y) == precision_recall(y, x)[::-1]
  assert precision_recall(x, x) == (1.0, 1.0)
  assert precision_recall(x, x + 1e3) == (0.0, 0.0)


def test_a_row_is_no_neighbour_of_its_own_but_its_copy_is():
  y = np.asarray([[0.0], [10.0], [20.0], [40.0]])
  x = np.asarray([[9.9], [25.0], [-10.0], [-10.1]])
  assert precision_recall(x, y, k=1)[0] == 0.75  # balls of 10, 10, 10 and 20; -10.1 is outside
  assert precision_recall(x, np.concatenate([y, y]), k=1)[0] == 0.0  # balls of no radius


def test_too_few_rows_are_refused():
  with pytest.raises(ValueError, match="4 rows or more; got 3 and 9"):
    precision_recall(normal(3), normal(9))
