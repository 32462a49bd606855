"""The dynamic content transformer: one token a region, then finer tokens where the map says so.

D2iT, arXiv 2504.09454, section 3: rough prediction plus correction. See models.refine_net for what
is the paper's and what is ours.
"""

import itertools

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange, repeat

from dit_jax.core.buckets import TokenIndex
from dit_jax.core.errors import UserError
from dit_jax.core.tiers import Tiers
from dit_jax.core.typing import Array, DTypeLike, Float, Int, Key
from dit_jax.models.dit import SIZES as DIT_SIZES
from dit_jax.models.refine_net import RefineNet
from dit_jax.nn import grains as grain_maps
from dit_jax.nn.adaln import FinalLayer
from dit_jax.nn.attention import AttentionSettings, check_heads, sampling_key
from dit_jax.nn.block import Blocks, check_remat
from dit_jax.nn.embed import PatchEmbed, PositionTable, TimestepEmbedder
from dit_jax.nn.label import label_embedder

DEPTHS = {  # base blocks, refine blocks; their sum is DiT's depth
  "S": (10, 2),  # ours, as B
  "B": (10, 2),  # the paper, table 4
  "L": (20, 4),  # ours: meets the published total of 467 M
  "XL": (24, 4),  # ours: meets the published total of 687 M
  "XL9": (24, 4),
}


def decode_variant(variant: str) -> dict[str, int]:
  """The fields of a preset: "XL" -> depth=24, refine_depth=4, width=1152, num_heads=16.

  There is no patch in the name: a base token is a region, f_k / f_1 cells wide.

  Raises:
    UserError: the name is not a key of DEPTHS.
  """
  if variant not in DEPTHS:
    raise UserError(
      f"Unknown {variant=} of the content transformer; expected one of {sorted(DEPTHS)} "
      "(without a patch size: the factors give it)."
    )
  (depth, refine_depth), (_, width, num_heads) = DEPTHS[variant], DIT_SIZES[variant]
  return dict(depth=depth, refine_depth=refine_depth, width=width, num_heads=num_heads)


def check_factors(factors: tuple[int, ...], grid: tuple[int, int]) -> None:
  """Raises UserError unless factors ascend by whole ratios and regions tile the grid."""
  pairs = list(itertools.pairwise(factors))
  if not pairs or any(b % a or b == a for a, b in pairs):
    raise UserError(
      f"{factors=} must be two or more, each a multiple of the one before, as (8, 16)."
    )
  p = factors[-1] // factors[0]
  if grid[0] % p or grid[1] % p:
    raise UserError(
      f"The latent grid {grid} must be a multiple of {p} cells (the regions of {factors=}) on both "
      f"sides; choose an image size that is a multiple of {factors[-1]}."
    )


