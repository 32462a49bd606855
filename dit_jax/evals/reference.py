"""What images are compared with, made once and kept in a file.

The file is an npz that ADM's evaluator reads too (Dhariwal and Nichol 2021): `mu`, `sigma` of the
pooled features, `mu_s`, `sigma_s` of the spatial ones, `arr_0` images; `features` and `meta` are
ours. ADM's own files are read likewise, with what they lack.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable

import jax
import numpy as np

from dit_jax.core import tree as trees
from dit_jax.core.errors import UserError
from dit_jax.evals import npz
from dit_jax.evals.features import Extractor, Features
from dit_jax.evals.moments import Moments

KEPT = 50_000  # features that a stream of any length leaves for KID, precision and recall
ADM_TRUNK, ADM_SIZE = "inception", 299  # pixels a side that ADM's graph resizes to
_STATISTICS = ("mu", "sigma", "mu_s", "sigma_s")
_FACTS = {"described": str, "n": int, "trunk": str, "weights": str}
_FACTS |= {"image_size": int, "eval_size": int}


@dataclasses.dataclass(frozen=True)
class Reference:
  """Statistics of a set's features, maybe the features, and what made them.

  Attributes:
    described: set, split, fingerprint of its source.
    n: images behind the statistics; 0 where a file does not say.
    trunk: the network's name.
    weights: hash of its parameters.
    image_size: pixels a side of the images; 0 where a file does not say.
    eval_size: pixels a side that the trunk saw.
    mu: mean of the pooled features, float64 [d].
    sigma: their covariance (ddof 1), float64 [d, d].
    mu_s: of the spatial features; None where the trunk has none, or a file.
    sigma_s: likewise.
    features: pooled features of m images, float32 [m, d], for KID, precision and recall; None
      where statistics are all there is.
  """

  described: str
  n: int
  trunk: str
  weights: str
  image_size: int
  eval_size: int
  mu: np.ndarray
  sigma: np.ndarray
  mu_s: np.ndarray | None = None
  sigma_s: np.ndarray | None = None
  features: np.ndarray | None = None

  @classmethod
  def of(cls, features: Features, described: str) -> "Reference":
    """Of a set that fits into memory; every feature is kept."""
    return cls.of_parts([features], described, keep=len(features))

  @classmethod
  def of_parts(cls, parts: Iterable[Features], described: str, keep: int = KEPT) -> "Reference":
    """Of a set that comes in parts, statistics of all of it.

    Args:
      parts: features by one extractor of images of one size.
      described: what the set is.
      keep: features to keep; of a longer set, so many drawn without replacement. 0: statistics
        are all there is.

    Raises:
      UserError: fewer than two images.
    """
    rng, pool, spatial, kept, rank = np.random.default_rng(0), None, None, None, np.empty(0)
    for part in parts:
      pool = _merged(pool, part.values)
      spatial = spatial if part.spatial is None else _merged(spatial, part.spatial)
      kept = part.values if kept is None else np.concatenate([kept, part.values])
      rank = np.concatenate([rank, rng.random(len(part))])
      if len(rank) > keep:  # the smallest of all numbers drawn: a sample, wherever parts end
        rows = np.sort(np.argpartition(rank, keep)[:keep])
        kept, rank = kept[rows], rank[rows]
    if pool is None or pool.count < 2:
      raise UserError("a reference needs two images or more; give a larger set.")
    facts = {f: getattr(part, f) for f in ("trunk", "weights", "image_size", "eval_size")}
    if spatial is not None:
      facts |= dict(mu_s=spatial.mean, sigma_s=spatial.covariance)
    return cls(
      described,
      pool.count,
      mu=pool.mean,
      sigma=pool.covariance,
      features=kept if keep else None,
      **facts,
    )

  def save(self, path, images: np.ndarray | None = None) -> None:
    """Writes the file in one move.

    Args:
      path: ends in .npz.
      images: uint8 [n, s, s, 3] for ADM's evaluator, which measures precision and recall on them.
    """
    arrays = {name: getattr(self, name) for name in (*_STATISTICS, "features")}
    arrays["arr_0"] = images
    arrays = {name: array for name, array in arrays.items() if array is not None}
    meta = json.dumps({name: getattr(self, name) for name in _FACTS})
    npz.write(path, arrays | {"meta": np.asarray(meta)})


def cached(path, make: Callable[[], Reference]) -> Reference:
  """What `make` made when it was asked first, from a file whose name says what it depends on.

  Every process reads or makes it, one writes.
  """
  path = pathlib.Path(path)
  if path.exists():
    return _of_ours(path, "")
  made = make()
  if not jax.process_index():
    made.save(path)
  return made


def load(path, extract: Extractor, described: str = "") -> Reference:
  """A reference from a file of ours or of ADM's.

  Statistics in ADM's file are of Inception, with weights that the file does not name: they are
  taken to be those of `extract`. Its images, where there are any, give the features for KID,
  precision and recall, or the whole reference where `extract` is of another trunk.

  Args:
    path: an npz file.
    extract: makes features of the images of ADM's files.
    described: in place of what the file says of itself.

  Raises:
    UserError: the file is missing, damaged or something else, or has statistics of Inception alone
      and `extract` is of another trunk.
  """
  path = pathlib.Path(path)
  held = npz.names(path)
  if "meta" in held:
    return _of_ours(path, described)
  if "arr_0" not in held and not {"mu", "sigma"} <= held:
    raise UserError(
      f"{path} has neither mu and sigma nor images arr_0; give a reference of ours or of ADM's."
    )
  from_images = None
  if "arr_0" in held:
    words = described or f"images of {path.name}"
    from_images = Reference.of_parts(map(extract, npz.images(path)), words)
  if not {"mu", "sigma"} <= held or (from_images and extract.trunk != ADM_TRUNK):
    return from_images
  if extract.trunk != ADM_TRUNK:
    raise UserError(
      f"{path} has statistics of {ADM_TRUNK} alone and the features asked for are of "
      f"{extract.trunk}; score with {ADM_TRUNK}, or give a reference with images."
    )
  arrays = _checked(path, npz.read(path, _STATISTICS))
  return Reference(
    described=described or f"{path.name}, {trees.content_hash(arrays)}",
    n=0,
    trunk=ADM_TRUNK,
    weights=extract.weights,
    image_size=from_images.image_size if from_images else 0,
    eval_size=ADM_SIZE,
    features=from_images.features if from_images else None,
    **arrays,
  )


def _merged(moments: Moments | None, values: np.ndarray) -> Moments:
  new = Moments.of(values)
  return new if moments is None else moments.merged(new)


def _of_ours(path: pathlib.Path, described: str) -> Reference:
  arrays = npz.read(path, (*_STATISTICS, "features", "meta"))
  try:
    meta = json.loads(str(arrays.pop("meta")))
    facts = {name: meta[name] for name in _FACTS}
    foreign = [name for name, kind in _FACTS.items() if type(facts[name]) is not kind]
  except (ValueError, KeyError, TypeError):
    foreign = ["meta"]
  foreign += sorted({"mu", "sigma"} - set(arrays))
  if foreign:
    raise UserError(
      f"{path} is no reference of ours: {', '.join(foreign)} is missing or another thing; make it "
      "again."
    )
  values = arrays.pop("features", None)
  arrays = _checked(path, arrays)
  if values is not None and (values.ndim != 2 or values.shape[1:] != arrays["mu"].shape):
    raise UserError(
      f"features of {path} are {list(values.shape)} and its mean is {list(arrays['mu'].shape)}; "
      "make it again."
    )
  facts["described"] = described or facts["described"]
  return Reference(**facts, **arrays, features=values)


def _checked(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Statistics in float64; a mean without its covariance is left out.

  Raises:
    UserError: a covariance does not fit its mean, or a number is not finite.
  """
  found = {}
  for mu, sigma in (_STATISTICS[:2], _STATISTICS[2:]):
    if not {mu, sigma} <= set(arrays):
      continue
    shape = arrays[mu].shape
    if len(shape) != 1 or arrays[sigma].shape != shape * 2 or not shape[0]:
      raise UserError(
        f"{mu} and {sigma} of {path} are {list(shape)} and {list(arrays[sigma].shape)}, not [d] "
        "and [d, d]; make it or fetch it again."
      )
    for name in (mu, sigma):
      if arrays[name].dtype.kind not in "fiu" or not np.all(np.isfinite(arrays[name])):
        raise UserError(f"{name} of {path} is not finite numbers; make it or fetch it again.")
      found[name] = arrays[name].astype(np.float64)
  return found
