"""Classifier-free guidance (Ho & Salimans 2022): a model with a label becomes one without.

(1) pred = scale * model(z, t, label) + (1 - scale) * model(z, t, null label)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dit_jax.core.typing import Array, ArrayLike, Float, Int


def twice(tree):
  """Every [b, ...] array of a tree as [2 b, ...]: what a model closes over under guidance."""
  return jax.tree.map(lambda x: jnp.concatenate([x, x]), tree)


def guided(
  model_fn: Callable[..., Array],
  label: Int[Array, " b"],
  null_label: int | Int[Array, " b"],
  scale: ArrayLike,
) -> Callable[..., Array]:
  """Eq. (1) as a model function, both branches in one doubled batch.

  All channels of the prediction are guided. Variance logits, the channels beyond those of z, are
  the conditional branch's.

  Args:
    model_fn: `model_fn(z [2b], model_time [2b], label [2b]) -> raw output`; rows b.. are the null
      branch, so per-image arrays that it closes over go through `twice`.
    label: the wanted class of every image.
    null_label: what stands for "no label".
    scale: a scalar or one a row, possibly traced; 1 is the conditional branch, 0 the null one.

  Returns:
    `fn(z [b], model_time [b]) -> raw output`.
  """
  labels = jnp.concatenate([label, jnp.broadcast_to(jnp.asarray(null_label), label.shape)])
  scale = jnp.asarray(scale, jnp.float32)
  scale = jnp.expand_dims(scale, tuple(range(scale.ndim, 4)))

  def fn(z: Float[Array, "b h w c"], model_time: Float[Array, " b"]) -> Array:
    cond, null = jnp.split(model_fn(twice(z), twice(model_time), labels), 2)
    c = z.shape[-1]
    # Written as a mixture, not null + scale (cond - null): scales 0 and 1 are then exact.
    pred = scale * cond[..., :c] + (1.0 - scale) * null[..., :c]
    return jnp.concatenate([pred, cond[..., c:].astype(pred.dtype)], axis=-1)

  return fn
