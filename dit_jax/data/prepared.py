"""Sets that TensorFlow Datasets has prepared as ArrayRecord: read in place, without TensorFlow.

A prepared set is a folder NAME/VERSION or NAME/CONFIG/VERSION with dataset_info.json and
features.json beside the shards. Nothing is downloaded and no code of a builder runs.
"""

import collections
import functools
import json
import os
import re
from collections.abc import Iterator

from dit_jax.core.errors import UserError
from dit_jax.data import columns, layout, splits
from dit_jax.data.hierarchy import did_you_mean, printable
from dit_jax.data.images import BrokenImage, ImageFile, order

SOURCE = "tfds:"
INFO, FEATURES = "dataset_info.json", "features.json"
_SUPERS = (*columns.SUPERS, "species")
_CLASSES = ("pythonClassName", "python_class_name", "type")  # protobuf reads two spellings
_TEXTS = ("json", "content")  # of a JsonFeature, and of a proto in the form with "type"


class Prepared:
  """A store over the records of prepared splits; a name is "SPLIT/NUMBER"."""

  def __init__(self, where: str, records: dict, image: str):
    self.where = printable(where)
    self._records, self._image = records, image

  def read(self, name: str) -> bytes:
    """The bytes of an image. Raises BrokenImage for a record that cannot be read."""
    split, _, number = name.rpartition("/")
    try:
      data = self._records[split][int(number)][self._image]
    except Exception as e:  # the readers of records and of examples have errors of their own
      raise BrokenImage(f"the record cannot be read ({type(e).__name__}: {e})") from e
    if not isinstance(data, bytes):
      raise BrokenImage("the record has no encoded image")
    return data


def is_prepared(folder: str) -> bool:
  """Whether a folder is a prepared set."""
  return all(os.path.isfile(os.path.join(folder, name)) for name in (INFO, FEATURES))


def folder_of(source: str, data_dir: str) -> str:
  """The folder of the newest prepared version of "tfds:NAME", "tfds:NAME:CONFIG" or "...:VERSION".

  Args:
    source: the name.
    data_dir: where TFDS keeps its sets; "": TFDS_DATA_DIR, else ~/tensorflow_datasets.

  Raises:
    UserError: it is not there.
  """
  parts = source.removeprefix(SOURCE).replace(":", "/").split("/")
  if not all(re.fullmatch(r"\w[\w.+-]*", part) for part in parts):
    raise UserError(f"data.source={source!r} must be 'tfds:NAME' or 'tfds:NAME:CONFIG'.")
  data_dir = data_dir or os.environ.get("TFDS_DATA_DIR", "") or "~/tensorflow_datasets"
  data_dir = os.path.expanduser(data_dir)
  folder = os.path.join(data_dir, *parts)
  if is_prepared(folder):
    return folder
  found = _versions(folder)
  if not found and len(parts) == 1:  # its only config
    configs = [name for name in _folders(folder) if _versions(os.path.join(folder, name))]
    if len(configs) > 1:
      raise UserError(
        f"data.source={source!r} has the configs {', '.join(configs)} in {printable(data_dir)!r}; "
        f"choose one, as '{source}:{configs[0]}'."
      )
    folder = os.path.join(folder, *configs)
    found = _versions(folder)
  if not found:
    near = did_you_mean(parts[0], _folders(data_dir))
    raise UserError(
      f"data.source={source!r} is not prepared in {printable(data_dir)!r}{near}; prepare it once, "
      f"tfds build {'/'.join(parts)} --file_format=array_record, or set data.path to the folder of "
      "prepared sets."
    )
  return os.path.join(folder, found[-1])


def _folders(folder: str) -> list[str]:
  if not os.path.isdir(folder):
    return []
  return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())


def _versions(folder: str) -> list[str]:
  """Prepared versions in a folder, oldest first."""
  numbers = [name for name in _folders(folder) if re.fullmatch(r"\d+\.\d+\.\d+", name)]
  ready = [name for name in numbers if is_prepared(os.path.join(folder, name))]
  return sorted(ready, key=lambda name: tuple(map(int, name.split("."))))


