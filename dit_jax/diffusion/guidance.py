"""Guidance: a prediction pushed away from that of a weaker label.

(1) pred = scale * model(z, t, label) + (1 - scale) * model(z, t, base label)

With "no class" as the base it is classifier-free guidance (Ho & Salimans 2022), with the superclass
it is superclass guidance (after FineDiffusion, arXiv 2402.18331). That it may act at some times
alone is Kynkaanniemi et al.'s (arXiv 2404.07724), on the first channels alone DiT's code's.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dit_jax.core.typing import Array, ArrayLike, Float, Int

ALWAYS = (0.0, 1000.0)  # the model times of every schedule


def twice(tree):
  """Every [b, ...] array of a tree as [2 b, ...]: what a model closes over under guidance."""
  return jax.tree.map(lambda x: jnp.concatenate([x, x]), tree)


def guided(
  model_fn: Callable[..., Array],
  label: Int[Array, " b"],
  base_label: int | Int[Array, " b"],
  scale: ArrayLike,
  channels: int = 0,
  interval: tuple[float, float] = ALWAYS,
) -> Callable[..., Array]:
  """Eq. (1) as a model function, both branches in one doubled batch.

  What is not guided, variance logits (the channels beyond those of z) among it, is the conditional
  branch's.

  Args:
    model_fn: `model_fn(z [2b], model_time [2b], label [2b]) -> raw output`; rows b.. are the base
      branch, so per-image arrays that it closes over go through `twice`.
    label: the wanted class of every image.
    base_label: what to be guided away from: the superclass, or what stands for "no label".
    scale: a scalar or one a row, possibly traced; 1 is the conditional branch, 0 the base one.
    channels: so many of z's are guided, the first ones; 0: all.
    interval: model times between which, ends included, guidance acts; outside, the model is called
      on b rows, which must share one time.

  Returns:
    `fn(z [b], model_time [b]) -> raw output`.
  """
  labels = jnp.concatenate([label, jnp.broadcast_to(jnp.asarray(base_label), label.shape)])
  scale = jnp.asarray(scale, jnp.float32)
  scale = jnp.expand_dims(scale, tuple(range(scale.ndim, 4)))

  def fn(z: Float[Array, "b h w c"], model_time: Float[Array, " b"]) -> Array:
    cond, base = jnp.split(model_fn(twice(z), twice(model_time), labels), 2)
    c = channels or z.shape[-1]
    # Written as a mixture, not base + scale (cond - base): scales 0 and 1 are then exact.
    pred = scale * cond[..., :c] + (1.0 - scale) * base[..., :c]
    return jnp.concatenate([pred, cond[..., c:].astype(pred.dtype)], axis=-1)

  if interval == ALWAYS:
    return fn

  def plain(z, model_time):
    out = model_fn(z, model_time, label)
    return out.astype(jnp.promote_types(out.dtype, scale.dtype))

  def sometimes(z: Float[Array, "b h w c"], model_time: Float[Array, " b"]) -> Array:
    inside = (interval[0] <= model_time[0]) & (model_time[0] <= interval[1])
    return jax.lax.cond(inside, fn, plain, z, model_time)

  return sometimes
