"""Class labels as vectors: one row a class and one for "no class", or the tiers of a class tree.

The tiered embedder is EFDiT's (arXiv 2512.05152; what its fusions are is our reconstruction), but
for "swap", which is FineDiffusion's superclass row (arXiv 2402.18331).
"""

import flax.linen as nn
import jax.numpy as jnp

from dit_jax.core.errors import UserError
from dit_jax.core.tiers import Tiers
from dit_jax.core.typing import Array, DTypeLike, Float, Int

FUSIONS = ("swap", "sum", "concat")


class LabelEmbedder(nn.Module):
  """num_classes + 1 learned rows; row num_classes is the null class of classifier-free guidance.

  An unconditional model has num_classes = 0: the null row alone, its one learned vector. Who drops
  labels puts num_classes in their place before the call.
  """

  num_classes: int
  width: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, label: Int[Array, " b"]) -> Float[Array, "b d"]:
    return _table(self.num_classes + 1, self, "table")(label)


class TieredEmbedder(nn.Module):
  """A node of a class tree as a vector; nodes are numbered as in core.tiers.

  "swap": one table with a row a node. "sum": a table a level, the rows of a child and of all that
  holds it added. "concat": the same rows side by side through a linear map that starts as their
  sum; it has no bias, which could not be told from one of the coarsest table. Levels finer than the
  node are zeros. The null node is a row alone.

  Attributes:
    tiers: the tree.
    fusion: one of FUSIONS.
  """

  tiers: Tiers
  fusion: str
  width: int
  dtype: DTypeLike = jnp.float32

  def __post_init__(self):
    super().__post_init__()
    if self.fusion not in FUSIONS:
      raise UserError(f"fusion={self.fusion!r} is unknown; choose one of {', '.join(FUSIONS)}.")

  @nn.compact
  def __call__(self, node: Int[Array, " b"]) -> Float[Array, "b d"]:
    tiers = self.tiers
    if self.fusion == "swap":
      return _table(tiers.num_nodes, self, "table")(node)
    rows = jnp.asarray(tiers.rows())[node]
    terms = []
    for level, size in enumerate(tiers.sizes):
      row = rows[:, level]
      term = _table(size, self, f"level_{level}")(jnp.maximum(row, 0))
      terms.append(jnp.where(row[:, None] >= 0, term, 0))
    if self.fusion == "concat":
      fuse = nn.Dense(
        self.width, use_bias=False, kernel_init=_identities, dtype=self.dtype, name="fuse"
      )
      x = fuse(jnp.concatenate(terms, axis=-1))
    else:
      x = sum(terms)
    if not tiers.null:
      return x
    null = _table(1, self, "null")(jnp.zeros_like(node))
    return jnp.where((node == tiers.num_named)[:, None], null, x)


def label_embedder(model) -> nn.Module:
  """The child "label" of a model, by its fields num_classes, tiers, fusion, width and dtype."""
  if model.tiers is None:
    return LabelEmbedder(model.num_classes, model.width, model.dtype, name="label")
  return TieredEmbedder(model.tiers, model.fusion, model.width, model.dtype, name="label")


def _table(rows: int, layer: nn.Module, name: str) -> nn.Embed:
  init = nn.initializers.normal(0.02)
  return nn.Embed(rows, layer.width, embedding_init=init, dtype=layer.dtype, name=name)


def _identities(key, shape: tuple[int, int], dtype) -> Array:
  """[I; I; ...]: the linear map adds its inputs."""
  del key
  return jnp.tile(jnp.eye(shape[1], dtype=dtype), (shape[0] // shape[1], 1))
