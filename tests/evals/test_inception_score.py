"""The inception score against a transcription by numpy, its bounds, and that order counts."""

import numpy as np
import pytest
import scipy.special

from dit_jax.evals.inception_score import SPLIT, inception_score


def transcribed(logits, split):
  """Probabilities first, then logarithms, split by split: how ADM's evaluator goes about it."""
  p = scipy.special.softmax(logits.astype(np.float64), axis=1)
  scores = []
  for start in range(0, len(p), split):
    part = p[start : start + split]
    kl = part * (np.log(part) - np.log(part.mean(0, keepdims=True)))
    scores.append(np.exp(kl.sum(1).mean()))
  return np.mean(scores)


def logits(n, classes=30, seed=0, scale=3.0):
  return (scale * np.random.default_rng(seed).normal(size=(n, classes))).astype(np.float32)


@pytest.mark.parametrize(("n", "split"), [(90, 30), (100, 30), (20, 30)])
def test_agrees_with_a_transcription(n, split):
  x = logits(n)
  assert inception_score(x, split) == pytest.approx(transcribed(x, split), rel=1e-9)
  assert inception_score(x) == pytest.approx(transcribed(x, SPLIT), rel=1e-9)


def test_is_one_of_no_opinion_and_the_classes_of_sure_ones():
  assert inception_score(np.zeros((40, 12))) == pytest.approx(1)
  assert inception_score(np.tile(logits(1), (40, 1))) == pytest.approx(1)  # one thing, ever again
  sure = 1e4 * np.eye(12)[np.arange(48) % 12]  # probabilities that are 0 to the last digit
  assert inception_score(sure) == pytest.approx(12)


def test_a_constant_is_no_opinion():
  x = logits(50)
  shift = np.random.default_rng(1).normal(size=(50, 1)) * 100
  assert inception_score(x + shift) == pytest.approx(inception_score(x), rel=1e-5)


def test_pictures_sorted_by_class_score_less():
  labels = np.random.default_rng(2).permutation(np.arange(120) % 12)
  x = 20 * np.eye(12)[labels]
  shuffled, in_order = inception_score(x, 30), inception_score(x[np.argsort(labels)], 30)
  assert in_order == pytest.approx(3, rel=0.01)
  assert shuffled > 9
