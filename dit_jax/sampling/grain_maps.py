"""Draws grain maps from a masked model of them (models.dgt), every image from its own key."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from dit_jax.core import rng
from dit_jax.core.errors import UserError
from dit_jax.core.typing import Array, Int, Key

ORDERS = ("random", "confidence_biased")


def masked_counts(regions: int, steps: int) -> list[int]:
  """Cells masked after step j = 0 .. T: floor(R cos(pi j / 2T)), each less than the one before."""
  counts = [regions]
  for j in range(1, steps + 1):
    cosine = math.floor(regions * math.cos(math.pi * j / (2 * steps)) + 1e-9)
    counts.append(min(cosine, counts[-1] - 1))
  return counts


def sample_maps(
  logits_fn,
  label: Int[Array, " b"],
  keys: Key[Array, " b"],
  *,
  shape: tuple[int, int],
  num_grains: int,
  steps: int = 64,
  temperature: float = 1.0,
  order: str = "random",
  guidance: float = 1.0,
  null_label: int | Int[Array, " b"] | None = None,
) -> Int[Array, "b rows cols"]:
  """Reveals the cells of a fully masked map in `steps` steps, all of one step independently.

  Args:
    logits_fn: (cells [b, rows, cols] with num_grains = masked, label [b]) -> logits [.., k].
    label: classes.
    keys: one an image; the order and the values of an image depend on its key alone.
    shape: regions, (rows, cols).
    num_grains: k.
    steps: at most one a region; a larger number means one region a step.
    temperature: divides the logits; other than 1 the fine fraction's distribution is distorted.
    order: "random", or "confidence_biased": the surest draws first, as MaskGIT does. It is biased
      even with perfect logits (the fine fraction's distribution moves by KS 0.33).
    guidance: s in null + s (conditional - null), on logits; 1 calls the model once a step.
    null_label: the class to be guided away from, for instance "no class"; needed when guidance is
      not 1.

  Raises:
    UserError: an unknown order, a temperature not above 0, or guidance without a null class.
  """
  _check(order, temperature, steps, guidance, null_label)
  rows, cols = shape
  regions = rows * cols
  counts = np.array(masked_counts(regions, min(steps, regions)), np.int32)
  turn = jax.vmap(lambda key: jax.random.permutation(key, regions))(rng.stream(keys, "order"))
  value_keys = rng.stream(keys, "value")
  guided = _guide(logits_fn, label, guidance, null_label)

  def body(cells, step):
    j, before, after = step
    logits = guided(rearrange(cells, "b (r c) -> b r c", r=rows)) / temperature
    log_p = jax.nn.log_softmax(rearrange(logits.astype(jnp.float32), "b r c k -> b (r c) k"))
    values = jax.vmap(jax.random.categorical)(rng.stream(value_keys, j), log_p).astype(cells.dtype)
    masked = cells == num_grains
    if order == "random":
      reveal = masked & (turn >= after)
    else:
      sure = jnp.take_along_axis(log_p, values[..., None], axis=-1)[..., 0]
      by_sureness = jnp.lexsort((turn, jnp.where(masked, -sure, jnp.inf)))
      reveal = jnp.argsort(by_sureness) < before - after
    return jnp.where(reveal, values, cells), None

  cells = jnp.full((keys.shape[0], regions), num_grains, jnp.int32)
  schedule = (np.arange(1, len(counts)), counts[:-1], counts[1:])
  cells, _ = jax.lax.scan(body, cells, schedule)
  return rearrange(cells, "b (r c) -> b r c", r=rows)


def _check(order: str, temperature: float, steps: int, guidance: float, null_label) -> None:
  if order not in ORDERS:
    raise UserError(f"{order=} is unknown; expected one of {ORDERS}.")
  if not temperature > 0 or steps < 1:
    raise UserError(f"{temperature=} and {steps=} must be above 0; the defaults are 1 and 64.")
  if guidance != 1 and null_label is None:
    raise UserError(f"{guidance=} needs a model with a null class; sample it with guidance 1.")


def _guide(logits_fn, label, guidance: float, null_label):
  """cells -> logits, pushed away from the null class by the guidance."""
  if guidance == 1:
    return lambda cells: logits_fn(cells, label)

  def guided(cells):
    null = logits_fn(cells, jnp.broadcast_to(null_label, label.shape))
    return null + guidance * (logits_fn(cells, label) - null)

  return guided
