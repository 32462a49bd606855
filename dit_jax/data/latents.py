"""The latent cache: every training image through the autoencoder once, as an ArrayRecord on disk.

A cache is a folder of three files: `records.array_record`, one record an image (and one a flipped
image); `columns.bin`, what is known of all images without reading a moment; `meta.json`, written
last. The folder gets its name when all three are on disk, so a killed write leaves nothing that
passes for a cache. Moments, not samples, are kept: the noise of the posterior stays fresh.
"""

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Sequence

import numpy as np

from dit_jax.core.errors import UserError
from dit_jax.data.hierarchy import ClassTable

_VERSION = 1  # of the layout of the files
_RECORDS, _COLUMNS, _META = "records.array_record", "columns.bin", "meta.json"


def _dtypes(moments: Sequence[int], grains: Sequence[int]) -> tuple[np.dtype, np.dtype]:
  """The layouts of a record and of a row of the columns, little-endian, nothing in between."""
  columns = [
    ("grains", "u1", tuple(grains)),
    ("label", "<i4"),
    ("index", "<i4"),
    ("flipped", "u1"),
  ]
  return np.dtype([("moments", "<f4", tuple(moments)), *columns]), np.dtype(columns)


def write(directory, meta: dict, records: Iterable[dict]) -> None:
  """Writes a cache, all or nothing.

  Args:
    directory: where the cache will be; must not hold anything yet. What a killed write left beside
      it is removed first. One process writes.
    meta: JSON-ready; the fields that `check` compares, and `classes` (ClassTable.to_json).
    records: dicts of moments float32 [h, w, 2 n_z] (means, then log variances), grains uint8
      [rows, cols], label, index and flipped, all of equal shapes.

  Raises:
    UserError: the directory is taken.
  """
  directory = pathlib.Path(directory)
  if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
    raise UserError(f"{directory} exists already; delete it to write the latents again.")
  temporary = directory.with_name(f"{directory.name}.tmp")
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir(parents=True)
  try:
    layout = _write_records(temporary, records)
    text = json.dumps({"version": _VERSION, **layout, "meta": meta}, indent=2)
    (temporary / _META).write_text(text, encoding="utf-8")
    for name in (_RECORDS, _COLUMNS, _META, "."):
      _sync(temporary / name)
    os.replace(temporary, directory)
    _sync(directory.parent)
  except BaseException:
    shutil.rmtree(temporary, ignore_errors=True)
    raise


def _write_records(folder: pathlib.Path, records: Iterable[dict]) -> dict:
  from array_record.python import array_record_module

  writer = array_record_module.ArrayRecordWriter(str(folder / _RECORDS), "group_size:1")
  count, shapes, dtype, digest = 0, {}, None, hashlib.sha256()
  try:
    with open(folder / _COLUMNS, "wb") as columns:
      for record in records:
        if dtype is None:
          shapes = {name: list(np.shape(record[name])) for name in ("moments", "grains")}
          dtype, row_dtype = _dtypes(**shapes)
        row, column = np.zeros((), dtype), np.zeros((), row_dtype)
        for name in dtype.names:
          value = np.asarray(record[name])
          assert list(value.shape) == shapes.get(name, []), f"record {count}: {name} {value.shape}"
          row[name] = value
          if name in row_dtype.names:
            column[name] = value
        writer.write(row.tobytes())
        columns.write(column.tobytes())
        digest.update(column.tobytes())
        count += 1
  finally:
    writer.close()
  assert count, "a latent cache of no image"
  return {"count": count, **shapes, "columns": digest.hexdigest()}


def _sync(path: pathlib.Path) -> None:
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def check(directory, key: dict) -> None:
  """Refuses a cache that was made from something else.

  Args:
    directory: of a cache.
    key: the fields of its meta that must be equal: hash of the autoencoder, fingerprint of the
      data, thresholds, image size, ...

  Raises:
    UserError: naming the fields that differ, old -> new; or there is no readable cache.
  """
  old = _read_meta(pathlib.Path(directory))["meta"]
  new = json.loads(json.dumps(key))
  changed = [f"{k}: {old.get(k, '(absent)')} -> {v}" for k, v in new.items() if old.get(k) != v]
  if changed:
    raise UserError(
      f"the latent cache {directory} is stale ({'; '.join(changed)}); delete it to have it written "
      "again, or go back to what it was made from."
    )


def _read_meta(directory: pathlib.Path) -> dict:
  try:
    meta = json.loads((directory / _META).read_text(encoding="utf-8"))
  except FileNotFoundError as e:
    raise UserError(f"{directory} is no latent cache: it has no {_META}; delete it.") from e
  except (OSError, ValueError) as e:
    raise UserError(f"{directory / _META} cannot be read ({e}); delete the latent cache.") from e
  if not isinstance(meta, dict) or meta.get("version") != _VERSION:
    raise UserError(
      f"the latent cache {directory} has another layout than this version's {_VERSION}; delete it."
    )
  return meta


