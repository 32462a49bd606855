"""How near a set of pictures is to another: Frechet distance and KID on pooled features.

The trunk gives the numbers their names: on the classifiers of LPIPS they are VGG-FD and VGG-KID,
never FID. A Frechet distance falls as n grows, so rows of one table have the same n.
"""

import dataclasses
import json
from collections.abc import Mapping

import numpy as np

from dit_jax.core.errors import UserError
from dit_jax.evals import frechet, kid
from dit_jax.evals.features import Extractor, Features

NAMES = {"vgg16": ("VGG-FD", "VGG-KID"), "alexnet": ("AlexNet-FD", "AlexNet-KID")}
SMALLEST_N = 4  # halves of two: KID's spread
_MAY_DIFFER = ("metrics", "seed", "image_size")  # between rows of one table


@dataclasses.dataclass(frozen=True)
class Card:
  """A score and what has to be known to repeat it; JSON gives back the same card.

  Attributes:
    metrics: numbers by name; of KID the estimate on all images, and the mean and sd over subsets.
    n: images scored.
    image_size: their pixels a side.
    reference: what they are compared with, in words.
    reference_n: its images.
    eval_size: pixels a side that the trunk saw.
    trunk: a key of `NAMES`.
    weights: hash of its parameters.
    kid_subset: images a side in a subset of KID.
    seed: of the subsets.
  """

  metrics: dict[str, float]
  n: int
  image_size: int
  reference: str
  reference_n: int
  eval_size: int
  trunk: str
  weights: str
  kid_subset: int
  seed: int

  def to_json(self) -> str:
    """One indented object; `Card(**json.loads(text))` takes it back."""
    return json.dumps(dataclasses.asdict(self), indent=2)


def score(
  images: np.ndarray | Features,
  reference: np.ndarray | Features,
  extract: Extractor,
  described: str,
  seed: int = 0,
) -> Card:
  """Distances of images to a reference.

  Args:
    images: uint8 [n, s, s, 3], or their features.
    reference: likewise; features where several rows share it.
    extract: makes the features that are not there yet.
    described: what the reference is: set, split, fingerprint of its source.
    seed: of KID's subsets.

  Raises:
    UserError: features of two kinds, fewer than four images on a side, or images that the trunk
      does not take.
  """
  x, y = (a if isinstance(a, Features) else extract(a) for a in (images, reference))
  for field in ("trunk", "weights", "eval_size"):
    if getattr(x, field) != getattr(y, field):
      raise UserError(
        f"{field} of the images is {getattr(x, field)!r} and of the reference "
        f"{getattr(y, field)!r}; make both features with one extractor."
      )
  if min(len(x), len(y)) < SMALLEST_N:
    raise UserError(f"scoring needs {SMALLEST_N} images or more a side, not {len(x)} and {len(y)}.")
  fd, kernel = NAMES[x.trunk]
  k = kid.kid(x.values, y.values, seed)
  distance = frechet.frechet_distance(x.values, y.values)
  metrics = {fd: distance, kernel: k.value, f"{kernel} mean": k.mean, f"{kernel} sd": k.sd}
  return Card(
    metrics=metrics,
    n=len(x),
    image_size=x.image_size,
    reference=described,
    reference_n=len(y),
    eval_size=x.eval_size,
    trunk=x.trunk,
    weights=x.weights,
    kid_subset=k.subset,
    seed=seed,
  )


def refuse_mixture(rows: Mapping[str, Card]) -> None:
  """Raises UserError where two rows of a table were not scored alike; n above all."""
  (first, card), *rest = rows.items()
  fields = [f.name for f in dataclasses.fields(Card) if f.name not in _MAY_DIFFER]
  for name, other in rest:
    for field in fields:
      a, b = getattr(card, field), getattr(other, field)
      if a != b:
        raise UserError(
          f"{field} is {a!r} in row {first!r} and {b!r} in row {name!r}; rows of one table are "
          "scored alike, score one of them again."
        )


def matching_rows(labels: np.ndarray, wanted: np.ndarray, seed: int = 0) -> np.ndarray:
  """Rows of a set that hold every class as often as another set does, drawn without replacement.

  So drawn from the training split and scored against the held-out one, they give the floor: what
  new real images get at this n.

  Args:
    labels: int [n], of the set to draw from.
    wanted: int [m], of the set to match.
    seed: of the draw.

  Returns:
    int [m], ascending.

  Raises:
    UserError: a class has too few images.
  """
  rng, rows = np.random.default_rng(seed), []
  for label, count in zip(*np.unique(wanted, return_counts=True), strict=True):
    have = np.flatnonzero(labels == label)
    if len(have) < count:
      raise UserError(
        f"class {label} has {len(have)} images and {count} are wanted; match a smaller set."
      )
    rows.append(rng.choice(have, count, replace=False))
  return np.sort(np.concatenate(rows))
