"""Multi-head self-attention over an image's tokens, dense or prob-sparse."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange

from dit_jax.core.errors import UserError
from dit_jax.core.typing import Array, DTypeLike, Float, Key
from dit_jax.kernels.attention import KINDS, attention
from dit_jax.kernels.pro_attention.settings import KEYS, UNIFORMS, ProSettings
from dit_jax.nn.pack import Pack

ANNEALED = (1, 2, 4, 8)  # parts of the queries that attend, one after another, before c decides


def check_heads(width: int, num_heads: int) -> None:
  """Raises UserError unless the heads share the width evenly."""
  if num_heads < 1 or width % num_heads:
    raise UserError(
      f"{width=} must be a multiple of {num_heads=}; change one of the two in the model's config."
    )


@dataclasses.dataclass(frozen=True)
class AttentionSettings:
  """Which blocks of a model are prob-sparse, and how: a property of the model on every device.

  Attributes:
    kind: "full", or "pro" for ProAttention (kernels.pro_attention; our reconstruction of EFDiT's)
      in the blocks below.
    c: queries that attend, and keys that measure them, for each step of ceil(ln n).
    keys: "shared" by a head's queries, or "per_query".
    pro_blocks: numbers of the blocks, those of a refinement after those of its base; () is all.
    pro_min_tokens: a block whose sequences cannot be this long is dense.
    anneal: share of the training steps over which the attending queries fall from all to c's.
    dense_snr: when sampling, steps with a signal-to-noise ratio alpha^2 / sigma^2 of this or more
      are dense; 0 means none.
    part: at least one in `part` queries attends: what `anneal` goes through; 0 leaves it to c.

  Raises:
    UserError: an unknown name or a number out of range.
  """

  kind: str = "full"
  c: int = 5
  keys: str = "shared"
  pro_blocks: tuple[int, ...] = ()
  pro_min_tokens: int = 1024
  anneal: float = 0.1
  dense_snr: float = 0.0
  part: int = 0

  def __post_init__(self):
    for field, known in (("kind", KINDS), ("keys", KEYS)):
      if getattr(self, field) not in known:
        raise UserError(
          f"attention.{field}={getattr(self, field)!r} is unknown; choose one of {list(known)}."
        )
    for field, low, high in (("c", 1, UNIFORMS), ("anneal", 0, 1), ("pro_min_tokens", 1, 2**31)):
      if not low <= getattr(self, field) <= high:
        raise UserError(f"attention.{field}={getattr(self, field)} must be from {low} to {high}.")
    if self.dense_snr < 0:
      raise UserError(f"attention.dense_snr={self.dense_snr} must be 0 (never) or more.")

  def of_block(self, number: int, tokens: int) -> ProSettings | None:
    """The settings of block `number`, whose sequences have `tokens` at most; None if dense.

    Raises:
      UserError: c asks for more keys than a head draws.
    """
    listed = not self.pro_blocks or number in self.pro_blocks
    if self.kind == "full" or not listed or tokens < self.pro_min_tokens:
      return None
    settings = ProSettings(self.c, self.keys, self.part)
    if settings.num_keys(tokens) > UNIFORMS:
      raise UserError(
        f"attention.c={self.c} samples {settings.num_keys(tokens)} keys of {tokens} tokens; at "
        f"most {UNIFORMS} are drawn: choose a smaller c."
      )
    return settings

  def check_blocks(self, depth: int) -> None:
    """Raises UserError where pro_blocks names a block that a model of `depth` lacks."""
    if unknown := [number for number in self.pro_blocks if not 0 <= number < depth]:
      raise UserError(
        f"attention.pro_blocks names block {unknown[0]}; the model has the blocks 0 to {depth - 1}."
      )

  def phases(
    self, total_steps: int, block_tokens: tuple[int, ...]
  ) -> tuple[tuple[int, "AttentionSettings"], ...]:
    """(steps done before the phase, settings) of a training run: one program a phase.

    Args:
      total_steps: of the run.
      block_tokens: the most tokens that each block can meet.
    """
    end = round(self.anneal * total_steps) if self.kind == "pro" else 0
    starts = {end: 0}
    for i, part in reversed(list(enumerate(ANNEALED))):
      starts.setdefault(end * i // len(ANNEALED), part)  # a run too short skips the first ones
    phases, before = [], None
    for start in sorted(starts):
      settings = dataclasses.replace(self, part=starts[start])
      selected = [
        pro and pro.num_queries(n)
        for n, pro in ((n, settings.of_block(i, n)) for i, n in enumerate(block_tokens))
      ]
      if selected != before:  # or it is the program of the phase before
        phases.append((start, settings))
      before = selected
    return tuple(phases)


def sampling_key(model: nn.Module):
  """The model's key for the keys that its blocks sample, one for all of a step; None if fixed."""
  return model.make_rng("attention") if model.has_rng("attention") else None


class SelfAttention(nn.Module):
  """Attention among n tokens; with lengths, among the first lengths[i] of image i.

  qk_norm divides every query and key by its root mean square (in float32) and scales it by a
  learned vector, which keeps the scores bounded over long bf16 runs.
  """

  num_heads: int
  width: int
  qk_norm: bool = False
  dtype: DTypeLike = jnp.float32
  pro: ProSettings | None = None

  def __post_init__(self):
    super().__post_init__()
    check_heads(self.width, self.num_heads)

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "s n d"],
    lengths: Any = None,
    segments: Any = None,
    key: Key[Array, ""] | None = None,
    pack: Pack | None = None,
  ) -> Float[Array, "s n d"]:
    """Mixes the tokens of every image.

    Args:
      x: the tokens, or those of a packed batch.
      lengths: true lengths [b]; None where all are full.
      segments: [b, n], with them tokens see those of their own number alone.
      key: decides which keys measure the queries under `pro`; None fixes them.
      pack: of x; lengths and segments are then lists, of every part.
    """
    init = nn.initializers.xavier_uniform()
    qkv = nn.Dense(3 * self.width, kernel_init=init, dtype=self.dtype, name="qkv")(x)
    q, k, v = rearrange(qkv, "b n (three h d) -> three b n h d", three=3, h=self.num_heads)
    if self.qk_norm:
      q = nn.RMSNorm(dtype=jnp.float32, name="q_norm")(q).astype(self.dtype)
      k = nn.RMSNorm(dtype=jnp.float32, name="k_norm")(k).astype(self.dtype)
    if pack is None:
      out = self.attend(q, k, v, lengths, segments, key)
    else:
      segments = segments or [None] * len(pack.parts)
      parts = zip(*(pack.split(x) for x in (q, k, v)), lengths, segments, strict=True)
      out = pack.join([self.attend(*part, key) for part in parts])
    out = rearrange(out, "b n h d -> b n (h d)")
    return nn.Dense(self.width, kernel_init=init, dtype=self.dtype, name="proj")(out)

  def attend(self, q, k, v, lengths, segments, key):
    """Dense or prob-sparse attention of whole rows."""
    if self.pro is None:
      return attention(q, k, v, lengths, segments=segments)
    return attention(q, k, v, lengths, kind="pro", key=key, settings=self.pro)
