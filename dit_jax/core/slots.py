"""The slots of a mixed step: how many images of a batch run at which capacity.

Refinement is the only ragged part of a step, so a batch is cut into sub-batches of static shape,
one a capacity. Slots are capacities, not shares: an image may sit in any slot that holds its
tokens. For every edge e, a multiple of the quantum,

    slots of capacity >= e  =  the next multiple of the unit  >=  B P(an image needs >= e)       (1)

so that no image, however rare its size, is ever left without a slot (D2iT; our reconstruction). Of
all edges those become capacities, eight at most, that cost the fewest tokens.
"""

import dataclasses

import numpy as np

from dit_jax.core import buckets

MODES = ("mixed", "pad", "budget")
MOST = 8  # capacities; each compiles attention once more


@dataclasses.dataclass(frozen=True)
class Slots:
  """The sub-batches of a global batch, largest capacity first.

  A batch is laid out in `groups` equal groups of rows, one for every shard and micro-batch; each
  group holds its share of every capacity, so that all devices do equal work.

  Attributes:
    capacities: refinement tokens of a slot.
    counts: slots of each capacity in the global batch, multiples of `groups`.
    groups: into how many equal parts the rows are cut.
  """

  capacities: tuple[int, ...]
  counts: tuple[int, ...]
  groups: int = 1

  def __post_init__(self):
    assert all(count % self.groups == 0 for count in self.counts), self

  @property
  def rows(self) -> tuple[int, ...]:
    """Rows of each capacity in one group."""
    return tuple(count // self.groups for count in self.counts)

  def order(self) -> np.ndarray:
    """The rank in descending order of tokens that each row of the batch takes, [B]."""
    starts = np.cumsum((0, *self.counts))
    parts = [
      np.arange(start, start + count).reshape(-1, self.groups).T
      for start, count in zip(starts, self.counts, strict=False)
    ]
    return np.concatenate(parts, axis=1).ravel()


def at_least(tokens: np.ndarray, batch_size: int, quantum: int, unit: int = 1) -> np.ndarray:
  """Eq. (1): the slots that must hold 1, 2, ... quanta or more, descending from the batch size.

  Where an epoch's steps take images over from the epoch before, their share may exceed P by less
  than two images an epoch; that too is provided for.

  Args:
    tokens: refinement tokens of every image of the training set.
    batch_size: of the global batch, a multiple of the unit.
    quantum: tokens from one edge to the next.
    unit: every number is a multiple of it.
  """
  needed = buckets.edges_needed(tokens, quantum)
  spare = 2 / max(1, len(needed) // batch_size) if len(needed) % batch_size else 0.0
  share = np.cumsum(np.bincount(needed)[:0:-1])[::-1] / len(needed)
  slots = np.ceil((batch_size * share + spare) / unit - 1e-9).astype(int) * unit
  return np.minimum(slots, batch_size)


def of_mode(mode: str, tokens: np.ndarray, batch_size: int, quantum: int, groups: int = 1) -> Slots:
  """The slots of a step: "mixed" ones, or one shape that holds every image.

  Under "budget" all images have as many tokens, and so that shape pads none.
  """
  if mode == "mixed":
    return mixed(tokens, batch_size, quantum, groups)
  return one(max(1, int(tokens.max())), batch_size, groups)


def mixed(tokens: np.ndarray, batch_size: int, quantum: int, groups: int = 1) -> Slots:
  """The slots of the fewest tokens that satisfy Eq. (1) with `groups` as the unit."""
  least = at_least(tokens, batch_size, quantum, groups)
  edges = len(least)
  # cost[e]: tokens, in quanta, of the slots for all images that need e or less, with the capacity e
  # among them; `below[m][e]` is the next smaller capacity where at most m + 1 are used.
  above = np.append(least[1:], 0)  # slots that must be larger than edge e = 1, 2, ...
  cost = np.array([(batch_size - above[e]) * (e + 1) for e in range(edges)])
  below = [np.full(edges, -1)]
  for _ in range(MOST - 1):
    step, best = cost.copy(), below[-1].copy()
    for e in range(edges):
      for smaller in range(e):
        total = cost[smaller] + (above[smaller] - above[e]) * (e + 1)
        if total < step[e]:
          step[e], best[e] = total, smaller
    below.append(best)
    cost = step
  capacities, edge, left = [], edges - 1, MOST - 1
  while edge >= 0:
    capacities.append(int(edge))
    edge, left = below[left][edge], left - 1
  bounds = [0, *(int(above[e]) for e in capacities[1:]), batch_size]
  counts = np.diff(bounds)
  kept = [(quantum * (e + 1), int(n)) for e, n in zip(capacities, counts, strict=True) if n]
  return Slots(tuple(c for c, _ in kept), tuple(n for _, n in kept), groups)


def one(capacity: int, batch_size: int, groups: int = 1) -> Slots:
  """A batch of one static shape."""
  return Slots((capacity,), (batch_size,), groups)


def tables(
  grains: np.ndarray, factors: tuple[int, ...], slots: Slots
) -> tuple[buckets.TokenIndex, ...]:
  """The token tables of whole groups of a batch, one a capacity, arrays [groups, rows, ...].

  Args:
    grains: [b, rows, cols], in the order of `Slots.order`; all groups, or a process's own.
    factors: f_1 < ... < f_k.
    slots: of the global batch.
  """
  by_group = grains.reshape(-1, sum(slots.rows), *grains.shape[1:])
  ends = np.cumsum(slots.rows)[:-1]
  parts = []
  for capacity, maps in zip(slots.capacities, np.split(by_group, ends, axis=1), strict=True):
    index = buckets.token_index(maps.reshape(-1, *grains.shape[1:]), factors, capacity)
    parts.append(buckets.TokenIndex(*(x.reshape(*maps.shape[:2], *x.shape[1:]) for x in index)))
  return tuple(parts)
