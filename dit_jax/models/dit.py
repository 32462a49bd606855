"""Diffusion transformer on a dense latent grid (DiT, Peebles and Xie, arXiv 2212.09748)."""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange

from dit_jax.core.errors import UserError
from dit_jax.core.tiers import Tiers
from dit_jax.core.typing import Array, DTypeLike, Float, Int
from dit_jax.nn.adaln import FinalLayer
from dit_jax.nn.attention import AttentionSettings, check_heads, sampling_key
from dit_jax.nn.block import Blocks, check_remat
from dit_jax.nn.embed import MAX_PERIOD, PatchEmbed, PositionTable, TimestepEmbedder
from dit_jax.nn.label import label_embedder

SIZES = {  # depth, width, heads: DiT paper, Table 1
  "S": (12, 384, 6),
  "B": (12, 768, 12),
  "L": (24, 1024, 16),
  "XL": (28, 1152, 16),
  "XL9": (28, 1152, 9),  # ours: XL with heads of 128, which fill a matrix unit; 72 does not
}


def decode_variant(variant: str) -> dict[str, int]:
  """The fields of a preset: "XL/2" -> depth=28, width=1152, num_heads=16, patch=2.

  Raises:
    UserError: the name is not SIZE/PATCH with a size of SIZES.
  """
  size, _, patch = variant.partition("/")
  if size not in SIZES or not patch.isdigit() or int(patch) < 1:
    raise UserError(f"Unknown {variant=}; expected SIZE/PATCH with SIZE in {sorted(SIZES)}.")
  depth, width, num_heads = SIZES[size]
  return dict(depth=depth, width=width, num_heads=num_heads, patch=int(patch))


class DiT(nn.Module):
  """Predicts the noise (or another target) of a noisy latent grid.

  The position table is learned and starts as DiT's fixed sine-cosine one.

  Attributes:
    grid: cells of the latent grid, (h, w).
    num_classes: labels are 0 .. num_classes, the last one meaning "no class".
    tiers: the class tree whose nodes the labels are instead; None: there is none.
    fusion: see nn.label.TieredEmbedder.
    learn_sigma: the output has 2 z_channels, prediction then variance logits.
    max_period: of the timestep's sinusoids, see nn.embed.sinusoids; diffusers has another one.
    remat: see nn.block.Blocks.
    dtype: of the computation; parameters, norms, softmax and the output are float32.
    affine, gamma: what fine-tuning adds to norms and branches; see nn.block.DiTBlock.
  """

  depth: int
  width: int
  num_heads: int
  patch: int
  grid: tuple[int, int]
  z_channels: int = 4
  num_classes: int = 0
  learn_sigma: bool = True
  qk_norm: bool = False
  max_period: float = MAX_PERIOD
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
    if self.grid[0] % self.patch or self.grid[1] % self.patch:
      raise UserError(
        f"The latent grid {self.grid} must be a multiple of patch={self.patch} on both sides; "
        "change the image size or the patch."
      )
    if not 1 < self.max_period < float("inf"):
      raise UserError(f"max_period={self.max_period} must be above 1; DiT has {MAX_PERIOD}.")

  @property
  def block_tokens(self) -> tuple[int, ...]:
    """The most tokens that each block can meet."""
    return (self.grid[0] * self.grid[1] // self.patch**2,) * self.depth

  @nn.compact
  def __call__(
    self, z: Float[Array, "b h w c"], t_model: Float[Array, " b"], label: Int[Array, " b"]
  ) -> Float[Array, "b h w o"]:
    """Raw output for latents z at model time t_model (0 .. 1000) under the labels."""
    assert z.shape[1:] == (*self.grid, self.z_channels), (z.shape, self.grid, self.z_channels)
    p, dtype = self.patch, self.dtype
    rows, cols = self.grid[0] // p, self.grid[1] // p
    x = PatchEmbed(p, self.width, dtype, name="patch_embed")(z)
    x = x + PositionTable(rows, cols, self.width, dtype, name="position")()
    c = TimestepEmbedder(self.width, dtype=dtype, max_period=self.max_period, name="time")(t_model)
    c = c + label_embedder(self)(label)
    x = Blocks(
      self.depth,
      self.width,
      self.num_heads,
      self.qk_norm,
      self.remat,
      dtype,
      self.attention,
      affine=self.affine,
      gamma=self.gamma,
      name="blocks",
    )(x, c, key=sampling_key(self))
    channels = self.z_channels * (2 if self.learn_sigma else 1)
    x = FinalLayer(p * p * channels, dtype, self.affine, name="final")(x, c)
    return rearrange(x, "b (h w) (p q c) -> b (h p) (w q) c", h=rows, p=p, q=p)
