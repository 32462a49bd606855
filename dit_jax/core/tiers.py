"""A tree of classes as numbers: its nodes, their ancestors, and which of them training shows.

A node is one integer: the children first (0 .. C - 1, as labels are), then every coarser level in
turn, then "no class" where there is such a node. So what is one label an image can be a superclass,
or nothing, just as well.
"""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np

from dit_jax.core import rng
from dit_jax.core.errors import UserError
from dit_jax.core.typing import Array, Int, Key


@dataclasses.dataclass(frozen=True)
class Tiers:
  """Levels of classes, 0 the children; level `num_levels` is "no class".

  Attributes:
    sizes: nodes of every level, finest first.
    parents: for every level but the coarsest, the number of each node's parent within the next.
    null: whether there is a node for "no class", the last one.
  """

  sizes: tuple[int, ...]
  parents: tuple[tuple[int, ...], ...] = ()
  null: bool = True

  def __post_init__(self):
    assert [len(p) for p in self.parents] == list(self.sizes[:-1]), self.sizes
    for above, size in zip(self.parents, self.sizes[1:], strict=True):
      assert set(above) <= set(range(size)), size

  @property
  def num_levels(self) -> int:
    """Levels with classes."""
    return len(self.sizes)

  @property
  def num_named(self) -> int:
    """Nodes that are classes."""
    return sum(self.sizes)

  @property
  def num_nodes(self) -> int:
    """All nodes."""
    return self.num_named + self.null

  def rows(self) -> Int[np.ndarray, "nodes levels"]:
    """The number, within every level, of the class that holds a node; -1 at finer levels."""
    table = np.full((self.num_nodes, self.num_levels), -1, np.int32)
    for level, (start, size) in enumerate(zip(self._starts(), self.sizes, strict=True)):
      row = np.arange(size)
      for above in range(level, self.num_levels):
        table[start : start + size, above] = row
        if above + 1 < self.num_levels:
          row = np.asarray(self.parents[above], np.int32)[row]
    return table

  def ancestors(self, level: int) -> Int[np.ndarray, " nodes"]:
    """The node of `level` that holds a node; a node at that level or coarser is its own.

    Raises:
      UserError: no such level above the children.
    """
    self.check_level(level)
    if level == self.num_levels:
      return np.full(self.num_nodes, self.num_named, np.int32)
    row = self.rows()[:, level]
    start = list(self._starts())[level]
    return np.where(row < 0, np.arange(self.num_nodes), start + row).astype(np.int32)

  def check_level(self, level: int) -> None:
    """Raises UserError unless `level` is coarser than the children and part of this tree."""
    most = self.num_levels - 1 + self.null
    if not 1 <= level <= most:
      end = f'{most} ("no class")' if self.null else f"{most}, its coarsest"
      raise UserError(
        f"guidance_level={level}: this model's labels have the levels 1 to {end}; choose one."
      )

  def _starts(self):
    return itertools.accumulate(self.sizes[:-1], initial=0)


@dataclasses.dataclass(frozen=True)
class Drop:
  """What training shows of a label: the child, a coarser level, or nothing.

  With p_null the null node; else with p_drop one of the coarser levels, each as likely, so that all
  that is finer is removed; else the child.
  """

  tiers: Tiers
  p_drop: float = 0.0
  p_null: float = 0.0

  def __post_init__(self):
    assert self.tiers.null or not self.p_null, "p_null needs a null node"

  def __call__(self, keys: Key[Array, " b"], label: Int[Array, " b"]) -> Int[Array, " b"]:
    """Nodes for labels; a row's draw depends on its key alone."""
    tiers, coarser = self.tiers, self.tiers.num_levels - 1
    share = (1 - self.p_null) * self.p_drop / max(coarser, 1)
    ends = jnp.asarray(self.p_null + share * np.arange(coarser + 1), jnp.float32)
    place = jnp.searchsorted(ends, rng.uniform(keys), side="right")
    # By place: nothing (where p_null is 0, never drawn), the coarser levels, the child itself.
    nothing = tiers.num_named if tiers.null else 0
    columns = [jnp.full_like(label, nothing)]
    columns += [jnp.asarray(tiers.ancestors(i + 1))[label] for i in range(coarser)]
    return jnp.take_along_axis(jnp.stack([*columns, label], 1), place[:, None], axis=1)[:, 0]
