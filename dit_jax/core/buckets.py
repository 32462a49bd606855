"""Which cells the refinement stage sees, as index tables of static shape, made on the host.

A grain map says, region by region, how fine the codes of an image are (letters as in nn.grains).
Regions of grain g > 0 give m_g = (f_k / f_{k-g})^2 tokens each. They are kept in raster order of
their upper-left cells and padded to a capacity, so that a compiled program serves every map that
fits it.
"""

import functools
from typing import NamedTuple

import numpy as np

from dit_jax.core.typing import ArrayLike


class TokenIndex(NamedTuple):
  """Where the refinement tokens of a batch come from and where they go.

  Both ways are told, so that neither direction nor its gradient has to add into places that an
  index names, which accelerators do slowly.

  Attributes:
    source: [b, capacity], the row of a token among all codes that a map could hold: the grids of
      grains 1 .. k-1, in this order, each in raster order. Out of range for padding.
    slot: [b, rows], the token of each of those rows; capacity where the map does not hold it.
    length: [b], tokens of the image.
  """

  source: ArrayLike
  slot: ArrayLike
  length: ArrayLike


def codes_per_region(factors: tuple[int, ...]) -> tuple[int, ...]:
  """(m_0, ..., m_{k-1}): codes in a region of each grain, coarsest first."""
  return tuple((factors[-1] // f) ** 2 for f in reversed(factors))


def num_tokens(grains: np.ndarray, factors: tuple[int, ...]) -> np.ndarray:
  """Refinement tokens of every image, [b]: the codes of all regions that are not the coarsest."""
  refined = list(enumerate(codes_per_region(factors)))[1:]
  count = np.zeros(len(grains), np.int64)
  for g, m in refined:  # grain by grain: a table of m for every region would be large
    count += m * (grains == g).sum((1, 2))
  return count


def bucket_step(regions: int, factors: tuple[int, ...]) -> int:
  """An eighth of the most tokens an image can have, rounded up to whole regions of grain 1."""
  m = codes_per_region(factors)
  eighth = -(-regions * m[-1] // 8)
  return -(-eighth // m[1]) * m[1]


def quantum(regions: int, factors: tuple[int, ...]) -> int:
  """Tokens from one possible capacity of a training step to the next: a quarter of a bucket."""
  whole = codes_per_region(factors)[1]
  return max(1, bucket_step(regions, factors) // (4 * whole)) * whole


def edges_needed(tokens: np.ndarray | int, step: int) -> np.ndarray:
  """The smallest multiple of a step that holds each number of tokens, in steps: 1 or more."""
  return np.maximum(1, -(-np.asarray(tokens) // step)).astype(np.int32)


def capacity_for(tokens: np.ndarray | int, regions: int, factors: tuple[int, ...]) -> np.ndarray:
  """The smallest positive multiple of the bucket step that holds each number of tokens."""
  step = bucket_step(regions, factors)
  return edges_needed(tokens, step) * step


def token_index(grains: np.ndarray, factors: tuple[int, ...], capacity: int) -> TokenIndex:
  """The index tables of a batch of grain maps, int32.

  Args:
    grains: [b, rows, cols], 0 the coarsest.
    factors: f_1 < ... < f_k.
    capacity: at least the tokens of every image (see capacity_for).
  """
  b, rows, cols = grains.shape
  source_of = _sources(rows, cols, factors)
  p, cells = factors[-1] // factors[0], source_of.shape[1]
  assert grains.min() >= 0, "a grain map holds no negative grain"
  at = (grains.astype(np.int32) * np.int32(cells)).repeat(p, 1).repeat(p, 2).reshape(b, cells)
  row = source_of.ravel().take(at + np.arange(cells, dtype=np.int32))
  first = row >= 0  # the upper-left cell of a code
  length = np.count_nonzero(first, axis=1).astype(np.int32)
  assert length.max(initial=0) <= capacity, f"{length.max()} tokens exceed {capacity=}"

  # The tokens of all images in a row. Flat indices: numpy is slower with pairs of them.
  found, image = row[first], np.repeat(np.arange(b), length)
  rank = np.arange(len(found)) - np.repeat(np.cumsum(length) - length, length)
  total = int(source_of.max(initial=-1)) + 1
  source, slot = np.full(b * capacity, total, np.int32), np.full(b * total, capacity, np.int32)
  source[image * capacity + rank] = found
  slot[image * total + found] = rank
  return TokenIndex(source.reshape(b, capacity), slot.reshape(b, total), length)


@functools.lru_cache(maxsize=8)
def _sources(rows: int, cols: int, factors: tuple[int, ...]) -> np.ndarray:
  """By grain and cell: the row of the code whose upper-left cell this is, else -1."""
  p = factors[-1] // factors[0]
  h, w = rows * p, cols * p
  i, j = np.divmod(np.arange(h * w, dtype=np.int32), w)
  sources = [np.full(h * w, -1, np.int32)]  # a coarse code is not refined
  offset = 0
  for f in reversed(factors[:-1]):
    s = f // factors[0]
    row = offset + i // s * (w // s) + j // s
    sources.append(np.where((i % s == 0) & (j % s == 0), row, -1).astype(np.int32))
    offset += (h // s) * (w // s)
  return np.stack(sources)
