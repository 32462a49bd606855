"""The inception score: how sure a classifier is of each picture, and of how many things."""

import numpy as np

SPLIT = 5_000  # pictures, as ADM's evaluator takes them


def inception_score(logits: np.ndarray, split: int = SPLIT) -> float:
  """Mean over splits of exp(mean KL(p(y | x) || p(y))), p(y) of the split (Salimans et al. 2016).

  Splits are runs of rows in the order given, the last one maybe shorter. So the order counts:
  pictures sorted by class put few classes into a split, and the score says so.

  Args:
    logits: [n, classes]; in float64 from here on. ADM's have no bias.
    split: rows.
  """
  scores = []
  for start in range(0, len(logits), split):
    log_p = np.asarray(logits[start : start + split], np.float64)
    log_p = log_p - log_p.max(1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
    p = np.exp(log_p)
    log_mean = np.log(np.maximum(p.mean(0), np.finfo(np.float64).tiny))  # 0 log 0 is 0
    scores.append(np.exp(np.mean(np.sum(p * (log_p - log_mean), 1))))
  return float(np.mean(scores))