class DCT(nn.Module):
  """Predicts noise that has the structure of a grain map, constant inside every code's cells.

  With refine_depth = 0 (the ablation "12 + 0") the base predicts every cell of a region by itself
  and the result is averaged over each code's copies.

  Attributes:
    depth: blocks over the R region tokens.
    refine_depth: blocks over the fine codes.
    factors: f_1 < ... < f_k.
    grid: cells of the finest latent grid, (h, w).
    num_classes: labels are 0 .. num_classes, the last one meaning "no class".
    tiers: the class tree whose nodes the labels are instead; None: there is none.
    fusion: see nn.label.TieredEmbedder.
    learn_sigma: the output has 2 z_channels, prediction then variance logits.
    remat: see nn.block.Blocks.
    window: refined tokens see only those of their own window of so many regions a side; 0: all.
    attention: which blocks are prob-sparse; the refinement's numbers follow the base's.
    dtype: of the computation; parameters, norms, softmax and the output are float32.
    affine, gamma: what fine-tuning adds to norms and branches; see nn.block.DiTBlock.
  """

  depth: int
  refine_depth: int
  width: int
  num_heads: int
  factors: tuple[int, ...]
  grid: tuple[int, int]
  z_channels: int = 4
  num_classes: int = 0
  learn_sigma: bool = True
  qk_norm: bool = False
  remat: str = "none"
  dtype: DTypeLike = jnp.float32
  attention: AttentionSettings = AttentionSettings()
  window: int = 0
  affine: bool = False
  gamma: bool = False
  tiers: Tiers | None = None
  fusion: str = "sum"

  def __post_init__(self):
    super().__post_init__()
    check_heads(self.width, self.num_heads)
    check_remat(self.remat)
    self.attention.check_blocks(self.depth + self.refine_depth)
    check_factors(tuple(self.factors), tuple(self.grid))
    if self.window < 0 or (self.window and self.attention.kind == "pro"):
      raise UserError(
        f"window={self.window} must be 0 (all tokens) or more regions a side, and needs "
        "attention.kind='full'."
      )

  @property
  def block_tokens(self) -> tuple[int, ...]:
    """The most tokens that each block can meet: regions in the base, finest codes after it."""
    cells = self.grid[0] * self.grid[1]
    regions = cells // (self.factors[-1] // self.factors[0]) ** 2
    return (regions,) * self.depth + (cells,) * self.refine_depth

  @nn.compact
  def __call__(
    self,
    z: Float[Array, "b h w c"],
    t_model: Float[Array, " b"],
    label: Int[Array, " b"],
    grains: Int[Array, "b rows cols"],
    tokens: TokenIndex | tuple[TokenIndex, ...],
  ) -> Float[Array, "b h w o"]:
    """Raw output for latents z at model time t_model (0 .. 1000).

    Args:
      z: noisy latents on the finest grid, constant inside every code's cells.
      t_model: what the timestep embedding sees.
      label: classes.
      grains: the grain maps, 0 the coarsest.
      tokens: the tables of the same maps, as RefineNet takes them.
    """
    assert z.shape[1:] == (*self.grid, self.z_channels), (z.shape, self.grid, self.z_channels)
    channels = self.z_channels * (2 if self.learn_sigma else 1)
    p = self.factors[-1] // self.factors[0]
    key = sampling_key(self)
    h, c = self.base(z, t_model, label, grains, key)
    if not self.refine_depth:
      out = FinalLayer(p * p * channels, self.dtype, self.affine, name="final")(h, c)
      out = rearrange(out, "b (i j) (p q c) -> b (i p) (j q) c", i=grains.shape[1], p=p, q=p)
      return grain_maps.project(out, grains, self.factors)
    rough = FinalLayer(channels, self.dtype, self.affine, name="final")(h, c)
    rough = repeat(rough, "b (i j) c -> b (i p) (j q) c", i=grains.shape[1], p=p, q=p)
    refine = RefineNet(
      self.refine_depth,
      self.width,
      self.num_heads,
      self.factors,
      channels,
      self.qk_norm,
      self.remat,
      self.dtype,
      self.attention,
      self.depth,
      self.window,
      self.affine,
      self.gamma,
      name="refine",
    )
    return rough + refine(h, c, z, tokens, key)

  def base(
    self,
    z: Float[Array, "b h w c"],
    t_model: Float[Array, " b"],
    label: Int[Array, " b"],
    grains: Int[Array, "b rows cols"],
    key: Key[Array, ""] | None = None,
  ) -> tuple[Float[Array, "b r d"], Float[Array, "b d"]]:
    """The region tokens after the base blocks, and the condition."""
    dtype, width = self.dtype, self.width
    _, rows, cols = grains.shape
    patch = self.factors[-1] // self.factors[0]
    embed = nn.Embed(
      len(self.factors),
      width,
      embedding_init=nn.initializers.normal(0.02),
      dtype=dtype,
      name="grain",
    )
    h = PatchEmbed(patch, width, dtype, name="patch_embed")(z)
    h = h + PositionTable(rows, cols, width, dtype, name="position")()
    h = h + embed(rearrange(grains, "b r c -> b (r c)"))
    c = TimestepEmbedder(width, dtype=dtype, name="time")(t_model)
    c = c + label_embedder(self)(label)
    h = Blocks(
      self.depth,
      width,
      self.num_heads,
      self.qk_norm,
      self.remat,
      dtype,
      self.attention,
      affine=self.affine,
      gamma=self.gamma,
      name="blocks",
    )(h, c, key=key)
    return h, c
