"""Which images a mixed step trains on: a whole epoch is planned at once, from its grain maps.

An epoch's images are shuffled, and the largest take the slots of the largest capacity, over all of
its steps; then every capacity's images are shuffled among the steps. So every image is used exactly
once an epoch, none waits for a slot, and the images of step n are a function of (seed, n) and the
data alone: not of the steps before, nor of the mesh, whose slots (core.slots) only grow.

Epochs are joined without dropping: what is left of one that does not divide into batches, a
representative sample of its sizes, is shuffled into the next one.
"""

import functools
import threading

import numpy as np

from dit_jax.core import buckets, slots


def reading(
  tokens: np.ndarray, factors: tuple[int, ...], quantum: int, shapes: slots.Slots, seed: int
) -> dict:
  """How pipeline.batches reads the planned steps: `positions`, and the token tables' `transform`.

  Args:
    tokens: refinement tokens of every image.
    factors: f_1 < ... < f_k.
    quantum: tokens from one edge to the next.
    shapes: of a step.
    seed: of all orders.
  """
  planned, order = Plan(tokens, sum(shapes.counts), quantum, seed), shapes.order()
  return {
    "positions": lambda step: planned.positions(step)[order],
    "transform": lambda batch: batch | {"tokens": slots.tables(batch["grains"], factors, shapes)},
  }


class Plan:
  """The images of every step, largest first.

  Args:
    tokens: refinement tokens of every image.
    batch_size: of the global batch.
    quantum: tokens from one edge to the next, as the slots' own.
    seed: of all orders.
  """

  def __init__(self, tokens: np.ndarray, batch_size: int, quantum: int, seed: int):
    self.needed = buckets.edges_needed(tokens, quantum)
    self.batch_size, self.seed = batch_size, seed
    least = slots.at_least(tokens, batch_size, quantum)
    self.counts = np.diff([0, *least[::-1]])  # slots of every edge, the largest first
    # A set smaller than a batch is repeated until it fills one.
    self.repeats = -(-batch_size // len(self.needed))
    self.length = self.repeats * len(self.needed)
    self._steps_of, self._lock = functools.lru_cache(maxsize=2)(self._plan), threading.Lock()

  def positions(self, step: int) -> np.ndarray:
    """The images of a global batch, in descending order of their tokens' capacity, int [B]."""
    # Epoch e ends with step ((e + 1) length) // B.
    epoch = (step * self.batch_size) // self.length
    if step >= self._first_step(epoch + 1):
      epoch += 1
    with self._lock:  # readers in threads meet a new epoch together: one plans it
      steps = self._steps_of(epoch)
    return steps[step - self._first_step(epoch)]

  def _first_step(self, epoch: int) -> int:
    return epoch * self.length // self.batch_size

  def _plan(self, epoch: int) -> np.ndarray:
    """The images of all steps of an epoch, [steps, B]."""
    own, _ = self._parted(epoch)
    before = self._parted(epoch - 1)[1] if epoch else own[:0]
    draw = np.random.default_rng((self.seed, epoch, 1))
    images = draw.permutation(np.concatenate([before, own]))
    images = images[np.argsort(-self.needed[images], kind="stable")]
    steps = len(images) // self.batch_size
    assert steps * self.batch_size == len(images), (steps, len(images))
    parts, start = [], 0
    for count in self.counts:
      part = images[start : start + steps * count]
      parts.append(draw.permutation(part).reshape(steps, count))
      start += steps * count
    planned = np.concatenate(parts, axis=1)
    order = np.argsort(-self.needed[planned], axis=1, kind="stable")
    return np.take_along_axis(planned, order, axis=1)

  def _parted(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """An epoch's images: those of its own steps, and those left for the next epoch.

    Left over are images at equal distances in the order of sizes, so that at every edge their
    share is the data's to within one image.
    """
    images = np.tile(np.arange(len(self.needed), dtype=np.int32), self.repeats)
    over = (epoch + 1) * self.length % self.batch_size
    if not over:
      return images, images[:0]
    draw = np.random.default_rng((self.seed, epoch, 0))
    images = draw.permutation(images)
    images = images[np.argsort(-self.needed[images], kind="stable")]
    at = ((np.arange(over) + draw.uniform()) * self.length / over).astype(np.int64)
    return np.delete(images, at), images[at]
