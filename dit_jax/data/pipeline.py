"""Batches: the global batch of step n is a pure function of (seed, n) and the data.

A source is shuffled anew every epoch, epochs are joined without dropping, and the endless list is
cut into batches, so every image is used exactly once an epoch. A process reads only its own
contiguous rows, and any step can be read directly: resuming, or another number of processes,
changes no batch. `fingerprint` of the source tells whether the data are still the same.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dit_jax.core.errors import UserError

Batch = dict[str, np.ndarray]
THREADS = 4


def batches(
  source,
  batch_size: int,
  seed: int,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  threads: int = THREADS,
  transform: Callable[[Batch], Batch] | None = None,
  positions: Callable[[int], np.ndarray] | None = None,
  draw: Callable[[int, Batch], Batch] | None = None,
) -> Iterator[Batch]:
  """This process's rows of the batches of steps start_step, start_step + 1, ... without end.

  Args:
    source: random access to dicts of arrays and scalars, safe to read from threads. A source may
      have `read(positions)`, which gives the stacked batch at once.
    batch_size: of the global batch, a multiple of process_count.
    seed: of the order, 0 to 2^32 - 1.
    start_step: costs nothing, however far.
    process_index: which rows.
    process_count: between how many processes the rows are divided.
    threads: each prepares a whole batch ahead; 0 prepares them when asked. The order is the same.
    transform: applied to every batch, in the thread; must be a function of the batch alone.
    positions: step -> the positions of its global batch, [batch_size] (data.plan); None: shuffled.
    draw: (step, batch) -> batch, in the thread after `transform`: what is random about a batch,
      each row a function of the step and of that row alone.

  Returns:
    An iterator with a `close` that ends its threads; dicts of arrays [batch_size / process_count,
    ...], stacked over the items of the source.

  Raises:
    UserError: batch_size cannot be divided, or the seed is out of range.
  """
  import grain  # costs a second, and sampling needs none of it

  steps = _steps(source, batch_size, seed, process_index, process_count, transform, positions, draw)
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
  return iter(steps.slice(slice(start_step, None)).to_iter_dataset(options))


def batch_at(
  source,
  batch_size: int,
  seed: int,
  step: int,
  process_index: int = 0,
  process_count: int = 1,
  transform: Callable[[Batch], Batch] | None = None,
  positions: Callable[[int], np.ndarray] | None = None,
  draw: Callable[[int, Batch], Batch] | None = None,
) -> Batch:
  """The batch that `batches` gives at one step."""
  steps = _steps(source, batch_size, seed, process_index, process_count, transform, positions, draw)
  return steps[step]


def _steps(
  source, batch_size, seed, process_index, process_count, transform, positions, draw
) -> Any:
  """A grain MapDataset: element n is this process's rows of step n."""
  import grain

  if batch_size < 1 or batch_size % process_count:
    raise UserError(
      f"{batch_size=} must be a positive multiple of the {process_count} processes; "
      f"nearest is {max(1, round(batch_size / process_count)) * process_count}."
    )
  if not 0 <= seed < 2**32:
    raise UserError(f"{seed=} must be 0 to 2^32 - 1.")
  assert 0 <= process_index < process_count, f"{process_index=} of {process_count} processes"
  # Consecutive pieces of a step belong to consecutive processes. Batched before the iterator: an
  # element of the prefetch queue is a batch, which is four times the throughput of single items.
  rows = batch_size // process_count
  if positions is not None:
    own = slice(process_index * rows, (process_index + 1) * rows)
    steps = grain.MapDataset.range(2**62).map(lambda step: positions(step)[own])
  else:
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    pieces = order.batch(rows, drop_remainder=True)  # the end is at 2^63
    steps = pieces.slice(slice(process_index, None, process_count))
  steps = steps.map(functools.partial(_read, source))
  steps = steps.map(transform) if transform else steps
  return steps.map_with_index(draw) if draw else steps


def _read(source, positions: np.ndarray) -> Batch:
  if hasattr(source, "read"):
    return source.read(positions)
  items = [source[int(i)] for i in positions]
  return {name: np.stack([item[name] for item in items]) for name in items[0]}


def in_order(
  source,
  batch_size: int,
  threads: int = THREADS,
  positions: np.ndarray | None = None,
  transform: Callable[[Batch], Batch] | None = None,
) -> Iterator[Batch]:
  """Every readable item once, in the order of the source; the last batch is padded.

  Broken images, whose positions answer with a neighbour, are left out.

  Args:
    source: as in `batches`, with `indices`: the index that the item of every position should have.
    batch_size: rows of every batch.
    threads: that read ahead.
    positions: the items that are wanted, in order; None: all.
    transform: applied to rows in the thread; must be a function of each row alone.

  Yields:
    Dicts of stacked arrays; `position` int [batch_size], and `valid` bool [batch_size], False on
    the padding, which repeats the last item.
  """
  import grain

  positions = np.arange(len(source)) if positions is None else positions
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
  order = grain.MapDataset.range(len(positions)).batch(batch_size)
  pieces = order.map(lambda places: _read(source, positions[places]))
  pieces = pieces.map(transform) if transform else pieces
  rows = {}
  for i, piece in enumerate(pieces.to_iter_dataset(options)):
    piece["position"] = positions[i * batch_size : (i + 1) * batch_size]
    good = piece["index"] == source.indices[piece["position"]]
    rows = {k: np.concatenate([rows[k], x[good]]) if rows else x[good] for k, x in piece.items()}
    if len(rows["index"]) >= batch_size:
      yield _padded({k: x[:batch_size] for k, x in rows.items()}, batch_size)
      rows = {k: x[batch_size:] for k, x in rows.items()}
  if len(rows["index"]):
    yield _padded(rows, batch_size)


def _padded(rows: Batch, batch_size: int) -> Batch:
  n = len(rows["index"])
  take = np.minimum(np.arange(batch_size), n - 1)
  return {**{k: x[take] for k, x in rows.items()}, "valid": np.arange(batch_size) < n}
