"""Pictures of twice the size: tiles with room around them, blended where they overlap.

The enhancement is periodic and its trunk sees a few pixels around each: a picture is padded by
reflection, every tile takes PAD pixels more than it gives on each side, and neighbours share at
least OVERLAP pixels, across which one fades linearly into the other.
"""

import itertools
from collections.abc import Callable

import numpy as np

from dit_jax.core.typing import Array, UInt8
from dit_jax.models.superres import FACTOR
from dit_jax.sampling import generate, parallel

PAD, OVERLAP, TILE = 16, 32, 128  # pixels of the small picture


class Doubler:
  """A compiled enhancement; call it with the parameters and pictures of any size.

  Args:
    enhance: (params, uint8 [b, h, w, 3]) -> [b, 2 h, 2 w, 3], in [-1, 1] up to overshoots.
    tile: pixels a side that one call of it gives to the result, before doubling.
    microbatch: tiles of a call on one device.
    devices: None takes those of this process.
  """

  def __init__(self, enhance: Callable[..., Array], tile=TILE, microbatch=4, devices=None):
    assert tile >= 2 * OVERLAP, f"{tile=} has less than two overlaps of {OVERLAP}"
    self.tile, self.rows = tile, parallel.Rows(microbatch, devices)
    self._enhance = self.rows.jit(enhance)

  def __call__(self, params, images: UInt8[np.ndarray, "n h w 3"]) -> np.ndarray:
    """uint8 [n, 2 h, 2 w, 3]; a picture does not depend on the others."""
    return np.asarray(generate.to_uint8(self.blended(params, images)))

  def blended(self, params, images: UInt8[np.ndarray, "n h w 3"]) -> np.ndarray:
    """The same before rounding, float32."""
    images, params = np.asarray(images), self.rows.everywhere(params)
    pad = ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0))
    padded = np.pad(images, pad, mode="reflect")
    (n, *shape, channels), r = images.shape, FACTOR
    sides = [min(self.tile, size) for size in shape]
    starts = [_starts(size, side) for size, side in zip(shape, sides, strict=True)]
    places = list(itertools.product(range(n), *starts))
    out = np.zeros((n, *(r * size for size in shape), channels), np.float32)
    total = np.zeros((n, *out.shape[1:3], 1), np.float32)

    def cut(i, row, col):
      return padded[i, row : row + sides[0] + 2 * PAD, col : col + sides[1] + 2 * PAD]

    for start in range(0, len(places), self.rows.total):
      chunk = places[start : start + self.rows.total]
      filled = chunk + [chunk[-1]] * (self.rows.total - len(chunk))
      large = np.asarray(self._enhance(params, np.stack([cut(*place) for place in filled])))
      large = large[:, r * PAD : -r * PAD, r * PAD : -r * PAD]
      for (i, row, col), piece in zip(chunk, large, strict=False):
        where = i, slice(r * row, r * (row + sides[0])), slice(r * col, r * (col + sides[1]))
        weight = _weight(row, sides[0], shape[0])[:, None] * _weight(col, sides[1], shape[1])
        out[where] += weight[..., None] * piece
        total[where] += weight[..., None]
    return out / total


def _starts(size: int, tile: int) -> list[int]:
  """Where tiles begin: evenly, from border to border, OVERLAP or more shared by neighbours."""
  count = 1 if size <= tile else -(-(size - OVERLAP) // (tile - OVERLAP))
  return np.linspace(0, size - tile, count).round().astype(int).tolist()


def _weight(start: int, tile: int, size: int) -> np.ndarray:
  """A tile's share along one axis of the result: a ramp at each end that has a neighbour."""
  place = (np.arange(FACTOR * tile, dtype=np.float32) + 0.5) / (FACTOR * OVERLAP)
  left = place if start else np.ones_like(place)
  right = place[::-1] if start + tile < size else np.ones_like(place)
  return np.minimum(1.0, np.minimum(left, right))
