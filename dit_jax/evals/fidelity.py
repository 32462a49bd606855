"""How near a set of pictures is to another, by ADM's metrics on a trunk's features.

The trunk gives the numbers their names: FID and sFID are distances on Inception; on the classifiers
of LPIPS they are VGG-FD, VGG-KID and so on, never FID. A Frechet distance falls as n grows, so rows
of one table have the same n.
"""

import dataclasses
import json
from collections.abc import Mapping

import numpy as np

from dit_jax.core.errors import UserError
from dit_jax.evals import frechet, kid, neighbours
from dit_jax.evals.features import Extractor, Features
from dit_jax.evals.inception_score import inception_score
from dit_jax.evals.moments import Moments
from dit_jax.evals.reference import Reference

NAMES = {  # Frechet distance, kernel distance, and where the pictures lie
  "inception": ("FID", "KID", "precision", "recall"),
  "vgg16": ("VGG-FD", "VGG-KID", "VGG-precision", "VGG-recall"),
  "alexnet": ("AlexNet-FD", "AlexNet-KID", "AlexNet-precision", "AlexNet-recall"),
}
SMALLEST_N = 4  # halves of two: KID's spread; and three neighbours
_MAY_DIFFER = ("metrics", "seed", "image_size", "sampling")  # between rows of one table


@dataclasses.dataclass(frozen=True)
class Card:
  """A score and what has to be known to repeat it; JSON gives back the same card.

  Attributes:
    metrics: numbers by name; of KID the estimate on all images, and the mean and sd over subsets.
    n: images scored.
    image_size: their pixels a side.
    reference: what they are compared with, in words.
    reference_n: its images; 0 where a file of statistics does not say.
    eval_size: pixels a side that the trunk saw.
    trunk: a key of `NAMES`.
    weights: hash of its parameters.
    kid_subset: images a side in a subset of KID; 0 where it is left out.
    seed: of the subsets.
    reference_features: images behind KID, precision and recall; 0 where they are left out, or
      where they are all of reference_n.
    left_out: why, by the name of a metric that the trunk has and the reference does not allow.
    evaluator: who scored; of the caller's choosing.
    sampling: how the images were made, in JSON's types: checkpoint, step, EMA, sampler, guidance,
      labels; of the caller's choosing.
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
  reference_features: int = 0
  left_out: dict[str, str] = dataclasses.field(default_factory=dict)
  evaluator: str = ""
  sampling: dict = dataclasses.field(default_factory=dict)

  def to_json(self) -> str:
    """One indented object; `Card(**json.loads(text))` takes it back."""
    return json.dumps(dataclasses.asdict(self), indent=2)


def score(
  images: np.ndarray | Features,
  reference: np.ndarray | Features | Reference,
  extract: Extractor,
  described: str,
  seed: int = 0,
) -> Card:
  """Distances of images to a reference.

  Args:
    images: uint8 [n, s, s, 3], or their features; the inception score takes them in this order.
    reference: likewise, or a `Reference`; features or a reference where several rows share it.
    extract: makes the features that are not there yet.
    described: what the reference is: set, split, fingerprint of its source; "" takes a
      `Reference`'s own words.
    seed: of KID's subsets.

  Raises:
    UserError: features of two kinds, fewer than four images on a side, or images that the trunk
      does not take.
  """
  x, y = (a if isinstance(a, Features | Reference) else extract(a) for a in (images, reference))
  refuse_other_kind(x.trunk, x.weights, x.eval_size, y)
  features = y.values if isinstance(y, Features) else y.features
  compared = y.n if features is None else len(features)
  if len(x) < SMALLEST_N or (features is not None and compared < SMALLEST_N):
    raise UserError(
      f"scoring needs {SMALLEST_N} images or more a side, not {len(x)} and {compared}."
    )
  y = Reference.of(y, described) if isinstance(y, Features) else y
  if x.values.shape[1:] != y.mu.shape:
    raise UserError(
      f"the images have {x.values.shape[1]} features each and the reference {len(y.mu)}; make "
      "both with one extractor."
    )
  metrics, left_out, subset = _measure(x, y, seed)
  return Card(
    metrics=metrics,
    n=len(x),
    image_size=x.image_size,
    reference=described or y.described,
    reference_n=y.n,
    eval_size=x.eval_size,
    trunk=x.trunk,
    weights=x.weights,
    kid_subset=subset,
    seed=seed,
    reference_features=0 if compared == y.n else compared,
    left_out=left_out,
  )


def _measure(x: Features, y: Reference, seed: int) -> tuple[dict[str, float], dict[str, str], int]:
  """Metrics, what is left out, and the subsets' size."""
  fd, kernel, precision, recall = NAMES[x.trunk]
  metrics, left_out, subset = {fd: _distance(x.values, y.mu, y.sigma)}, {}, 0
  if x.trunk == "inception":
    if x.spatial is None or y.mu_s is None:
      side = "images have" if x.spatial is None else "reference has"
      left_out["sFID"] = f"the {side} no spatial features"
    else:
      metrics["sFID"] = _distance(x.spatial, y.mu_s, y.sigma_s)
    if x.logits is None:
      left_out["IS"] = "the images have no logits"
    else:
      metrics["IS"] = inception_score(x.logits)
  if y.features is None:
    why = "the reference is statistics alone, without features or images"
    left_out |= dict.fromkeys((kernel, precision, recall), why)
  else:
    k = kid.kid(x.values, y.features, seed)
    subset = k.subset
    metrics |= {kernel: k.value, f"{kernel} mean": k.mean, f"{kernel} sd": k.sd}
    pair = neighbours.precision_recall(x.values, y.features)
    metrics |= dict(zip((precision, recall), pair, strict=True))
  return metrics, left_out, subset


def _distance(values: np.ndarray, mu: np.ndarray, sigma: np.ndarray) -> float:
  x = Moments.of(values)
  return frechet.between(x.mean, x.covariance, mu, sigma)


def refuse_other_kind(
  trunk: str, weights: str, eval_size: int, reference: Features | Reference
) -> None:
  """Raises UserError where features made so cannot be compared with a reference."""
  for field, ours in (("trunk", trunk), ("weights", weights), ("eval_size", eval_size)):
    if ours != (theirs := getattr(reference, field)):
      raise UserError(
        f"{field} of the images is {ours!r} and of the reference {theirs!r}; make both features "
        "with one extractor."
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
