"""The latent cache on disk: every training image through the autoencoder once, in shards.

A cache is a folder: `key.json`, what it is made from, comes first; then `shard_00000.bin`, ..., of
so many images of the source each; `meta.json` comes last. A shard is written under
another name and gets its own when it is on disk, so what a kill leaves is finished shards. The next
run writes the others, with any number of processes: a shard is a function of its images and of the
key.

A shard is the records' moments as they lie in memory, so that they are read straight into a batch,
without a lock; then the CRC-32 of each; then the columns, what is known of all records without
reading a moment; then END, by which a shard is told from half of one. Moments, not samples, are
kept: the noise of the posterior stays fresh.
"""

import contextlib
import hashlib
import itertools
import json
import math
import os
import pathlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from dit_jax.core.errors import UserError

VERSION = 3  # of the layout of the files
KEY, META = "key.json", "meta.json"
MOST, LEAST, SHARDS = 2048, 16, 64  # images of a shard, and shards of a small set
CHECKSUM = np.dtype("<u4")
_FIELDS = {
  KEY: {"images", "key"},
  META: {"images", "count", "shards", "moments", "grains", "columns", "meta"},
}
_MAGIC, _TEMPORARY = b"latents3", ".tmp"
END = np.dtype(
  [
    ("columns", "u1", 32),  # their SHA-256
    ("key", "u1", 32),  # of what it is made from
    ("moments", "<u4", 3),
    ("grains", "<u4", 2),
    ("number", "<u4"),
    ("count", "<u4"),  # records
    ("magic", "S8"),
  ]
)


class Layout(NamedTuple):
  """Shapes of a record: moments (h, w, 2 n_z) and grains (rows, cols)."""

  moments: tuple[int, ...]
  grains: tuple[int, ...]

  @property
  def record(self) -> int:
    """Bytes of the moments."""
    return 4 * math.prod(self.moments)

  @property
  def row(self) -> np.dtype:
    """A row of the columns, little-endian, nothing in between."""
    fields = [("grains", "u1", self.grains), ("label", "<i4"), ("index", "<i4"), ("flipped", "u1")]
    return np.dtype(fields)

  def size(self, count: int) -> int:
    """Bytes of a shard of so many records."""
    return count * (self.record + CHECKSUM.itemsize + self.row.itemsize) + END.itemsize


def name(number: int) -> str:
  """The file of a shard."""
  return f"shard_{number:05d}.bin"


def checksum(moments, number: int, place: int) -> int:
  """CRC-32 of a record; begun with its shard and place in it, so that no other takes its place."""
  return zlib.crc32(moments, (number << 16 | place) % 2**32)


