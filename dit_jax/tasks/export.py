"""A trained stage `dit` as the plain DiT that other formats know.

Its averaged weights, a fine-tune's over their base; what the fine-tune added is folded in, and a
class tree becomes one table. What no such format holds is left out and told.
"""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.core import config as configs
from dit_jax.core import tree as trees
from dit_jax.core.errors import UserError
from dit_jax.nn.label import TieredEmbedder
from dit_jax.tasks import autoencoder, dit, hrig, labels
from dit_jax.training.checkpoint import Checkpoints
from dit_jax.weights import fold

FIELDS = (
  *("depth", "width", "num_heads", "patch", "grid", "z_channels", "learn_sigma", "qk_norm"),
  "max_period",
)
CHAIN = {"schedule": "linear", "prediction": "eps"}  # of DiT's code and diffusers' pipelines


class Plain(NamedTuple):
  """What `load` finds in a workdir.

  Attributes:
    fields: of `models.dit.DiT`, as weights.ours keeps them.
    leaves: by path, float32.
    notes: lines for the user: what the weights alone do not say.
  """

  fields: dict
  leaves: dict[str, np.ndarray]
  notes: tuple[str, ...]


def load(workdir) -> Plain:
  """The newest whole checkpoint of the stage `dit` of a workdir; executes no recipe.

  Raises:
    UserError: it is no workdir, its run has no such stage, or that is not trained or damaged.
  """
  workdir = pathlib.Path(workdir)
  if not (workdir / "config.json").is_file():
    raise UserError(f"--src={workdir} has no config.json; give the folder of a trained run.")
  config = configs.from_json((workdir / "config.json").read_text(encoding="utf-8"))
  stages = config.get("stages", ())
  if "dit" not in stages:
    raise UserError(
      f"--src={workdir} is a run of the stages {', '.join(stages) or '(none)'}; give one with the "
      "stage dit, whose model alone other formats hold."
    )
  checkpoints = Checkpoints(workdir / "dit")
  if not checkpoints.steps():
    raise UserError(f"--src={workdir} has no checkpoint of its stage dit; train it first.")
  ema, meta, _ = checkpoints.restore_ema()
  config = configs.from_json(meta["config"])
  model, params = dit.make_model(config, meta), ema["params"]
  table = label_rows(model, params["label"])
  leaves = {name: x for name, x in trees.flatten(params).items() if not name.startswith("label/")}
  fields = {name: getattr(model, name) for name in FIELDS} | {"num_classes": len(table) - 1}
  notes = [*_label_notes(config, meta, model), *_run_notes(config, meta, model, workdir)]
  return Plain(fields, fold.fold(leaves | {"label/table/embedding": table}), tuple(notes))


def label_rows(model, params) -> np.ndarray:
  """One table of a model's labels: of every class, or every named node of its tree, then the null.

  Args:
    model: models.dit.DiT.
    params: of its child "label".

  Returns:
    [classes or named nodes + 1, width]; the last row is zeros where the tree has no null node.
  """
  tiers = model.tiers
  if tiers is None:
    return np.asarray(params["table"]["embedding"])
  embedder = TieredEmbedder(tiers, model.fusion, model.width)
  with jax.default_matmul_precision("highest"):  # accelerators round more by default
    rows = np.asarray(embedder.apply({"params": params}, jnp.arange(tiers.num_nodes)))
  return rows if tiers.null else np.concatenate([rows, np.zeros_like(rows[:1])])


def _label_notes(config, meta: dict, model):
  if model.tiers is not None:
    ends = np.cumsum(model.tiers.sizes)
    spans = [f"{end - n} to {end - 1}" for n, end in zip(model.tiers.sizes, ends, strict=True)]
    yield f"labels: the classes are {spans[0]}, the superclasses {', '.join(spans[1:])}"
  drop = labels.drop(config.dit, meta, config.dit.diffusion.label_drop)
  if model.num_classes and not drop.p_null:
    away = "take guidance 1"
    if model.tiers is not None and drop.p_drop:
      away = "guide away from a superclass's row instead"
    yield f"no null row was trained, and the last row of the table means nothing: {away}"


def _run_notes(config, meta: dict, model, workdir: pathlib.Path):
  if hrig.enabled(config.dit):
    strength = meta.get("hrig", {}).get("strength", 0.0)
    yield f"HRIG's network is left out; this run samples with it at strength {strength}"
  if model.attention.kind != "full":
    yield f"attention.kind={model.attention.kind} is left out; these weights are read as dense"
  told = {name: config.dit.diffusion[name] for name in CHAIN}
  if told != CHAIN:
    words = ", ".join(f"{name}={value}" for name, value in told.items())
    yield f"the run's diffusion is {words}, and DiT's and diffusers' is linear, eps"
  if not autoencoder.pretrained(config):
    mean, std = (np.round(meta["latent_stats"][name][0], 6).tolist() for name in ("mean", "std"))
    yield (
      f"the latents are those of the DVAE in {workdir / 'dvae'} alone, as (z - mean) / std with "
      f"{mean=}, {std=} by channel"
    )
