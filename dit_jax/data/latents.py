"""The latent cache: every training image through the autoencoder once, on disk.

A cache is a folder of three files: `moments.bin`, one record an image (and one a flipped image);
`columns.bin`, what is known of all images without reading a moment; `meta.json`, written last. The
folder gets its name when all three are on disk, so a killed write leaves nothing that passes for a
cache. Moments, not samples, are kept: the noise of the posterior stays fresh.

A record is the moments of an image as they lie in memory, so that it is read straight into the
batch, without a lock; behind the last one come the CRC-32 of all, and every read is checked.
"""

import hashlib
import json
import math
import os
import pathlib
import shutil
import weakref
import zlib
from collections.abc import Iterable, Sequence

import numpy as np

from dit_jax.core.errors import UserError
from dit_jax.data.hierarchy import ClassTable

_VERSION = 2  # of the layout of the files
_MOMENTS, _COLUMNS, _META = "moments.bin", "columns.bin", "meta.json"
_CHECKSUM = np.dtype("<u4")


def _row(grains: Sequence[int]) -> np.dtype:
  """The layout of a row of the columns, little-endian, nothing in between."""
  fields = [("grains", "u1", tuple(grains)), ("label", "<i4"), ("index", "<i4"), ("flipped", "u1")]
  return np.dtype(fields)


def _checksum(moments, position: int) -> int:
  """CRC-32 of the bytes of a record; begun with its position, so that no other takes its place."""
  return zlib.crc32(moments, position)


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
    for name in (_MOMENTS, _COLUMNS, _META, "."):
      _sync(temporary / name)
    os.replace(temporary, directory)
    _sync(directory.parent)
  except BaseException:
    shutil.rmtree(temporary, ignore_errors=True)
    raise


def _write_records(folder: pathlib.Path, records: Iterable[dict]) -> dict:
  checksums, shapes, row_dtype, digest = [], {}, None, hashlib.sha256()
  with open(folder / _MOMENTS, "wb") as moments, open(folder / _COLUMNS, "wb") as columns:
    for count, record in enumerate(records):
      if row_dtype is None:
        shapes = {name: list(np.shape(record[name])) for name in ("moments", "grains")}
        row_dtype = _row(shapes["grains"])
      row = np.zeros((), row_dtype)
      for name in ("moments", *row_dtype.names):
        value = np.asarray(record[name])
        assert list(value.shape) == shapes.get(name, []), f"record {count}: {name} {value.shape}"
        if name in row_dtype.names:
          row[name] = value
      data = np.asarray(record["moments"], "<f4").tobytes()
      moments.write(data)
      checksums.append(_checksum(data, count))
      columns.write(row.tobytes())
      digest.update(row.tobytes())
    moments.write(np.array(checksums, _CHECKSUM).tobytes())
  assert checksums, "a latent cache of no image"
  return {"count": len(checksums), **shapes, "columns": digest.hexdigest()}


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
    self.directory = pathlib.Path(directory)
    meta = _read_meta(self.directory)
    self.meta = meta["meta"]
    self.classes = ClassTable.from_json(self.meta.get("classes", ClassTable().to_json()))
    text = json.dumps(meta, sort_keys=True)
    self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
    self.moments_shape = tuple(meta["moments"])
    self._bytes = 4 * math.prod(self.moments_shape)
    self._checksums = np.zeros(meta["count"], _CHECKSUM)
    try:
      data = (self.directory / _COLUMNS).read_bytes()
      self._file = os.open(self.directory / _MOMENTS, os.O_RDONLY)
      weakref.finalize(self, os.close, self._file)
      os.preadv(self._file, [self._checksums], len(self._checksums) * self._bytes)
      size = os.fstat(self._file).st_size
    except OSError as e:
      raise self._damaged(e) from e
    if size != (want := len(self._checksums) * self._bytes + self._checksums.nbytes):
      raise self._damaged(f"{_MOMENTS} has {size:,} of {want:,} bytes")
    if hashlib.sha256(data).hexdigest() != meta["columns"]:
      raise self._damaged(f"{_COLUMNS} is not as it was written")
    columns = np.frombuffer(data, _row(meta["grains"]))
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
    positions = np.asarray(positions, int)
    rows, found = np.empty((len(positions), self._bytes), np.uint8), []
    try:
      for i, row in zip(positions.tolist(), rows, strict=True):
        # Straight into the batch, and other threads go on meanwhile.
        whole = os.preadv(self._file, [row], i * self._bytes) == self._bytes
        found.append(_checksum(row, i) if whole else -1)
    except OSError as e:
      raise self._damaged(e) from e
    if len(bad := positions[self._checksums[positions] != found]):
      raise self._damaged(f"record {bad[0]} is not as it was written")
    return {
      "moments": rows.view("<f4").reshape(len(rows), *self.moments_shape),
      "grains": self.grains[positions].astype(np.int32),
      "label": self.labels[positions],
      "index": self.indices[positions],
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
