"""RefineNet: corrects the rough prediction where the image is detailed.

D2iT's second stage predicts roughly for every region, then refines the regions of fine grain. Its
inside is our reconstruction, which meets the published parameter totals (D2iT, arXiv 2504.09454,
tables 1 and 2).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from dit_jax.core.buckets import TokenIndex
from dit_jax.core.mesh import pin_rows
from dit_jax.core.typing import Array, DTypeLike, Float, Int, Key
from dit_jax.nn.adaln import FinalLayer
from dit_jax.nn.attention import AttentionSettings
from dit_jax.nn.block import Blocks
from dit_jax.nn.embed import PositionTable


def take_rows(x: Float[Array, "b n d"], index: Int[Array, "b m"]) -> Float[Array, "b m d"]:
  """x[i, index[i]], zeros where the index is out of range; such a row gets no gradient."""
  return jnp.take_along_axis(x, index[..., None], axis=1, mode="fill", fill_value=0)


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

  @nn.compact
  def __call__(
    self,
    h: Float[Array, "b r d"],
    c: Float[Array, "b d"],
    z: Float[Array, "b h w c"],
    tokens: TokenIndex,
    key: Key[Array, ""] | None = None,
  ) -> Float[Array, "b h w o"]:
    """The correction on the cells of the finest grid, zero in regions of the coarsest grain.

    Args:
      h: one token a region, in raster order.
      c: the condition, of time and label.
      z: noisy latents, constant inside a code's cells.
      tokens: the tables of the batch's grain maps.
      key: of the keys that prob-sparse blocks sample.
    """
    rows, cols = z.shape[1:3]
    f = take_rows(self.unmerge(h, cols), tokens.source)
    position = PositionTable(rows, cols, self.width, self.dtype, name="position")()
    f = f + jnp.take(position, tokens.cell, axis=0, mode="fill", fill_value=0)
    code = take_rows(rearrange(z, "b h w c -> b (h w) c"), tokens.cell)
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
      name="blocks",
    )(f, c, tokens.length, self.windows(tokens.cell, cols), key)
    delta = FinalLayer(self.out_channels, self.dtype, name="final")(f, c)
    kept = jnp.arange(delta.shape[1]) < tokens.length[:, None]
    delta = jnp.where(kept[..., None], delta, 0)
    return rearrange(take_rows(delta, tokens.slot), "b (h w) o -> b h w o", h=rows)

  def windows(self, cell: Int[Array, "b m"], cells_across: int) -> Int[Array, "b m"] | None:
    """The number of each token's window; that of padding means nothing."""
    if not self.window:
      return None
    side = self.window * (self.factors[-1] // self.factors[0])
    i, j = jnp.divmod(cell, cells_across)
    return i // side * -(-cells_across // side) + j // side

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


def in_slots(
  refine,
  h: Float[Array, "b r d"],
  c: Float[Array, "b d"],
  z: Float[Array, "b h w c"],
  tokens: tuple[TokenIndex, ...],
  key: Key[Array, ""] | None = None,
) -> Float[Array, "b h w o"]:
  """`refine` on the sub-batches of a mixed step, one after another, back in the order of the rows.

  Args:
    refine: as RefineNet.__call__.
    h, c, z, key: of the whole batch.
    tokens: one a capacity, arrays [groups, rows, ...]: each of the equal groups that the batch
      consists of holds so many rows of that capacity, in this order (core.slots.Slots).
  """
  groups = tokens[0].length.shape[0]
  by_group = [rearrange(x, "(s l) ... -> s l ...", s=groups) for x in (h, c, z)]
  deltas, start = [], 0
  for index in tokens:
    rows = index.length.shape[1]
    own = [x[:, start : start + rows] for x in by_group]
    flat = lambda x: pin_rows(rearrange(x, "s l ... -> (s l) ..."))
    *own, index = jax.tree.map(flat, (*own, index))
    deltas.append(rearrange(refine(*own, index, key), "(s l) ... -> s l ...", s=groups))
    start += rows
  return pin_rows(rearrange(jnp.concatenate(deltas, axis=1), "s l ... -> (s l) ..."))
