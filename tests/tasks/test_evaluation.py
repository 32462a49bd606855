"""Which classes are drawn where a reference says, and where it does not."""

import numpy as np
import pytest

from dit_jax.core.errors import UserError
from dit_jax.evals.real import Real
from dit_jax.tasks import evaluation

CLASSES = ("owl", "tit", "eel")


def known(labels, classes=CLASSES):
  labels = None if labels is None else np.array(labels)
  return Real("birds.npz", "0", 8, None, 4, labels, classes)


def labels(mode, side, n=4, classes=CLASSES, seed=0):
  return evaluation.drawn_labels(mode, n, classes, side, seed).tolist()


def test_modes():
  assert labels("reference", known([1, 1, 0, 2])) == [1, 1, 0, 2]
  assert labels("balanced", known(None)) == [0, 1, 2, 0]
  assert set(labels("random", known(None), n=50)) == {0, 1, 2}
  assert labels("reference", known(None, ()), classes=()) == [0] * 4


def test_a_reference_of_other_ids_is_read_by_names():
  assert labels("reference", known([0, 0, 1, 1], ("eel", "owl"))) == [2, 2, 0, 0]
  assert labels("reference", known([2, 0, 1, 1], ())) == [2, 0, 1, 1]  # an .npz has ids alone


@pytest.mark.parametrize(
  ("side", "told"),
  [
    (known(None), "and birds.npz says none; choose labels=balanced or random"),
    (known([0, 0, 1, 1], ("owl", "ant")), "and birds.npz has 'ant'"),
    (known([0, 0, 1, 3], ()), "needs the model's classes, 0 to 2, and birds.npz has 0 to 3"),
  ],
)
def test_other_classes_are_refused(side, told):
  with pytest.raises(UserError, match=told):
    labels("reference", side)
