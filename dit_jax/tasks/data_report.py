"""What a data set holds, before anything is trained on it: classes, sizes, entropies, grain maps.

Thresholds and maps are those that training makes (data.grain_maps), of at most MAX_PIXELS pixels,
a minute's work of one core, and no more images than training measures.
"""

import collections
import itertools
import pathlib

import numpy as np

from dit_jax.core.errors import UserError
from dit_jax.data import grain_maps
from dit_jax.sampling import grids

MAX_PIXELS = 2**28  # 4,096 images of 256 px
BINS = 20  # of the histogram
BAR = 40  # characters of its longest bar
NAMED = 5  # unreadable images that the text names
SHOWN, COLUMNS = 16, 8  # pictures of the sheet, and in a row
QUANTILES = (0, 5, 25, 50, 75, 95, 100)  # per cent


def measure(source, ratios: tuple[float, ...], region: int, sheet: str = "") -> dict:
  """Facts of a data set, JSON-ready.

  Args:
    source: of data.sources.
    ratios: wanted share of regions a grain, coarsest first, summing to 1.
    region: side of a region in pixels, the coarsest factor.
    sheet: a PNG file for pictures with their maps; "" writes none.

  Raises:
    UserError: no image can be read, all regions are equal, regions do not tile the images, or the
      sheet cannot be written.
  """
  most = min(grain_maps.MAX_IMAGES, max(SHOWN, MAX_PIXELS // source.image_size**2))
  indices, values, record = grain_maps.survey(source, region, ratios, most)
  maps = grain_maps.GrainMaps.from_record(record)
  fine = np.mean(values > maps.taus[0], axis=(1, 2)) if maps.taus else np.zeros(len(values))
  ends = values.min(), values.max()
  if ends[1] - ends[0] < 1e-6:  # equal but for rounding
    ends = ends[0] - 0.5, ends[1] + 0.5
  counts, edges = np.histogram(values, BINS, ends)
  facts = classes(source) | {
    "image_size": source.image_size,
    "read": len(indices),
    "skipped": source.reasons,
    "sizes": _sizes(source, np.flatnonzero(np.isin(source.indices, indices))),
    "entropies": {"region": region, "edges": edges.tolist(), "counts": counts.tolist()},
    "grains": {
      "ratios": list(ratios),
      "thresholds": record["taus"],
      "atoms": record["atoms"],
      "fractions": record["fractions"],
      "told": maps.describe(),
    },
    "fine_fraction": {
      "mean": float(fine.mean()),
      "std": float(fine.std()),
      "quantiles": dict(zip(map(str, QUANTILES), np.percentile(fine, QUANTILES), strict=True)),
    },
    "sheet": sheet,
  }
  if sheet:
    _save(sheet, picture(source, maps))
  return facts


def classes(source) -> dict:
  """The class table: names, parents and counts."""
  table, counts = source.classes, collections.Counter(source.labels.tolist())
  return {
    "images": len(source),
    "classes": {"children": len(table.children), "superclasses": len(table.superclasses)},
    "table": [
      {"id": i, "name": name, "superclass": table.superclasses[parent], "images": counts[i]}
      for i, (name, parent) in enumerate(zip(table.children, table.parents, strict=True))
    ],
    "empty_folders": list(source.empty),
  }


def picture(source, maps: grain_maps.GrainMaps) -> np.ndarray:
  """Evenly spaced images, each row above the same with its fine regions tinted, [H, W, 3]."""
  places = np.linspace(0, len(source) - 1, min(SHOWN, len(source))).round().astype(int)
  images = np.stack([source[int(i)]["image"] for i in places])
  grains = np.stack([maps.of(image) for image in images])
  tinted = grids.overlay(images, grains, len(maps.taus) + 1)
  titled = []
  for start in range(0, len(images), COLUMNS):
    row = slice(start, start + COLUMNS)
    titled += [("images", images[row]), ("fine regions", tinted[row])]
  return grids.blocks(titled, min(COLUMNS, len(images)))


def lines(facts: dict, table: bool = True) -> list[str]:
  """The same facts for a person; without the rows of the class table where it was told before."""
  head = "{images:,} images, {classes[children]} classes in {classes[superclasses]} superclasses"
  told = [head.format(**facts)]
  if table:
    told += [
      f"{r['id']:5d}  {r['images']:6d}  {r['superclass']} / {r['name']}" for r in facts["table"]
    ]
  told += [f"empty: {name}" for name in facts["empty_folders"]]
  skipped, size = facts["skipped"], facts["image_size"]
  told.append(f"read     {facts['read']:,} of {facts['images']:,} images, evenly spaced")
  if skipped:
    told.append(f"skipped  {len(skipped):,} unreadable")
    told += [f"  {name}: {reason}" for name, reason in itertools.islice(skipped.items(), NAMED)]
    told += ["  ..."] * (len(skipped) > NAMED)
  told.append(
    "sizes    short sides of {least} to {most} pixels, half of them at most {median}; {smaller:,} "
    "images are".format(**facts["sizes"])
    + f" smaller than {size} and scaled up"
  )
  wanted = ", ".join(f"{ratio:.2%}" for ratio in facts["grains"]["ratios"])
  told += _histogram(facts["entropies"], facts["grains"]["thresholds"])
  told.append(f"grains   wanted {wanted}; {facts['grains']['told']}")
  spread = facts["fine_fraction"]
  told.append(
    f"fine     {spread['mean']:.2%} of all regions; from image to image a deviation of "
    f"{spread['std']:.2%}, percentiles "
    + ", ".join(f"{q}: {value:.0%}" for q, value in spread["quantiles"].items())
  )
  if facts["sheet"]:
    told.append(f"sheet    {facts['sheet']}: images, and their fine regions tinted")
  return told


def _histogram(entropies: dict, thresholds: list[float]) -> list[str]:
  """A bar a bin, and the thresholds behind the bins they fall in."""
  edges, counts = entropies["edges"], entropies["counts"]
  total, side = sum(counts), entropies["region"]
  rows = [f"entropy  of {total:,} regions of {side} x {side} pixels, in nats"]
  for low, high, count in zip(edges, edges[1:], counts, strict=False):
    bar = "#" * round(BAR * count / max(counts))
    marks = [f"<- threshold {t:.4f}" for t in thresholds if low <= t < high]
    rows.append(f"  {low:6.3f} {high:6.3f} {count / total:7.2%}  {bar} {' '.join(marks)}".rstrip())
  return rows


def _sizes(source, positions: np.ndarray) -> dict:
  """Short sides of images that can be read."""
  sides = np.asarray([source.short_side(int(i)) for i in positions])
  return {
    "smaller": int(np.sum(sides < source.image_size)),
    "least": int(sides.min()),
    "median": int(np.median(sides)),
    "most": int(sides.max()),
  }


def _save(sheet: str, image: np.ndarray) -> None:
  path = pathlib.Path(sheet).expanduser()
  try:
    if path.is_dir():
      raise IsADirectoryError(f"{path} is a folder")
    grids.save_png(path, image)
  except OSError as e:
    raise UserError(
      f"--sheet={sheet} cannot be written ({e}); name a .png file where you may write."
    ) from e
