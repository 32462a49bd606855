"""Reading the latent cache: random access to its records, and their statistics.

How it lies on disk, and how it is written: data.latent_shards.
"""

import functools
import hashlib
import json
import os
import pathlib
import weakref
from collections.abc import Sequence

import numpy as np

from dit_jax.core.errors import UserError
from dit_jax.data import latent_shards
from dit_jax.data.hierarchy import ClassTable
from dit_jax.data.latent_shards import CHECKSUM, END, META, Layout

_OPEN = 128  # shards held open; systems allow a process 1,024 files, and may allow 256


class _File:
  """A file or folder that is open as long as somebody holds it."""

  def __init__(self, path, folder: "_File | None" = None):
    self.number = os.open(path, os.O_RDONLY, dir_fd=folder.number if folder else None)
    weakref.finalize(self, os.close, self.number)


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
    stored = latent_shards.read_json(self.directory, META)
    self.meta = stored["meta"]
    self.classes = ClassTable.from_json(self.meta.get("classes", ClassTable().to_json()))
    layout = Layout(tuple(stored["moments"]), tuple(stored["grains"]))
    self.moments_shape, self._bytes = layout.moments, layout.record
    self._ends = np.cumsum(stored["shards"])
    self._starts = self._ends - stored["shards"]
    # By the folder that is open: a cache may be moved under a running job.
    self._file = functools.lru_cache(_OPEN)(functools.partial(_opened, _File(self.directory)))
    self._checksums, columns = self._read_tails(stored["shards"], layout)
    if hashlib.sha256(columns).hexdigest() != stored["columns"]:
      raise self._damaged("is not that of these shards", META)
    # Runs from before there were shards have trained on the same under this name.
    named = {k: stored[k] for k in ("count", "moments", "grains", "columns", "meta")}
    text = json.dumps({"version": 2, **named}, sort_keys=True)
    self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
    rows = np.frombuffer(columns, layout.row)
    self.labels, self.indices = rows["label"].astype(np.int32), rows["index"].astype(np.int32)
    self.flipped = rows["flipped"].astype(bool)
    self.grains = np.ascontiguousarray(rows["grains"])

  def _read_tails(self, counts: list[int], layout: Layout) -> tuple[np.ndarray, bytes]:
    """What lies behind the moments of all shards: checksums, and the bytes of the columns."""
    checksums, columns = [], []
    for number, count in enumerate(counts):
      name, want = latent_shards.name(number), layout.size(count)
      try:
        file = self._file(number)
        size = os.fstat(file.number).st_size
        tail = os.pread(file.number, want - count * layout.record, count * layout.record)
      except OSError as e:
        raise self._unreadable(name, e) from e
      if size != want:
        raise self._damaged(f"has {size:,} of {want:,} bytes", name)
      at = count * CHECKSUM.itemsize
      (end,) = np.frombuffer(tail[-END.itemsize :], END)
      columns.append(tail[at : -END.itemsize])
      checksums.append(np.frombuffer(tail[:at], CHECKSUM))
      if hashlib.sha256(columns[-1]).digest() != end["columns"].tobytes():
        raise self._damaged("has columns that are not as they were written", name)
    return np.concatenate(checksums), b"".join(columns)

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
    numbers = np.searchsorted(self._ends, positions, side="right")
    places = positions - self._starts[numbers]
    rows, found = np.empty((len(positions), self._bytes), np.uint8), []
    for number, place, row in zip(numbers.tolist(), places.tolist(), rows, strict=True):
      try:
        file = self._file(number)  # held here, whatever takes its place among those that are open
        # Straight into the batch, and other threads go on meanwhile.
        read = os.preadv(file.number, [row], place * self._bytes)
      except OSError as e:
        raise self._unreadable(latent_shards.name(number), e) from e
      whole = read == self._bytes
      found.append(latent_shards.checksum(row, number, place) if whole else -1)
    if len(bad := np.flatnonzero(self._checksums[positions] != found)):
      number, place = numbers[bad[0]], places[bad[0]]
      what = f"has a record {place} that is not as it was written"
      raise self._damaged(what, latent_shards.name(number))
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

  def _unreadable(self, name: str, error: OSError) -> UserError:
    return UserError(
      f"the latent cache {self.directory} cannot be read ({name}: {error.strerror}); mend that, or "
      "run the line again where a file is gone: it is written again."
    )

  def _damaged(self, what: str, name: str) -> UserError:
    return UserError(
      f"the latent cache {self.directory} is damaged: {name} {what}; delete that file, and the "
      "next run writes it again."
    )


def _opened(folder: _File, number: int) -> _File:
  return _File(latent_shards.name(number), folder)


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
