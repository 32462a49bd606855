"""Grain maps of a data set: entropies once, global thresholds, one map an image.

The thresholds are percentiles of the training set's region entropies, made by our own function on
the user's own images and kept beside the fingerprint of those images (D2iT, dynamic grain coding).
"""

import json
import pathlib

import numpy as np

from dit_jax.core import entropy, files
from dit_jax.core.errors import UserError

FUNCTION = "grey KDE entropy, 256 bins, sigma 0.01, nats"
MAX_IMAGES = 20_000  # a larger set is represented by so many


class GrainMaps:
  """Thresholds of a training set, and the grain map of any image under them.

  Attributes:
    taus: k - 1 ascending thresholds in nats; a region is finer where its entropy exceeds them.
    record: what the thresholds were made from, as JSON-ready values.
  """

  def __init__(self, taus, region: int, record: dict, known: dict[int, np.ndarray] | None = None):
    self.taus = tuple(float(t) for t in taus)
    self.region = region
    self.record = record
    self._known = dict(known or {})  # image index -> map; filled as images are met

  @classmethod
  def from_record(cls, record: dict) -> "GrainMaps":
    """The maps of a stored record, on images that need not be the training set."""
    _refuse_other_function(record)
    return cls(record["taus"], record["region"], record)

  def describe(self) -> str:
    """Thresholds, the realised share of every grain and the atoms at the thresholds, in a line."""
    if not self.taus:
      return "one grain: every region alike"
    join = lambda values, form: ", ".join(format(v, form) for v in values)
    fractions = self.record["fractions"]
    unused = "" if all(fractions) else "; A GRAIN IS NEVER USED: the thresholds coincide"
    return (
      f"thresholds {join(self.taus, '.4f')} nats; share of regions by grain, coarsest first, "
      f"{join(fractions, '.2%')}; largest atom at a threshold {join(self.record['atoms'], '.2%')}"
      f"{unused}"
    )

  def of(self, image: np.ndarray) -> np.ndarray:
    """The map, uint8 [S / region, S / region], of one uint8 image [S, S, 3]."""
    if not self.taus:
      return np.zeros((image.shape[0] // self.region, image.shape[1] // self.region), np.uint8)
    return entropy.grain_map(entropy.region_entropy(image, self.region), self.taus)

  def budget_of(self, image: np.ndarray) -> np.ndarray:
    """A map with the recipe's shares in every image: its own most detailed regions are fine."""
    values = entropy.region_entropy(image, self.region)
    return entropy.budget_map(values, tuple(self.record["ratios"]))

  def add_to(self, batch: dict) -> dict:
    """Adds `grains` int32 [b, rows, cols] to a batch that has `image` and `index`."""
    maps = []
    for image, index in zip(batch["image"], batch["index"], strict=True):
      if int(index) not in self._known:
        self._known[int(index)] = self.of(image)
      maps.append(self._known[int(index)])
    return {**batch, "grains": np.stack(maps).astype(np.int32)}


def one_grain(region: int) -> dict:
  """The record of maps with one grain, which need no image."""
  return {"function": FUNCTION, "region": region, "taus": [], "fractions": [1.0]}


def measure(
  source, region: int, ratios: tuple[float, ...], path: pathlib.Path, max_images: int = MAX_IMAGES
) -> GrainMaps:
  """Thresholds from the images of `source`, kept in `path` and read from there the next time.

  Args:
    source: random access to {"image": uint8 [S, S, 3], "index"}, with a fingerprint.
    region: side of a region in pixels, the coarsest factor.
    ratios: share of regions a grain, coarsest first, summing to 1.
    path: an .npz file; made atomically, so a killed run leaves none.
    max_images: a larger set is represented by this many images, evenly spaced.

  Raises:
    UserError: the file at `path` was made from other data, sizes or ratios.
  """
  if len(ratios) == 1:  # one grain: nothing to measure
    return GrainMaps((), region, one_grain(region))
  if path.exists():
    want = _wanted(source, region, ratios, min(len(source), max_images))
    indices, values, record = _read(path)
    _refuse_other(record, want, path)
  else:
    indices, values, record = survey(source, region, ratios, max_images)
    _write(path, indices, values, record)
  maps = entropy.grain_map(values, record["taus"])
  return GrainMaps(record["taus"], region, record, dict(zip(indices.tolist(), maps, strict=True)))


def survey(
  source, region: int, ratios: tuple[float, ...], max_images: int = MAX_IMAGES
) -> tuple[np.ndarray, np.ndarray, dict]:
  """The entropies of evenly spaced images, and the thresholds that they give.

  Args:
    source, region, ratios, max_images: as for `measure`.

  Returns:
    The indices of the images; their entropies in nats, float64 [n, S / region, S / region]; the
    record of the thresholds.

  Raises:
    UserError: no image can be read, or all regions are equal.
  """
  count = min(len(source), max_images)
  indices, values = _entropies(source, region, count)
  taus = entropy.thresholds(values.ravel(), ratios)
  record = {
    **_wanted(source, region, ratios, count),
    "taus": [float(t) for t in taus],
    "atoms": [float(entropy.atom_mass(values.ravel(), t)) for t in taus],
  }
  maps = entropy.grain_map(values, record["taus"])
  counts = np.bincount(maps.ravel(), minlength=len(ratios))
  record["fractions"] = (counts / counts.sum()).tolist()
  return indices, values, record


def _wanted(source, region: int, ratios: tuple[float, ...], count: int) -> dict:
  """What a record of `count` images must say of where it comes from."""
  return {
    "function": FUNCTION,
    "region": region,
    "ratios": list(ratios),
    "fingerprint": source.fingerprint,
    "images": count,
  }


def _entropies(source, region: int, count: int) -> tuple[np.ndarray, np.ndarray]:
  found = {}
  for position in np.linspace(0, len(source) - 1, count).round().astype(int):
    item = source[int(position)]
    index = int(item["index"])  # a broken image answers with its neighbour: counted once
    if index not in found:
      found[index] = entropy.region_entropy(item["image"], region)
  return np.asarray(list(found)), np.stack(list(found.values()))


def _write(path: pathlib.Path, indices, values, record: dict) -> None:
  with files.in_one_move(path) as half, half.open("wb") as file:  # every process writes the same
    np.savez_compressed(file, indices=indices, entropies=values, record=json.dumps(record))


def _read(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray, dict]:
  with np.load(path) as file:
    return file["indices"], file["entropies"], json.loads(str(file["record"]))


def _refuse_other(record: dict, want: dict, path: pathlib.Path) -> None:
  changed = [f"{k}: {record.get(k)} -> {v}" for k, v in want.items() if record.get(k) != v]
  if changed:
    raise UserError(
      f"The entropy thresholds in {path} were made for other data ({'; '.join(changed)}); "
      "use a new --workdir, or go back to the data they were made from."
    )


def _refuse_other_function(record: dict) -> None:
  if record.get("function") != FUNCTION:
    raise UserError(
      f"The stored thresholds come from {record.get('function')!r}, this version computes "
      f"{FUNCTION!r}; train the dvae stage again in a new --workdir."
    )
