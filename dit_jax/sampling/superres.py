"""Pictures of twice the size: tiles with room around them, blended where they overlap.

The enhancement is periodic, so a picture is padded by reflection, every tile takes PAD pixels more
than it gives on each side, and neighbours share at least OVERLAP pixels, across which one fades
linearly into the other. A trunk of depth d sees 2 d + 2 pixels around each, 34 in the recipe, which
is more than PAD; past it the fading alone hides a tile's border.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from dit_jax.core.typing import Array, UInt8
from dit_jax.models.superres import FACTOR
from dit_jax.sampling import generate, parallel

PAD, OVERLAP, TILE = 16, 32, 128  # pixels of the small picture


class Doubler:
  """A compiled enhancement; call it with the parameters and pictures of any size.

  Beside the result it holds one row of tiles, however large or many the pictures are.

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
    return self._filled(params, images, np.uint8, generate.to_uint8)

  def blended(self, params, images: UInt8[np.ndarray, "n h w 3"]) -> np.ndarray:
    """The same before rounding, float32."""
    return self._filled(params, images, np.float32, lambda band: band)

  def _filled(self, params, images, dtype, finish) -> np.ndarray:
    n, *shape, channels = images.shape
    out = np.empty((n, *(FACTOR * size for size in shape), channels), dtype)
    for where, band in self._bands(params, images):
      out[where] = finish(band)
    return out

  def _bands(self, params, images) -> Iterator[tuple[tuple[int, slice], np.ndarray]]:
    """The result's places (picture, rows) and float32 [rows, 2 w, c], from the top down.

    A band ends where the next row of tiles begins: nothing is added to it any more.
    """
    (n, *shape, channels), r = images.shape, FACTOR
    sides = [min(self.tile, size) for size in shape]
    tops, lefts = (_starts(size, side) for size, side in zip(shape, sides, strict=True))
    down, across = _shares(tops, sides[0]), _shares(lefts, sides[1])
    pieces = self._pieces(params, images, sides, list(itertools.product(tops, lefts)))
    for i in range(n):
      band = np.zeros((r * sides[0], r * shape[1], channels), np.float32)
      for top, end, rows in zip(tops, [*tops[1:], shape[0]], down, strict=True):
        for left, columns in zip(lefts, across, strict=True):
          share = rows[:, None, None] * columns[:, None]
          band[:, r * left : r * (left + sides[1])] += share * next(pieces)
        done, rest = np.split(band, [r * (end - top)])
        yield (i, slice(r * top, r * end)), done
        band = np.concatenate([rest, np.zeros_like(done)])

  def _pieces(self, params, images, sides, places) -> Iterator[np.ndarray]:
    """Tile after tile of picture after picture, enhanced, without its room: [2 h, 2 w, c]."""
    params, room = self.rows.everywhere(params), FACTOR * PAD

    def cut() -> Iterator[np.ndarray]:
      for image in images:
        padded = np.pad(image, ((PAD, PAD), (PAD, PAD), (0, 0)), mode="reflect")
        for top, left in places:
          yield padded[top : top + sides[0] + 2 * PAD, left : left + sides[1] + 2 * PAD]

    tiles = cut()
    while chunk := list(itertools.islice(tiles, self.rows.total)):
      filled = chunk + chunk[-1:] * (self.rows.total - len(chunk))
      large = np.asarray(self._enhance(params, np.stack(filled)))
      yield from large[: len(chunk), room:-room, room:-room]


def _starts(size: int, tile: int) -> list[int]:
  """Where tiles begin: evenly, from border to border, OVERLAP or more shared by neighbours."""
  count = 1 if size <= tile else -(-(size - OVERLAP) // (tile - OVERLAP))
  return np.linspace(0, size - tile, count).round().astype(int).tolist()


def _shares(starts: list[int], tile: int) -> list[np.ndarray]:
  """The tiles' shares along one axis of the result: 1 in all, a ramp where there is a neighbour."""
  ramp = (np.arange(FACTOR * tile, dtype=np.float32) + 0.5) / (FACTOR * OVERLAP)
  one, total = np.ones_like(ramp), np.zeros(FACTOR * (starts[-1] + tile), np.float32)
  weights = []
  for start in starts:
    left, right = ramp if start else one, one if start == starts[-1] else ramp[::-1]
    weights.append(np.minimum(1, np.minimum(left, right)))
    total[FACTOR * start : FACTOR * (start + tile)] += weights[-1]
  pairs = zip(weights, starts, strict=True)
  return [weight / total[FACTOR * start :][: FACTOR * tile] for weight, start in pairs]
