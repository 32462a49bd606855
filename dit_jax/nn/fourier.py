"""A position embedding for the cells of a latent grid: Fourier features plus learned tables."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from dit_jax.core.typing import Array, DTypeLike, Float


def octaves(rows: int, cols: int) -> np.ndarray:
  """[rows, cols, 4 J]: sin and cos of pi 2^j x, x in (-1, 1) the centre of a row or a column.

  J octaves, up to the period of two cells, so that the copies of one code differ strongly.
  """
  count = max(1, int(np.ceil(np.log2(max(rows, cols)))))
  freqs = np.pi * 2.0 ** np.arange(count)
  waves = []
  for n in (rows, cols):
    angles = ((2 * np.arange(n) + 1) / n - 1)[:, None] * freqs
    waves.append(np.concatenate([np.sin(angles), np.cos(angles)], axis=-1))
  row = np.broadcast_to(waves[0][:, None], (rows, cols, 2 * count))
  col = np.broadcast_to(waves[1][None], (rows, cols, 2 * count))
  return np.concatenate([row, col], axis=-1).astype(np.float32)


class GridPosition(nn.Module):
  """Adds a projection of `octaves` and one learned vector a row and a column.

  The sizes of the tables are those of the grid at `init`. "Fourier + learned" is from the code of
  DQ-VAE; the octaves are our reconstruction.
  """

  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, z: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    _, h, w, c = z.shape
    init = nn.initializers.normal(0.02)
    fourier = nn.Dense(c, use_bias=False, dtype=self.dtype, name="fourier")(octaves(h, w))
    rows = self.param("rows", init, (h, c))[:, None]
    cols = self.param("cols", init, (w, c))[None]
    return z.astype(self.dtype) + fourier + (rows + cols).astype(self.dtype)
