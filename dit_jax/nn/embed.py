"""Embeddings of time, place and patches (DiT, section 3.2 and appendix)."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from dit_jax.core.typing import Array, DTypeLike, Float

MAX_PERIOD = 10_000.0  # DiT's


def sinusoids(
  t: Float[Array, " b"], dim: int, max_period: float = MAX_PERIOD
) -> Float[Array, "b d"]:
  """[cos(t w_i), sin(t w_i)] with w_i = max_period ** (-2 i / dim), i < dim / 2, in float32."""
  half = dim // 2
  freqs = jnp.exp(-np.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
  angles = t.astype(jnp.float32)[:, None] * freqs
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def sincos_table(rows: int, cols: int, width: int) -> np.ndarray:
  """The 2-D sine-cosine table of DiT, [rows * cols, width], cells in raster order.

  The first half of the channels encodes the column and the second half the row, each as sines
  then cosines. A width that is not a multiple of 4 drops the last channels.
  """
  quarter = -(-width // 4)
  omega = 10_000.0 ** -(np.arange(quarter) / quarter)
  row, col = np.divmod(np.arange(rows * cols), cols)
  col, row = col[:, None] * omega, row[:, None] * omega
  table = np.concatenate([np.sin(col), np.cos(col), np.sin(row), np.cos(row)], axis=-1)
  return table[:, :width].astype(np.float32)


class TimestepEmbedder(nn.Module):
  """Model time (0 .. 1000) -> 256 sinusoids -> two-layer MLP.

  Attributes:
    max_period: see sinusoids.
  """

  width: int
  num_frequencies: int = 256
  dtype: DTypeLike = jnp.float32
  max_period: float = MAX_PERIOD

  @nn.compact
  def __call__(self, t: Float[Array, " b"]) -> Float[Array, "b d"]:
    init = nn.initializers.normal(0.02)
    x = sinusoids(t, self.num_frequencies, self.max_period).astype(self.dtype)
    x = nn.Dense(self.width, kernel_init=init, dtype=self.dtype, name="in")(x)
    return nn.Dense(self.width, kernel_init=init, dtype=self.dtype, name="out")(nn.silu(x))


class PositionTable(nn.Module):
  """A learned position table that starts as the sine-cosine one."""

  rows: int
  cols: int
  width: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self) -> Float[Array, "n d"]:
    init = lambda key: jnp.asarray(sincos_table(self.rows, self.cols, self.width))
    return self.param("table", init).astype(self.dtype)


class PatchEmbed(nn.Module):
  """Patches of the grid, in raster order, each as one vector (row, column, channel) -> token."""

  patch: int
  width: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, z: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
    p = self.patch
    x = rearrange(z, "b (h p) (w q) c -> b (h w) (p q c)", p=p, q=p)
    init = nn.initializers.xavier_uniform()
    return nn.Dense(self.width, kernel_init=init, dtype=self.dtype, name="proj")(x)