def images_of_a_shard(num_images: int) -> int:
  """How many: of a small set fewer, for many processes and for what a kill may cost."""
  return min(MOST, max(LEAST, -(-num_images // SHARDS)))


def write(
  directory,
  key: dict,
  facts: dict,
  num_images: int,
  records: Callable[[np.ndarray, int], Iterable[tuple[int, dict]]],
  *,
  images: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  barrier: Callable[[str], None] = lambda name: None,
) -> None:
  """Writes what is missing of a cache; every process calls it, on one file system.

  Args:
    directory: where the cache is, or will be.
    key: JSON-ready; what the cache is made from, the images and their order among it.
    facts: JSON-ready; what else its meta says, `classes` (ClassTable.to_json) among it.
    num_images: of the source.
    records: (positions, done) -> pairs of a position and a record, by ascending positions, one or
      several records a position, none where an image cannot be read. Records are dicts of moments
      float32 [h, w, 2 n_z] (means, then log variances), grains uint8 [rows, cols], label, index and
      flipped, all of equal shapes. `done` is how many images of this process are there already.
    images: of the source to a shard; 0: `images_of_a_shard`.
    process_index: shard i is written by process i mod process_count.
    process_count: see process_index.
    barrier: waits for all processes.

  Raises:
    UserError: the folder has another cache (naming the fields that differ, old -> new) or other
      files, or it cannot be written to.
  """
  directory = pathlib.Path(directory)
  images = images or images_of_a_shard(num_images)
  first = {"version": VERSION, "images": images, "key": key}
  digest = hashlib.sha256(json.dumps(first, sort_keys=True).encode()).digest()
  parts = [
    np.arange(start, min(start + images, num_images)) for start in range(0, num_images, images)
  ]
  if process_index == 0:
    with _told(directory):
      _claim(directory, first)
  barrier("latent cache claimed")
  check(directory, key, images)  # by every process: all say the same
  if not (directory / META).exists():
    mine = dict(list(enumerate(parts))[process_index::process_count])
    _write_missing(directory, mine, images, digest, records)
  barrier("latent shards written")
  if process_index == 0 and not (directory / META).exists():
    with _told(directory):
      _finish(directory, len(parts), digest, {"version": VERSION, "images": images}, key | facts)
  barrier("latent cache written")


def check(directory, key: dict, images: int = 0) -> None:
  """Refuses a cache, finished or not, that was made from something else.

  Args:
    directory: of a cache.
    key: what it should be made from: hash of the autoencoder, fingerprint of the data, thresholds,
      image size, ...
    images: of a shard; 0: any.

  Raises:
    UserError: naming the fields that differ, old -> new; or there is no readable cache.
  """
  directory = pathlib.Path(directory)
  finished = (directory / META).exists()
  stored = read_json(directory, META if finished else KEY)
  old, new = stored["meta" if finished else "key"], json.loads(json.dumps(key))
  if images and stored["images"] != images:
    old, new = old | {"shard": stored["images"]}, new | {"shard": images}
  changed = [f"{k}: {old.get(k, '(absent)')} -> {v}" for k, v in new.items() if old.get(k) != v]
  if changed:
    raise UserError(
      f"the latent cache {directory} is stale ({'; '.join(changed)}); delete it to have it written "
      "again, or go back to what it was made from."
    )


def read_json(directory: pathlib.Path, file: str) -> dict:
  """`key.json` or `meta.json` of a cache.

  Raises:
    UserError: it is not there, cannot be read, or is of another layout.
  """
  try:
    stored = json.loads((directory / file).read_text(encoding="utf-8"))
  except FileNotFoundError as e:
    if (directory / KEY).exists():
      raise UserError(
        f"the latent cache {directory} is not finished; run the line that was writing it again."
      ) from e
    held = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    raise UserError(
      f"{directory} is no latent cache, it has no {file}"
      f"{f' but holds {held[0]!r}; move that away' if held else ''}."
    ) from e
  except (OSError, ValueError) as e:
    whose = "it" if file == META else f"the folder {directory}"  # META alone is made again
    raise UserError(f"{directory / file} cannot be read ({e}); delete {whose}.") from e
  known = isinstance(stored, dict) and stored.get("version") == VERSION
  if not known or not _FIELDS[file] <= stored.keys():
    raise UserError(
      f"the latent cache {directory} has another layout than this version's {VERSION}; delete it."
    )
  return stored


def _claim(directory: pathlib.Path, first: dict) -> None:
  """Says in an empty folder what it is of; takes META from a cache that lacks a shard."""
  directory.mkdir(parents=True, exist_ok=True)
  if {path.name for path in directory.iterdir()} <= {KEY + _TEMPORARY}:
    _put(directory / KEY, first)
  try:
    check(directory, first["key"], first["images"])
    meta = read_json(directory, META)
  except UserError:  # refused once all have come here; or not finished
    return
  layout = Layout(tuple(meta["moments"]), tuple(meta["grains"]))
  paths = [directory / name(n) for n in range(len(meta["shards"]))]
  sizes = [path.stat().st_size if path.exists() else -1 for path in paths]
  if sizes != list(map(layout.size, meta["shards"])):
    (directory / META).unlink()


def _write_missing(
  directory: pathlib.Path, parts: dict[int, np.ndarray], images: int, key: bytes, records: Callable
) -> None:
  """Writes those of some shards, given with their positions, that are not there."""
  with _told(directory):
    left = {n: part for n, part in parts.items() if _end(directory, n, key) is None}
  if not left:
    return
  done = sum(len(part) for n, part in parts.items() if n not in left)
  made = records(np.concatenate(list(left.values())), done)
  for n, group in itertools.groupby(made, lambda pair: pair[0] // images):
    _write_shard(directory, n, key, (record for _, record in group))
    del left[n]
  for n in left:  # no image of these can be read
    _write_shard(directory, n, key, ())


def _write_shard(directory: pathlib.Path, number: int, key: bytes, records: Iterable[dict]) -> None:
  temporary = directory / (name(number) + _TEMPORARY)
  checksums, rows, layout = [], [], Layout((0, 0, 0), (0, 0))
  with contextlib.ExitStack() as stack:
    stack.callback(temporary.unlink, missing_ok=True)
    with _told(directory):
      file = stack.enter_context(open(temporary, "wb", buffering=0))
    for place, record in enumerate(records):
      if not place:
        layout = Layout(np.shape(record["moments"]), np.shape(record["grains"]))
      rows.append(_row(record, place, layout))
      data = np.asarray(record["moments"], "<f4").tobytes()
      checksums.append(checksum(data, number, place))
      with _told(directory):
        _write_all(file, data)
    columns, end = b"".join(rows), np.zeros((), END)
    digest = hashlib.sha256(columns).digest()
    end["columns"], end["key"] = (np.frombuffer(x, np.uint8) for x in (digest, key))
    end["moments"], end["grains"] = layout
    end["number"], end["count"], end["magic"] = number, len(rows), _MAGIC
    with _told(directory):
      _write_all(file, np.array(checksums, CHECKSUM).tobytes() + columns + end.tobytes())
      os.fsync(file.fileno())
      os.replace(temporary, directory / name(number))
      _sync(directory)


def _write_all(file, data: bytes) -> None:
  while data:  # a disk that is nearly full takes a part
    data = data[file.write(data) :]


def _row(record: dict, place: int, layout: Layout) -> bytes:
  row = np.zeros((), layout.row)
  shapes = {"moments": layout.moments, "grains": layout.grains}
  for field in ("moments", *row.dtype.names):
    value = np.asarray(record[field])
    assert value.shape == shapes.get(field, ()), f"record {place}: {field} {value.shape}"
    if field in row.dtype.names:
      row[field] = value
  return row.tobytes()


def _end(directory: pathlib.Path, number: int, key: bytes) -> np.void | None:
  """END of a shard; None where it is not there, not whole, or made from something else."""
  try:
    with open(directory / name(number), "rb") as file:
      size = file.seek(0, os.SEEK_END)
      file.seek(max(0, size - END.itemsize))
      data = file.read()
  except FileNotFoundError:
    return None
  if len(data) != END.itemsize:
    return None
  (end,) = np.frombuffer(data, END)
  ours = end["magic"] == _MAGIC and end["key"].tobytes() == key and end["number"] == number
  return end if ours and _layout(end).size(int(end["count"])) == size else None


def _layout(end: np.void) -> Layout:
  return Layout(tuple(end["moments"].tolist()), tuple(end["grains"].tolist()))


def _finish(directory: pathlib.Path, shards: int, key: bytes, first: dict, meta: dict) -> None:
  """Writes META, the columns of all shards being read once."""
  ends, columns = [_end(directory, n, key) for n in range(shards)], hashlib.sha256()
  if lost := [name(n) for n, end in enumerate(ends) if end is None]:
    raise UserError(
      f"{directory / lost[0]} is not there, though a process has written it; give "
      "a --workdir on a file system that all processes share."
    )
  layouts = {_layout(end) for end in ends if end["count"]}
  assert len(layouts) == 1, f"latents of one shape, not {layouts}"
  (layout,), counts = layouts, [int(end["count"]) for end in ends]
  for n, count in enumerate(counts):
    with open(directory / name(n), "rb") as file:
      file.seek(count * (layout.record + CHECKSUM.itemsize))
      columns.update(file.read(count * layout.row.itemsize))
  found = layout._asdict() | {"count": sum(counts), "shards": counts}
  _put(directory / META, first | found | {"columns": columns.hexdigest(), "meta": meta})


def _put(path: pathlib.Path, value: dict) -> None:
  """Writes JSON in one move, and waits until it is on disk."""
  temporary = path.with_name(path.name + _TEMPORARY)
  temporary.write_text(json.dumps(value, indent=2), encoding="utf-8")
  _sync(temporary)
  os.replace(temporary, path)
  _sync(path.parent)


def _sync(path: pathlib.Path) -> None:
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


@contextlib.contextmanager
def _told(directory: pathlib.Path) -> Iterator[None]:
  """Says of what the disk refuses that nothing finished is lost."""
  try:
    yield
  except OSError as e:
    raise UserError(
      f"the latent cache {directory} cannot be written ({e.strerror or e}); mend that and run the "
      "same line again: its finished shards are kept."
    ) from e
