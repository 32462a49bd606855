"""Which classes are drawn for a score, in which order, and under which numbers.

The order counts: the Inception Score is a mean over consecutive splits, and a split of one class
would be taken for a model that draws nothing else. So `balanced` goes round all classes.
"""

import numpy as np

MODES = ("reference", "balanced", "random")


def balanced(n: int, num_classes: int) -> np.ndarray:
  """Every class as often, int32 [n]: rounds through all; a last, short one is spread evenly."""
  rounds, rest = divmod(n, num_classes)
  every = np.arange(num_classes, dtype=np.int32)
  return np.concatenate([np.tile(every, rounds), every[spread(num_classes, rest)]])


def random(n: int, num_classes: int, seed: int) -> np.ndarray:
  """Every class as likely, int32 [n]."""
  return np.random.default_rng(seed).integers(num_classes, size=n).astype(np.int32)


def like(labels: np.ndarray, n: int) -> np.ndarray:
  """The labels in their order, int32 [n]: as often as they fit, then evenly spaced ones."""
  rounds, rest = divmod(n, len(labels))
  return np.concatenate([np.tile(labels, rounds), labels[spread(len(labels), rest)]]).astype("i4")


def numbers(label: np.ndarray, stride: int) -> np.ndarray:
  """Sample numbers, int32 [n]: picture j of a class is the one that `sample` draws as its j-th.

  Args:
    label: nodes, int [n].
    stride: nodes that have a name, 1 or more.
  """
  order = np.argsort(label, kind="stable")
  j = np.empty(len(label), np.int64)
  j[order] = np.arange(len(label)) - np.searchsorted(label[order], label[order])
  return (j * stride + label).astype(np.int32)


def spread(total: int, count: int) -> np.ndarray:
  """`count` of `total` places, evenly spaced, ascending."""
  return np.arange(count) * total // max(count, 1)
