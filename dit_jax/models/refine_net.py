"""RefineNet: corrects the rough prediction where the image is detailed.

D2iT's second stage predicts roughly for every region, then refines the regions of fine grain. Its
inside is our reconstruction, which meets the published parameter totals (D2iT, arXiv 2504.09454,
tables 1 and 2).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat

from dit_jax.core.buckets import TokenIndex
from dit_jax.core.mesh import pin_rows
from dit_jax.core.typing import Array, DTypeLike, Float, Int, Key
from dit_jax.nn.adaln import FinalLayer
from dit_jax.nn.attention import AttentionSettings
from dit_jax.nn.block import Blocks
from dit_jax.nn.embed import PositionTable
from dit_jax.nn.pack import Pack


def take_rows(x: Float[Array, "b n d"], index: Int[Array, "b m"]) -> Float[Array, "b m d"]:
  """x[i, index[i]], zeros where the index is out of range."""
  return jnp.take_along_axis(x, index[..., None], axis=1, mode="fill", fill_value=0)


@jax.custom_vjp
def move_rows(
  x: Float[Array, "b n d"], index: Int[Array, "b m"], inverse: Int[Array, "b n"]
) -> Float[Array, "b m d"]:
  """take_rows(x, index), whose gradient is take_rows(., inverse).

  The transpose of a gather adds into rows that an index names; where no row is taken twice it is a
  gather too.
  """
  del inverse
  return take_rows(x, index)


def _move_forward(x, index, inverse):
  return take_rows(x, index), inverse


def _move_backward(inverse, g):
  return take_rows(g, inverse), None, None


move_rows.defvjp(_move_forward, _move_backward)


def _flat(x):
  return pin_rows(rearrange(x, "s l ... -> (s l) ..."))


class RefineNet(nn.Module):
  """Attention among an image's own fine codes; its output is zero at init.

  Its blocks are numbered from `first`. Whether they are prob-sparse depends on the tokens that an
  image could have, not on the capacity of the batch. With a `window` tokens see only those of their
  own window of so many regions a side (0: all).
  """

  depth: int
  width: int
  num_heads: int
  factors: tuple[int, ...]
  out_channels: int
  qk_norm: bool = False
  remat: str = "none"
  dtype: DTypeLike = jnp.float32
  attention: AttentionSettings = AttentionSettings()
  first: int = 0
  window: int = 0
  affine: bool = False
  gamma: bool = False

  @nn.compact
  def __call__(
    self,
    h: Float[Array, "b r d"],
    c: Float[Array, "b d"],
    z: Float[Array, "b h w c"],
    tokens: TokenIndex | tuple[TokenIndex, ...],
    key: Key[Array, ""] | None = None,
  ) -> Float[Array, "b h w o"]:
    """The correction on the cells of the finest grid, zero in regions of the coarsest grain.

    Args:
      h: one token a region, in raster order.
      c: the condition, of time and label.
      z: noisy latents, constant inside a code's cells.
      tokens: the tables of the batch's grain maps, of one capacity; or one a capacity, arrays
        [groups, rows, ...]: each of the equal groups that the batch consists of holds so many rows
        of that capacity, in this order (core.slots.Slots).
      key: of the keys that prob-sparse blocks sample.
    """
    rows, cols = z.shape[1:3]
    if isinstance(tokens, TokenIndex):
      tokens = (jax.tree.map(lambda x: x[None], tokens),)
    pack = Pack(tokens[0].length.shape[0], tuple(index.source.shape[1:] for index in tokens))
    tokens = [jax.tree.map(_flat, index) for index in tokens]
    position = PositionTable(rows, cols, self.width, self.dtype, name="position")()
    at = self.corners(rows, cols)
    codes = self.unmerge(h, cols) + jnp.take(position, at, axis=0)
    f = pack.join(
      [move_rows(x, t.source, t.slot) for x, t in zip(pack.rows(codes), tokens, strict=True)]
    )
    latents = pack.rows(rearrange(z, "b h w c -> b (h w) c")[:, at])
    code = pack.join([take_rows(x, t.source) for x, t in zip(latents, tokens, strict=True)])
    f = jnp.concatenate([f, self.linear(self.width, "code")(code)], axis=-1)
    f = self.linear(self.width, "merge")(f)
    f = Blocks(
      self.depth,
      self.width,
      self.num_heads,
      self.qk_norm,
      self.remat,
      self.dtype,
      self.attention,
      self.first,
      rows * cols,
      self.affine,
      self.gamma,
      name="blocks",
    )(f, c, [t.length for t in tokens], self.windows(tokens, rows, cols), key, pack)
    delta = FinalLayer(self.out_channels, self.dtype, self.affine, name="final")(f, c, pack)
    kept = [
      jnp.where((jnp.arange(x.shape[1]) < t.length[:, None])[..., None], x, 0)
      for x, t in zip(pack.split(delta), tokens, strict=True)
    ]
    placed = [move_rows(x, t.slot, t.source) for x, t in zip(kept, tokens, strict=True)]
    return self.spread(pack.unrows(placed), rows, cols)

  def grids(self, rows: int, cols: int) -> list[tuple[int, int, int]]:
    """(cells a side of a code, codes down, codes across) of grains 1 .. k-1 on a grid of cells."""
    spans = [f // self.factors[0] for f in reversed(self.factors[:-1])]
    return [(s, rows // s, cols // s) for s in spans]

  def corners(self, rows: int, cols: int) -> np.ndarray:
    """The upper-left cell of every code that some map could hold, in the order of `unmerge`."""
    cells = np.arange(rows * cols, dtype=np.int32).reshape(rows, cols)
    return np.concatenate([cells[::s, ::s].ravel() for s, _, _ in self.grids(rows, cols)])

  def spread(self, x: Float[Array, "b n o"], rows: int, cols: int) -> Float[Array, "b h w o"]:
    """Copies every code to its cells; a cell has one code that is not zero, or none."""
    out, start = 0, 0
    for s, down, across in self.grids(rows, cols):
      codes = rearrange(x[:, start : start + down * across], "b (i j) o -> b i j o", i=down)
      out = out + repeat(codes, "b i j o -> b (i s) (j t) o", s=s, t=s)
      start += down * across
    return out

  def windows(self, tokens: list[TokenIndex], rows: int, cols: int) -> list | None:
    """The number of each token's window, by capacity; that of padding means nothing."""
    if not self.window:
      return None
    side = self.window * (self.factors[-1] // self.factors[0])
    i, j = np.divmod(self.corners(rows, cols), cols)
    number = jnp.asarray(i // side * -(-cols // side) + j // side)
    return [jnp.take(number, t.source, mode="clip") for t in tokens]

  def unmerge(self, h: Float[Array, "b r d"], cells_across: int) -> Float[Array, "b n d"]:
    """Every code that some map could ask for, grain 1 first, each grain in raster order.

    A grain continues from the next coarser one: a linear map of each token to the block of codes
    that share its place. Three grains and more mark each by an embedding.
    """
    k, across = len(self.factors), cells_across * self.factors[0] // self.factors[-1]
    levels = []
    for g in range(1, k):
      r = self.factors[k - g] // self.factors[k - g - 1]
      h = self.linear(r * r * self.width, f"unmerge_{g}")(h)
      h = rearrange(h, "b (i j) (p q d) -> b (i p j q) d", j=across, p=r, q=r)
      across *= r
      levels.append(h)
    if k > 2:
      init = nn.initializers.normal(0.02)
      grain = self.param("grain", init, (k - 1, self.width)).astype(self.dtype)
      levels = [level + grain[g] for g, level in enumerate(levels)]
    return jnp.concatenate(levels, axis=1)

  def linear(self, features: int, name: str) -> nn.Dense:
    init = nn.initializers.xavier_uniform()
    return nn.Dense(features, kernel_init=init, dtype=self.dtype, name=name)