def scan(folder: str, data) -> tuple[Prepared, list[ImageFile], list[str]]:
  """The images of a prepared set; every record is read for its labels, once a process.

  Args:
    folder: of the version.
    data: `split`, `label_key` and `super_key` of a config, where it has them.

  Raises:
    UserError: it is damaged, in another format, or lacks a feature: an image, or one asked for.
  """
  where = repr(printable(folder))
  builder = _builder(folder, where)
  features = builder.info.features
  kinds = {name: type(feature).__name__ for name, feature in features.items()}
  image = columns.find([n for n, kind in kinds.items() if kind == "Image"], columns.IMAGES)
  if not image:
    raise UserError(f"{where} has no image, only {', '.join(kinds)}; give a set of images.")
  scalars = [name for name, feature in features.items() if feature.shape == ()]
  keys = columns.levels(scalars, data, where, _SUPERS)
  sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
  sizes = {name: size for name, size in sizes.items() if size}
  roles = splits.choose(sizes, splits.chosen(data), where)
  records, files, labels = {}, [], []
  stamp = os.stat(os.path.join(folder, INFO)).st_mtime_ns
  for split in roles:
    records[split], own = _records(folder, split, keys, stamp)
    labels += own
    size = int(builder.info.splits[split].num_bytes)  # of all: no single one is known
    files += [
      ImageFile(f"{split}/{i:09}", size, split=roles[split]) for i in range(len(records[split]))
    ]
  levels = [_names(features[key], [way[i] for way in labels], where) for i, key in enumerate(keys)]
  ways = (tuple(n[value] for n, value in zip(levels, way, strict=True)) for way in labels)
  files = [layout.under(f, way) if way else f for f, way in zip(files, ways, strict=True)]
  return Prepared(folder, records, image), sorted(files, key=order), []


def _builder(folder: str, where: str):
  """A builder that only reads; features.json may name no class but those of TFDS."""
  _refuse_foreign(folder, where)
  import tensorflow_datasets as tfds  # two thirds of a second

  try:
    builder = tfds.builder_from_directory(folder)
    file_format, ready = builder.info.file_format, builder.info.splits
    dict(builder.info.features)  # a single feature is no image with a label
  except Exception as e:  # TFDS answers damaged files with errors of many kinds
    reason = type(e).__name__
    raise UserError(f"{where} cannot be read as a set of TFDS ({reason}); get it anew.") from e
  if file_format is None or file_format.value != "array_record" or not ready:
    kind = file_format.value if file_format else "unknown"
    raise UserError(
      f"{where} is prepared in the format {kind}, in which one image cannot be read by itself; "
      "prepare it anew with --file_format=array_record."
    )
  return builder


def _refuse_foreign(folder: str, where: str) -> None:
  """TFDS imports the modules that features.json names, whatever they are."""
  try:
    with open(os.path.join(folder, FEATURES), encoding="utf-8") as f:
      pairs = list(_pairs(f.read()))
  except (OSError, ValueError, RecursionError) as e:
    raise UserError(f"{FEATURES} in {where} cannot be read ({e}); get the set anew.") from e
  for key, value in pairs:
    named = key in _CLASSES and isinstance(value, str)  # a feature may be called "type"
    if named and not value.startswith("tensorflow_datasets."):
      raise UserError(f"{FEATURES} in {where} names {value!r}, no class of TFDS; do not trust it.")


def _pairs(text: str) -> Iterator[tuple[str, object]]:
  """Every key and value in a text of JSON, and in the texts of JSON in it that TFDS reads."""
  todo = collections.deque([json.loads(text)])
  while todo:
    item = todo.popleft()
    if isinstance(item, list):
      todo.extend(item)
    elif isinstance(item, dict):
      yield from item.items()
      todo.extend(
        json.loads(value) if key in _TEXTS and isinstance(value, str) else value
        for key, value in item.items()
      )


@functools.lru_cache(maxsize=8)
def _records(folder: str, split: str, keys: tuple[str, ...], stamp: int) -> tuple:
  """Random access to the examples of a split, images as they are stored; and their labels."""
  import tensorflow_datasets as tfds

  del stamp  # tells the set from another in its place
  where = repr(printable(folder))
  builder = _builder(folder, where)
  images = [n for n, f in builder.info.features.items() if type(f).__name__ == "Image"]
  decoders = {name: tfds.decode.SkipDecoding() for name in images}
  records = builder.as_data_source(split=split, decoders=decoders)
  return records, _labels(records, keys, f"the split {split!r} of {where}")


def _labels(records, keys: tuple[str, ...], where: str) -> list[tuple]:
  """The classes of every record, as the set has them; nothing is read where it has none."""
  if not keys:
    return [()] * len(records)
  try:
    labels = [tuple(record[key] for key in keys) for record in records]
  except Exception as e:  # see Prepared.read
    raise UserError(f"a record of {where} cannot be read ({type(e).__name__}); get it anew.") from e
  if any(value is None for way in labels for value in way):
    raise UserError(f"a record of {where} has no {' or '.join(keys)}; get the set anew.")
  return labels


def _names(feature, values: list, where: str) -> dict:
  """Names of the classes of one feature."""
  if getattr(feature, "num_classes", None):
    return columns.by_number(map(int, values), feature.names, where)
  text = {v: v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in set(values)}
  clean = {v: printable(t.strip()).replace("/", "-") or "-" for v, t in text.items()}
  padded = columns.by_text(clean.values())
  return {value: padded[name] for value, name in clean.items()}
