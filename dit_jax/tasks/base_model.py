"""The model that a base says it is of, against the recipe's: what shapes do not tell."""

import dataclasses
import pathlib

from dit_jax.core import config as configs
from dit_jax.core.errors import UserError
from dit_jax.models import dit
from dit_jax.tasks import labels, sizes
from dit_jax.weights import limits, ours

LABELS = ("num_classes", "tiers", "fusion")  # tables are made anew by rule
ADDED = ("affine", "gamma")  # parameters, which base.fit has rules for
MEANS = ("attention", "remat", "dtype")  # how it is computed; ProAttention learns to follow dense
FREE = (*LABELS, *ADDED, *MEANS, "parent", "name")
PROCESS = ("schedule", "prediction")  # of the diffusion: what the outputs mean
PRESET = ("depth", "refine_depth", "width", "num_heads", "patch")  # what a variant stands for


def refuse_other(config, stage: str, path: pathlib.Path, facts: dict) -> None:
  """Refuses a base that would load and compute another function, as far as it says what it is.

  Args:
    config: the recipe.
    stage: that starts from the base.
    path: of the base.
    facts: what it holds besides arrays, as from `base.read`.

  Raises:
    UserError: names up to five fields, stored -> wanted.
  """
  theirs = _stated(stage, path, facts)
  if theirs is None:
    return
  wanted = sizes.TRANSFORMERS[stage].make_model(config, sizes.latent_meta(config))
  names = [field.name for field in dataclasses.fields(wanted) if field.name not in FREE]
  pairs = [
    (_place(config, stage, name), getattr(theirs, name), getattr(wanted, name)) for name in names
  ]
  if "config" in facts and "diffusion" in config[stage]:
    old, new = configs.from_json(facts["config"])[stage].diffusion, config[stage].diffusion
    pairs += [(f"{stage}.diffusion.{name}", old[name], new[name]) for name in PROCESS]
  found = [f"{place}: {old!r} -> {new!r}" for place, old, new in pairs if old != new]
  if found:
    raise UserError(
      f"init_from={path} computes another function than this recipe's model, stored -> wanted: "
      f"{'; '.join(found[:5])}; set the stored values in the recipe, or choose another base."
    )


def same_labels(config, stage: str, meta: dict, facts: dict) -> bool:
  """Whether rows of a base's label tables mean what they mean here, where their sizes agree.

  Args:
    config: the recipe.
    stage: that starts from the base.
    meta: the facts of its latents.
    facts: of the base; a file says nothing of its classes, and is trusted.
  """
  if "classes" not in facts:
    return True
  theirs, ours_ = configs.from_json(facts["config"])[stage], config[stage]
  return labels.meaning(theirs, facts) == labels.meaning(ours_, meta)


def _stated(stage: str, path: pathlib.Path, facts: dict):
  """The model of a base; None where it says nothing of one."""
  if not path.is_file():
    old = configs.from_json(facts["config"])
    return sizes.TRANSFORMERS[stage].make_model(old, facts) if stage in old else None
  if ours.KEY not in facts:
    return None
  kind, fields = ours.facts(path, facts)
  if kind != stage:
    raise UserError(f"init_from={path} is of the model {kind}, expected {stage}; choose another.")
  try:
    return dit.DiT(**fields)
  except (TypeError, ValueError) as e:
    raise limits.no_model(f"init_from={path}", e) from e


def _place(config, stage: str, name: str) -> str:
  """The field of the recipe that decides one of the model."""
  block = config[stage].model
  if name in PRESET and "variant" in block and name not in block:
    return f"{stage}.model.variant, {name}"
  other = {"grid": "data.image_size, grid", "learn_sigma": f"{stage}.diffusion.learn_sigma"}
  other |= dict.fromkeys(("factors", "num_grains", "z_channels"), f"the autoencoder's {name}")
  return other.get(name, f"{stage}.model.{name}")
