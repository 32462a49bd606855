"""The train step: a pure function of (state, batch), jitted in one place."""

import contextlib
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from einops import rearrange

from dit_jax.core import rng
from dit_jax.training import sharding
from dit_jax.training.state import TrainState

MAX_BAD_STREAK = 10


def train_step(
  state: TrainState, batch: dict, *, loss_fn, normalizers, tx, ema_decay, seed, accum=1, shards=1
) -> tuple[TrainState, dict]:
  """One update, or none where the loss or a gradient is not finite.

  Args:
    state: the carried state; `make_step` donates it.
    batch: arrays with a leading axis b, or one of shards x accum groups of rows; `index` [b] int32
      names the images.
    loss_fn: (params, frozen, batch, keys, norm, step) -> (loss, metrics). Every term is a sum over
      the rows it sees, divided by the denominators in `norm`, so that micro-batches add up.
    normalizers: batch -> denominators, called once with the whole global batch.
    tx: the optax transformation, clipping included.
    ema_decay: the final decay; `ema_decay_at` warms it up.
    seed: root of every draw, together with the step and the image's index.
    accum: micro-batches to add up before the update.
    shards: devices that the rows are split over; each cuts its own into micro-batches.

  Returns:
    The next state, and scalars: loss, grad_norm, param_norm, skipped, bad_streak and the task's.
  """
  keys = rng.image_keys(seed, state.step, batch["index"])
  norm = normalizers(batch)

  def value_and_grad(rows, keys):
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    return grad_fn(state.params, state.frozen, rows, keys, norm, state.step)

  (loss, aux), grads = _accumulate(value_and_grad, (batch, keys), accum, shards)
  grad_norm = optax.tree.norm(grads)
  updates, opt = tx.update(grads, state.opt, state.params)
  params = optax.apply_updates(state.params, updates)
  ema = optax.incremental_update(params, state.ema, 1 - ema_decay_at(state.step, ema_decay))

  good = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
  keep = functools.partial(jax.tree.map, lambda new, old: jnp.where(good, new, old))
  state = state.replace(
    step=state.step + 1,
    params=keep(params, state.params),
    opt=keep(opt, state.opt),
    ema=keep(ema, state.ema),
    bad_streak=jnp.where(good, 0, state.bad_streak + 1),
    skipped=state.skipped + jnp.where(good, 0, 1),
  )
  metrics = {
    **aux,
    "loss": loss,
    "grad_norm": grad_norm,
    "param_norm": optax.tree.norm(state.params),
    "skipped": state.skipped,
    "bad_streak": state.bad_streak,
  }
  return state, metrics


def ema_decay_at(step, decay: float):
  """min(decay, (1 + step) / (10 + step)): early averages forget the initialisation.

  The warm-up of `tf.train.ExponentialMovingAverage(num_updates=...)`.
  """
  return jnp.minimum(decay, (1 + step) / (10 + step))


def _accumulate(fn, rows, accum: int, shards: int):
  """Sum of fn over `accum` micro-batches, each an equal piece of every shard's rows."""
  if accum == 1:
    return fn(*rows)
  cut = lambda x: rearrange(x, "(s a m) ... -> a (s m) ...", s=shards, a=accum)
  micro = jax.tree.map(cut, rows)
  shapes = jax.eval_shape(fn, *jax.tree.map(lambda x: x[0], micro))
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  total, _ = jax.lax.scan(lambda t, xs: (jax.tree.map(jnp.add, t, fn(*xs)), None), zeros, micro)
  return total


@dataclasses.dataclass(frozen=True)
class Step:
  """(state, batch) -> (state, metrics), jitted.

  Attributes:
    jitted: the function.
    mesh: in whose context it is traced, for kernels and pins that split over it; None for none.
  """

  jitted: Any
  mesh: Any

  def __call__(self, state, batch):
    with self._context():
      return self.jitted(state, batch)

  def compile(self, state, batch):
    """The executable for arrays, or ShapeDtypeStructs, of these shapes."""
    with self._context():
      return self.jitted.lower(state, batch).compile()

  def _context(self):
    return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)


def make_step(
  *, loss_fn, normalizers, tx, ema_decay, seed, accum=1, mesh=None, state_shardings=None
):
  """The jitted `train_step` as a Step; the state is donated.

  Args:
    loss_fn, normalizers, tx, ema_decay, seed, accum: as for `train_step`.
    mesh: where the batch is split over (data, fsdp); None leaves placement to jax.
    state_shardings: a tree like the state, from `sharding.infer`.
  """
  step = functools.partial(
    train_step,
    loss_fn=loss_fn,
    normalizers=normalizers,
    tx=tx,
    ema_decay=ema_decay,
    seed=seed,
    accum=accum,
    shards=1 if mesh is None else sharding.num_shards(mesh),
  )
  if mesh is None:
    return Step(jax.jit(step, donate_argnums=0), None)
  jitted = jax.jit(
    step,
    donate_argnums=0,
    in_shardings=(state_shardings, sharding.batch_sharding(mesh)),
    out_shardings=(state_shardings, sharding.replicated(mesh)),
  )
  return Step(jitted, mesh)


def check_finite(metrics: dict, stage: str, step: int) -> None:
  """Stops a run that no longer learns.

  Args:
    metrics: host values of one step's metrics.
    stage: name for the message.
    step: the step that the metrics belong to.

  Raises:
    FloatingPointError: ten updates in a row were not finite.
  """
  streak = int(metrics["bad_streak"])
  if streak >= MAX_BAD_STREAK:
    loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
    culprit = "loss" if not math.isfinite(loss) else "gradient norm"
    raise FloatingPointError(
      f"stage {stage}: {loss=} and grad_norm={norm} at step {step}: the {culprit} was not finite "
      f"for {streak} steps in a row (those updates were skipped); resume from the last checkpoint "
      "with a lower learning rate or a tighter optim.clip."
    )
