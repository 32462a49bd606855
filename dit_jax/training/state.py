"""What training carries from step to step."""

import flax.struct
import jax
import jax.numpy as jnp
import optax

from dit_jax.core.typing import Array, Int


class TrainState(flax.struct.PyTreeNode):
  """Everything a resumed run needs; `frozen` is passed to the loss and never differentiated.

  Attributes:
    step: finished updates, the skipped ones included.
    params: the trained parameters, float32.
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
