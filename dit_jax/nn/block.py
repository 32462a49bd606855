"""The DiT block and a stack of them (DiT, figure 3: adaLN-Zero)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.core.errors import UserError
from dit_jax.core.mesh import pin_rows
from dit_jax.core.typing import Array, DTypeLike, Float, Key
from dit_jax.kernels.pro_attention.settings import ProSettings
from dit_jax.nn.adaln import AdaLN, LayerNorm, modulate
from dit_jax.nn.attention import AttentionSettings, SelfAttention
from dit_jax.nn.mlp import MLP
from dit_jax.nn.pack import Pack

REMAT = {  # what the backward pass may keep of a block
  "full": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def check_remat(remat: str) -> None:
  """Raises UserError for a name that is neither "none" nor in REMAT."""
  if remat != "none" and remat not in REMAT:
    raise UserError(f"{remat=} is unknown; expected one of {['none', *REMAT]}.")


class DiTBlock(nn.Module):
  """Attention and MLP, each modulated and gated by the condition; the identity at init.

  affine: both norms have a learned scale and bias (nn.adaln.LayerNorm).
  gamma: each branch has a learned factor a channel, 1 at init (DiffFit, arXiv 2304.06648; that it
  is a vector and not one number is our choice).
  """

  width: int
  num_heads: int
  qk_norm: bool = False
  dtype: DTypeLike = jnp.float32
  pro: ProSettings | None = None
  affine: bool = False
  gamma: bool = False

  @nn.compact
  def __call__(
    self,
    h: Float[Array, "s n d"],
    c: Float[Array, "b d"],
    lengths: Any = None,
    segments: Any = None,
    key: Key[Array, ""] | None = None,
    pack: Pack | None = None,
  ) -> Float[Array, "s n d"]:
    """One block; lengths, segments and pack as for SelfAttention."""
    chunks = AdaLN(6, dtype=self.dtype, name="adaln")(c, pack)
    shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = chunks
    attn = SelfAttention(
      self.num_heads, self.width, self.qk_norm, self.dtype, self.pro, name="attn"
    )
    mlp = MLP(dtype=self.dtype, name="mlp")
    if self.gamma:
      gate_attn, gate_mlp = (
        gate * self.param(name, nn.initializers.ones, (self.width,)).astype(self.dtype)
        for name, gate in (("gamma_attn", gate_attn), ("gamma_mlp", gate_mlp))
      )
    seen = modulate(LayerNorm(self.affine, name="norm1")(h), shift_attn, scale_attn)
    h = h + gate_attn * attn(seen, lengths, segments, key, pack)
    seen = modulate(LayerNorm(self.affine, name="norm2")(h), shift_mlp, scale_mlp)
    return h + gate_mlp * mlp(seen)


class Blocks(nn.Module):
  """`depth` DiT blocks in a row.

  remat: "none" keeps every activation for the backward pass, "full" only the input of each block,
  "dots" also the results of its weight matrices.
  attention: which blocks are prob-sparse; they are numbered from `first`, and their sequences have
  `max_tokens` at most (0: as many as come in).
  affine, gamma: see DiTBlock.
  """

  depth: int
  width: int
  num_heads: int
  qk_norm: bool = False
  remat: str = "none"
  dtype: DTypeLike = jnp.float32
  attention: AttentionSettings = AttentionSettings()
  first: int = 0
  max_tokens: int = 0
  affine: bool = False
  gamma: bool = False

  def __post_init__(self):
    super().__post_init__()
    check_remat(self.remat)

  @nn.compact
  def __call__(
    self,
    h: Float[Array, "s n d"],
    c: Float[Array, "b d"],
    lengths: Any = None,
    segments: Any = None,
    key: Key[Array, ""] | None = None,
    pack: Pack | None = None,
  ) -> Float[Array, "s n d"]:
    """Runs the blocks; `key` gives each its own draw of sampled keys, by its number."""
    block = (
      DiTBlock
      if self.remat == "none"
      else nn.remat(DiTBlock, policy=REMAT[self.remat], static_argnums=(6,))
    )
    tokens, h = self.max_tokens or h.shape[1], pin_rows(h)
    for i in range(self.depth):
      number = self.first + i
      pro = self.attention.of_block(number, tokens)
      own = None if key is None or pro is None else jax.random.fold_in(key, number)
      fields = self.width, self.num_heads, self.qk_norm, self.dtype, pro, self.affine, self.gamma
      h = block(*fields, name=f"block_{i:02d}")(h, c, lengths, segments, own, pack)
      h = pin_rows(h)
    return h
