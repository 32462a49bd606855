"""What training carries from step to step."""

import flax.struct
import jax
import jax.numpy as jnp
import optax

from dit_jax.core import rng
from dit_jax.core.typing import Array, Int
from dit_jax.training import peft, sharding


class TrainState(flax.struct.PyTreeNode):
  """Everything a resumed run needs; `frozen` is passed to the loss and never differentiated.

  Attributes:
    step: finished updates, the skipped ones included.
    params: the trained parameters, float32; under `peft` a part of the model's.
    opt: the state of the optax transformation.
    ema: moving average of `params`, the weights that sample.
    frozen: parameters that the loss reads only (LPIPS, a frozen base); may be empty.
    bad_streak: updates with a non-finite loss or gradient since the last good one.
    skipped: all such updates since step 0.
  """

  step: Int[Array, ""]
  params: dict
  opt: optax.OptState
  ema: dict
  frozen: dict
  bad_streak: Int[Array, ""]
  skipped: Int[Array, ""]


def create(params, tx: optax.GradientTransformation, frozen=None) -> TrainState:
  """A state at step 0; the EMA starts as a copy of the parameters.

  A copy, because `ema = params` would alias two buffers of a state that the step donates.
  """
  # One array a counter: the three may not share a buffer either.
  step, bad_streak, skipped = (jnp.zeros((), jnp.int32) for _ in range(3))
  return TrainState(
    step=step,
    params=params,
    opt=tx.init(params),
    ema=jax.tree.map(jnp.copy, params),
    frozen={} if frozen is None else frozen,
    bad_streak=bad_streak,
    skipped=skipped,
  )


def abstract(init, tx: optax.GradientTransformation, frozen, mesh, rules=()):
  """How a state is born, and what it is made of, before any of it is there.

  Args:
    init: key -> params, the trained ones alone.
    tx: the optax transformation.
    frozen: arrays or ShapeDtypeStructs of the frozen weights.
    mesh, rules: as for `sharding.infer`.

  Returns:
    (key, frozen, start) -> state, where parameters of the tree `start` take the place of drawn
    ones; and a state of ShapeDtypeStructs with their places on the mesh.
  """

  def born(key, frozen, start=None):
    params = init(key)
    return create(peft.merge(params, start) if start else params, tx, frozen)

  shapes = jax.eval_shape(born, rng.abstract_key(), frozen)
  return born, sharding.placed(shapes, sharding.infer(shapes, mesh, rules))
