"""Guidance: a prediction pushed away from that of a weaker label.

(1) pred = scale * model(z, t, label) + (1 - scale) * model(z, t, base label)

(2) pred <- pred (1 + phi (std(model(z, t, label)) / std(pred) - 1))

With "no class" as the base it is classifier-free guidance (Ho & Salimans 2022), with the superclass
it is superclass guidance (after FineDiffusion, arXiv 2402.18331). That it may act at some times
alone is Kynkaanniemi et al.'s (arXiv 2404.07724), on the first channels alone DiT's code's. (2),
which takes back the contrast that a large scale adds, is Lin et al.'s (arXiv 2305.08891, Eqs. 15
and 16), over all that is guided of an image.
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
  rescale: float = 0.0,
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
    rescale: phi of Eq. (2), 0 to 1; 0: off.

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
    if rescale:
      pred = _rescaled(pred, cond[..., :c].astype(pred.dtype), rescale)
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


def _rescaled(pred: Float[Array, "b h w c"], cond: Float[Array, "b h w c"], phi: float):
  """Eq. (2); a prediction without any contrast stays as it is."""
  std, wanted = (jnp.std(x, axis=(1, 2, 3), keepdims=True) for x in (pred, cond))
  ratio = jnp.where(std > 0, wanted / jnp.where(std > 0, std, 1.0), 1.0)
  return pred * (1.0 + phi * (ratio - 1.0))
