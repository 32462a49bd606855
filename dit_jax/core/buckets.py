"""Which cells the refinement stage sees, as index tables of static shape, made on the host.

A grain map says, region by region, how fine the codes of an image are (letters as in nn.grains).
Regions of grain g > 0 give m_g = (f_k / f_{k-g})^2 tokens each. They are kept in raster order of
their upper-left cells and padded to a capacity, so that a compiled program serves every map that
fits it.
"""

from typing import NamedTuple

import numpy as np

from dit_jax.core.typing import ArrayLike


class TokenIndex(NamedTuple):
  """Where the refinement tokens of a batch come from and where they go.

  Attributes:
    source: [b, capacity], the row in the concatenation of the unmerge outputs. Output g (of grains
      1 .. k-1, in this order) is the grid of all codes that the map could hold at grain g, in
      raster order. Out of range for padding.
    cell: [b, capacity], the upper-left cell of the token on the finest grid; h * w for padding.
    slot: [b, h * w], the token that covers a cell; capacity where none does.
    length: [b], tokens of the image.
  """

  source: ArrayLike
  cell: ArrayLike
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


def capacity_for(max_tokens: int, regions: int, factors: tuple[int, ...]) -> int:
  """The smallest positive multiple of the bucket step that holds max_tokens."""
  step = bucket_step(regions, factors)
  return max(1, -(-max_tokens // step)) * step


def token_index(grains: np.ndarray, factors: tuple[int, ...], capacity: int) -> TokenIndex:
  """The index tables of a batch of grain maps, int32.

  Args:
    grains: [b, rows, cols], 0 the coarsest.
    factors: f_1 < ... < f_k.
    capacity: at least the tokens of every image (see capacity_for).
  """
  b, rows, cols = grains.shape
  source_of, anchor_of = _tables(rows, cols, factors)
  p, cells = factors[-1] // factors[0], source_of.shape[1]
  grain = grains.astype(np.int32, copy=False).repeat(p, 1).repeat(p, 2).reshape(b, cells)
  assert grain.min() >= 0, "a grain map holds no negative grain"
  place = np.arange(cells, dtype=np.int32)
  anchor = anchor_of.ravel()[grain * cells + place]  # upper-left cell of the code; cells if coarse
  image, cell = np.nonzero(anchor == place)
  length = np.bincount(image, minlength=b).astype(np.int32)
  assert length.max(initial=0) <= capacity, f"{length.max()} tokens exceed {capacity=}"

  rank = np.arange(len(image)) - (np.cumsum(length) - length)[image]
  out_of_range = source_of.max(initial=-1) + 1
  kept = TokenIndex(
    source=np.full((b, capacity), out_of_range, np.int32),
    cell=np.full((b, capacity), cells, np.int32),
    slot=np.full((b, cells + 1), capacity, np.int32),
    length=length,
  )
  kept.source[image, rank] = source_of.ravel()[grain[image, cell] * cells + cell]
  kept.cell[image, rank] = cell
  kept.slot[image, cell] = rank
  offset = np.arange(0, b * (cells + 1), cells + 1, dtype=np.int32)[:, None]
  return kept._replace(slot=kept.slot.ravel()[anchor + offset])


def _tables(rows: int, cols: int, factors: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
  """By grain and cell: the row of its code among the unmerge outputs, and the code's first cell."""
  p = factors[-1] // factors[0]
  h, w = rows * p, cols * p
  i, j = np.divmod(np.arange(h * w, dtype=np.int32), w)
  source = [np.full(h * w, -1, np.int32)]  # a coarse code is not refined
  anchor = [np.full(h * w, h * w, np.int32)]
  offset = 0
  for f in reversed(factors[:-1]):
    s = f // factors[0]
    source.append(offset + i // s * (w // s) + j // s)
    anchor.append(i // s * s * w + j // s * s)
    offset += (h // s) * (w // s)
  return np.stack(source), np.stack(anchor)
