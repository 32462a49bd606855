"""The optimizer from its config block."""

import re

import jax
import optax

from dit_jax.core import tree as trees
from dit_jax.core.errors import UserError

NAMES = ("adamw", "adam", "muon")
SCHEDULES = ("constant", "cosine")
# Paths of matrices inside a transformer block, without what conditions or embeds.
_BLOCK = re.compile(r"(^|/)[^/]*block[^/]*/", re.IGNORECASE)
_NOT_A_BLOCK_MATRIX = re.compile(r"adaln|ada_ln|modulation|embed|final|head", re.IGNORECASE)


def make_tx(optim, total_steps: int) -> optax.GradientTransformation:
  """Clipping, then the optimizer with its learning-rate schedule and decoupled weight decay.

  Args:
    optim: mapping with `name`, `lr`, `warmup_steps`, `schedule`, `b1`, `b2`, `weight_decay` and
      `clip` (largest global gradient norm; 0 clips nothing). Decay applies to kernels only.
    total_steps: where a cosine schedule ends.

  Raises:
    UserError: an unknown name or schedule, or a number out of range.
  """
  _check(optim, total_steps)
  lr = learning_rate(optim, total_steps)
  decay = optim["weight_decay"]
  adamw = optax.adamw(lr, optim["b1"], optim["b2"], weight_decay=decay, mask=kernels)
  if optim["name"] == "muon":
    # consistent_rms: an update as large as Adam's, so that one learning rate serves both.
    muon = optax.contrib.muon(lr, weight_decay=decay, consistent_rms=0.2)
    tx = optax.partition({"muon": muon, "adamw": adamw}, _muon_or_adamw)
  elif optim["name"] == "adamw":
    tx = adamw
  else:
    tx = optax.adam(lr, optim["b1"], optim["b2"])
  return optax.chain(optax.clip_by_global_norm(optim["clip"]), tx) if optim["clip"] else tx


def learning_rate(optim, total_steps: int) -> optax.Schedule:
  """Linear warm-up to `lr` over `warmup_steps` updates, then constant or cosine to zero.

  The first update already moves: its rate is lr / warmup_steps, not 0.
  """
  lr, warmup = optim["lr"], optim["warmup_steps"]
  if optim["schedule"] == "constant":
    after = optax.constant_schedule(lr)
  else:
    after = optax.cosine_decay_schedule(lr, total_steps - warmup)
  if warmup <= 1:
    return after
  ramp = optax.linear_schedule(lr / warmup, lr, warmup - 1)
  return optax.join_schedules([ramp, after], [warmup - 1])


def kernels(params):
  """A tree of bools: True for kernels, False for biases, norms and embeddings."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: trees.path_name(path).endswith("kernel"), params
  )


def _muon_or_adamw(params):
  """Muon for 2-D kernels of transformer blocks, AdamW for everything else."""

  def decide(path, leaf):
    name = trees.path_name(path)
    block = _BLOCK.search(name) and not _NOT_A_BLOCK_MATRIX.search(name)
    return "muon" if block and leaf.ndim == 2 and name.endswith("kernel") else "adamw"

  return jax.tree_util.tree_map_with_path(decide, params)


def _check(optim, total_steps: int) -> None:
  if optim["name"] not in NAMES:
    raise UserError(f"optim.name={optim['name']!r} is unknown; choose one of {', '.join(NAMES)}.")
  if optim["schedule"] not in SCHEDULES:
    raise UserError(
      f"optim.schedule={optim['schedule']!r} is unknown; choose one of {', '.join(SCHEDULES)}."
    )
  if optim["lr"] <= 0:
    raise UserError(f"optim.lr={optim['lr']} must be positive.")
  if optim["name"] == "adam" and optim["weight_decay"]:
    raise UserError("optim.weight_decay needs optim.name='adamw'; adam has none.")
  for field in ("clip", "warmup_steps", "weight_decay"):
    if optim[field] < 0:
      raise UserError(f"optim.{field}={optim[field]} must not be negative.")
  if optim["schedule"] == "cosine" and optim["warmup_steps"] >= total_steps:
    raise UserError(
      f"optim.warmup_steps={optim['warmup_steps']} leaves nothing of {total_steps=} for the cosine "
      "schedule; warm up for fewer steps or train for longer."
    )
