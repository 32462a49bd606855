"""What drawn pictures are held against: photos that no run was trained on, and who is recognised.

Distances between sets see no labels: a model that draws every species as its family may have the
best of them. So pictures are also classified, by what the training photos tell of the classes.
"""

import numpy as np

SHRINKAGE = 0.1  # of a covariance of 512 features from a few thousand photos


class Discriminant:
  """Linear discriminant analysis: one covariance for all classes, all classes as likely.

  Args:
    x: [n, d] features of which the classes are known.
    labels: [n] ids from 0; every class has a row.
  """

  def __init__(self, x: np.ndarray, labels: np.ndarray):
    x = x.astype(np.float64)
    means = np.stack([x[labels == label].mean(0) for label in range(labels.max() + 1)])
    within = np.cov((x - means[labels]).T, ddof=0)
    level = SHRINKAGE * np.trace(within) / len(within)
    shrunk = (1 - SHRINKAGE) * within + level * np.eye(len(within))
    self.weights = np.linalg.solve(shrunk, means.T)
    self.bias = -0.5 * (means.T * self.weights).sum(0)

  def __call__(self, x: np.ndarray) -> np.ndarray:
    """The likeliest class of each row."""
    return (x @ self.weights + self.bias).argmax(1)


class Judge:
  """Scores sets of pictures, one for each held-out photo, of its class, in the same order.

  Args:
    train, held: sources of the two splits.
    described: the reference in words, for the card.
  """

  def __init__(self, train, held, described: str):
    from dit_jax.evals import features

    self.held, self.words = held, described
    self.extract = features.Extractor("vgg16")
    self.reference = self.extract(images_of(held))
    self.classify = Discriminant(self.extract(images_of(train)).values, train.labels)

  def card(self, found):
    """Distances of pictures' features to those of the held-out photos."""
    from dit_jax.evals import fidelity

    return fidelity.score(found, self.reference, self.extract, self.words)

  def recognised(self, found) -> dict[str, float]:
    """Percentages of pictures taken for what was asked for; means nothing of training photos."""
    taken, asked = self.classify(found.values), self.held.labels
    above = np.asarray(self.held.classes.maps[0])
    share = lambda x, y: round(100 * float(np.mean(x == y)), 2)
    return {"class": share(taken, asked), "superclass": share(above[taken], above[asked])}


def images_of(source, rows=None) -> np.ndarray:
  """uint8 [n, s, s, 3] of the positions `rows`, or of all."""
  rows = range(len(source)) if rows is None else rows
  return np.stack([source[int(i)]["image"] for i in rows])
