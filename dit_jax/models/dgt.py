"""The dynamic grain transformer: a generative model of grain maps given the label.

D2iT, arXiv 2504.09454, section 3: the label gives the grain map. How it is drawn is our
reconstruction: masked (absorbing) discrete diffusion over {0 .. k-1, mask}, trained with the exact
any-order bound and sampled in random order (sampling.grain_maps).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from dit_jax.core import rng
from dit_jax.core.errors import UserError
from dit_jax.core.tiers import Tiers
from dit_jax.core.typing import Array, Bool, DTypeLike, Float, Int, Key
from dit_jax.nn.adaln import FinalLayer
from dit_jax.nn.attention import AttentionSettings, check_heads, sampling_key
from dit_jax.nn.block import Blocks, check_remat
from dit_jax.nn.embed import PositionTable
from dit_jax.nn.label import label_embedder


class DGT(nn.Module):
  """Logits of every region's grain from the regions already known and the label.

  There is no timestep: the number of masked cells is visible in the input.

  Attributes:
    grid: regions, (rows, cols).
    num_grains: k; the value k in the input means "masked".
    num_classes: labels are 0 .. num_classes, the last one meaning "no class".
    affine, gamma: what fine-tuning adds to norms and branches; see nn.block.DiTBlock.
    tiers: the class tree whose nodes the labels are instead; None: there is none.
    fusion: see nn.label.TieredEmbedder.
  """

  grid: tuple[int, int]
  num_grains: int = 2
  num_classes: int = 0
  depth: int = 12
  width: int = 384
  num_heads: int = 6
  qk_norm: bool = False
  remat: str = "none"
  dtype: DTypeLike = jnp.float32
  attention: AttentionSettings = AttentionSettings()
  affine: bool = False
  gamma: bool = False
  tiers: Tiers | None = None
  fusion: str = "sum"

  def __post_init__(self):
    super().__post_init__()
    check_heads(self.width, self.num_heads)
    check_remat(self.remat)
    self.attention.check_blocks(self.depth)
    if self.num_grains < 2:
      raise UserError(f"num_grains={self.num_grains} leaves nothing to draw; it must be 2 or more.")

  @property
  def block_tokens(self) -> tuple[int, ...]:
    """The most tokens that each block can meet."""
    return (self.grid[0] * self.grid[1],) * self.depth

  @nn.compact
  def __call__(
    self, cells: Int[Array, "b rows cols"], label: Int[Array, " b"]
  ) -> Float[Array, "b rows cols k"]:
    assert cells.shape[1:] == tuple(self.grid), (cells.shape, self.grid)
    rows, cols = self.grid
    init = nn.initializers.normal(0.02)
    embed = nn.Embed(
      self.num_grains + 1, self.width, embedding_init=init, dtype=self.dtype, name="grain"
    )
    x = embed(rearrange(cells, "b r c -> b (r c)"))
    x = x + PositionTable(rows, cols, self.width, self.dtype, name="position")()
    c = label_embedder(self)(label)
    x = Blocks(
      self.depth,
      self.width,
      self.num_heads,
      self.qk_norm,
      self.remat,
      self.dtype,
      self.attention,
      affine=self.affine,
      gamma=self.gamma,
      name="blocks",
    )(x, c, key=sampling_key(self))
    logits = FinalLayer(self.num_grains, self.dtype, self.affine, name="final")(x, c)
    return rearrange(logits, "b (r c) k -> b r c k", r=rows)


def mask_tokens(
  keys: Key[Array, " b"], grains: Int[Array, "b rows cols"], num_grains: int
) -> tuple[Int[Array, "b rows cols"], Bool[Array, "b rows cols"]]:
  """Masks n cells of each map, n uniform in 1 .. R, the subset uniform among those of size n.

  Returns:
    The maps with `num_grains` in the masked cells, and where those are.
  """
  _, rows, cols = grains.shape
  n = jax.vmap(lambda key: jax.random.randint(key, (), 1, rows * cols + 1))(rng.stream(keys, "n"))
  place = jax.vmap(lambda key: jax.random.permutation(key, rows * cols))(rng.stream(keys, "subset"))
  masked = rearrange(place < n[:, None], "b (r c) -> b r c", r=rows)
  return jnp.where(masked, num_grains, grains), masked


def masked_cross_entropy(
  logits: Float[Array, "b rows cols k"],
  grains: Int[Array, "b rows cols"],
  masked: Bool[Array, "b rows cols"],
) -> Float[Array, " b"]:
  """(1/n) sum over the n masked cells of the cross-entropy in nats, per image.

  In expectation over mask_tokens this is the any-order bound on -log p(map), per cell.
  """
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
  nats = -jnp.take_along_axis(log_p, grains[..., None], axis=-1)[..., 0]
  return jnp.where(masked, nats, 0).sum((1, 2)) / jnp.maximum(masked.sum((1, 2)), 1)