class LatentSource:
  """Random access to a cache, in the order in which it was written; safe to read from threads.

  Attributes:
    directory: where it is.
    meta: what the cache was made from.
    moments_shape: (h, w, 2 n_z).
    classes: the class table of the images.
    labels: int32 [n].
    indices: int32 [n], of the images; an image and its flipped copy share theirs.
    grains: uint8 [n, rows, cols], every grain map.
    flipped: bool [n].
    fingerprint: sixteen hex digits over meta, shapes, maps and labels, not over moments.
  """

  def __init__(self, directory):
    """Opens a cache; raises UserError where there is none, or it is damaged."""
    from array_record.python import array_record_module

    self.directory = pathlib.Path(directory)
    meta = _read_meta(self.directory)
    self.meta = meta["meta"]
    self.classes = ClassTable.from_json(self.meta.get("classes", ClassTable().to_json()))
    text = json.dumps(meta, sort_keys=True)
    self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
    self.moments_shape = tuple(meta["moments"])
    self._dtype, row = _dtypes(meta["moments"], meta["grains"])
    try:
      data = (self.directory / _COLUMNS).read_bytes()
      self._reader = array_record_module.ArrayRecordReader(
        str(self.directory / _RECORDS), options="readahead_buffer_size:0"
      )
      count = self._reader.num_records()
    except (OSError, RuntimeError, ValueError, IndexError) as e:
      raise self._damaged(e) from e
    if count != meta["count"]:
      raise self._damaged(f"{count} of {meta['count']} records")
    if hashlib.sha256(data).hexdigest() != meta["columns"]:  # ArrayRecord checks its own bytes
      raise self._damaged(f"{_COLUMNS} is not as it was written")
    columns = np.frombuffer(data, row)
    self.labels, self.indices = columns["label"].astype(np.int32), columns["index"].astype(np.int32)
    self.flipped = columns["flipped"].astype(bool)
    self.grains = np.ascontiguousarray(columns["grains"])

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, position: int) -> dict[str, np.ndarray]:
    """One image: moments float32 [h, w, 2 n_z], grains int32 [rows, cols], label, index int32."""
    if not 0 <= position < len(self):
      raise IndexError(f"{position=} of {len(self)} latents")
    return {name: x[0] for name, x in self.read([position]).items()}

  def read(self, positions: Sequence[int]) -> dict[str, np.ndarray]:
    """Many images in one call, stacked in the order of the positions.

    Raises:
      UserError: the records are damaged.
    """
    try:
      data = b"".join(self._reader.read([int(i) for i in positions]))
      rows = np.frombuffer(data, self._dtype)
    except (OSError, RuntimeError, ValueError, IndexError) as e:
      raise self._damaged(e) from e
    return {
      "moments": rows["moments"].copy(),
      "grains": rows["grains"].astype(np.int32),
      "label": rows["label"].astype(np.int32),
      "index": rows["index"].astype(np.int32),
    }

  def name(self, position: int) -> str:
    """An image, for messages."""
    return f"{self.directory.name}[{position}]"

  @property
  def skipped(self) -> list[str]:
    """Nothing: broken images never came in."""
    return []

  def _damaged(self, what) -> UserError:
    return UserError(f"the latent cache {self.directory} is damaged ({what}); delete it.")


def latent_stats(
  source: LatentSource, factors: tuple[int, ...], batch_size: int = 256
) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation of sampled codes, per grain and channel.

  Over unique codes, not their copies, of the images that are not flipped; a sampled code's variance
  is that of its mean plus its mean variance. One pass, in float64.

  Args:
    source: the cache of the training set.
    factors: f_1 < ... < f_k.
    batch_size: records read at once.

  Returns:
    Two float64 [k, n_z], grain 0 the coarsest; 0 and 1 for a grain that no region has.
  """
  k, span = len(factors), factors[-1] // factors[0]
  positions = np.flatnonzero(~source.flipped)
  channels = source.moments_shape[-1] // 2
  count, first, second = np.zeros((k, 1)), np.zeros((k, channels)), np.zeros((k, channels))
  for start in range(0, len(positions), batch_size):
    batch = source.read(positions[start : start + batch_size])
    for g, f in enumerate(reversed(factors)):
      s = f // factors[0]  # cells a side that one code of grain g fills
      codes = batch["moments"][:, ::s, ::s].astype(np.float64)
      has_grain = (batch["grains"] == g).repeat(span // s, 1).repeat(span // s, 2)
      mean, log_var = np.split(codes[has_grain], 2, -1)
      count[g] += len(mean)
      first[g] += mean.sum(0)
      second[g] += (mean**2 + np.exp(np.clip(log_var, -30, 20))).sum(0)  # as it is sampled
  n = np.maximum(count, 1)
  variance = np.maximum(second / n - (first / n) ** 2, 0)
  return first / n, np.where(count > 0, np.sqrt(variance), 1.0)
