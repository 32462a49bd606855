"""Evaluators inside training: `evals.<kind>.every` steps of their stage, on held-out images.

They see averaged weights and draw by the run's own settings and seed, so they give the numbers that
`evaluate` gives of a checkpoint of that step.
"""

import dataclasses
import functools
import json

from dit_jax.core.errors import UserError
from dit_jax.evals import balance, generation
from dit_jax.evals.reconstruction import Reconstruction
from dit_jax.models import lpips
from dit_jax.sampling import generate
from dit_jax.tasks import evaluation, labels, restored
from dit_jax.tasks.task import Task, Timed
from dit_jax.training.checkpoint import Checkpoints

KINDS = {"dvae": "reconstruction", "dct": "fidelity", "dit": "fidelity"}  # of the stages


def check(config, names, workdir) -> None:
  """Refuses, before anything is trained, an evaluation that could not be made hours later.

  Args:
    config: a recipe.
    names: the stages to train.
    workdir: where.

  Raises:
    UserError: no stage, no or too few held-out images, weights that are missing, odd numbers.
  """
  for kind, how in config.get("evals", {}).items():
    if how.every < 0:
      raise UserError(f"evals.{kind}.every={how.every} must be a number of steps; 0: never.")
    if not how.every:
      continue
    stages = [stage for stage, its in KINDS.items() if its == kind and stage in config.stages]
    if not stages:
      raise UserError(
        f"evals.{kind}.every={how.every} evaluates a stage that this recipe does not train; set it "
        "to 0."
      )
    if stages[0] in names:
      _check(config, stages[0], kind, how, workdir)
      if stages[0] == "dct" and "dgt" not in names and not Checkpoints(workdir / "dgt").steps():
        raise UserError(
          "evals.fidelity draws grain maps by the stage dgt, which is not trained in "
          f"{workdir}; train it first, or set evals.fidelity.every=0."
        )


def _check(config, stage: str, kind: str, how, workdir) -> None:
  size, smallest = config.data.image_size, lpips.SMALLEST["vgg16"]
  if size < smallest and not how.get("inception"):
    raise UserError(
      f"evals.{kind} sees images by VGG16, which needs {smallest} px or more, not data.image_size="
      f"{size}; set evals.{kind}.every=0."
    )
  known = evaluation.split_of(config, "heldout", stage)
  generation.refuse_few(how.num, len(known))
  evaluation.extractor(how.get("inception", ""))
  if kind == "fidelity":
    evaluation.drawn_labels(how.labels, how.num, known.classes, known, config.seed)


def attached(task: Task, config, workdir) -> Task:
  """The stage with the evaluator that its recipe asks for."""
  kind = KINDS.get(task.name, "")
  how = config.get("evals", {}).get(kind, {})
  if not how.get("every"):
    return task
  make = {"reconstruction": _reconstruction, "fidelity": _fidelity}[kind]
  run = make(task, config, workdir, how)
  return dataclasses.replace(task, evaluators=(Timed(kind, how.every, run),))


def _reconstruction(task: Task, config, workdir, how):
  """See tasks.task.Timed.run."""
  known = evaluation.split_of(config, "heldout", task.name)
  known = known.take(balance.spread(len(known), min(how.num, len(known))))
  predict = evaluation.coding(config, task.meta["thresholds"])
  extract, grains = evaluation.extractor(), len(config.dvae.model.factors)
  ask = Reconstruction(predict, known, extract, grains, config.seed)

  def run(params, frozen, step):
    del frozen
    facts = evaluation.facts_of_coding(config, params["gen"])
    return evaluation.answer(workdir, ask, params["gen"], task.name, step, facts)[0].metrics

  return run


def _fidelity(task: Task, config, workdir, how):
  """See tasks.task.Timed.run."""
  known = evaluation.split_of(config, "heldout", task.name)
  settings = generate.Settings(**config.sampling)
  stride = max(labels.tree(config[task.name], task.meta).num_named, 1)
  maps, map_meta = restored.grain_transformer(config, workdir)

  @functools.lru_cache(maxsize=1)  # what is measured of weights is part of the program
  def program(measured: str):
    meta = task.meta | json.loads(measured)
    return evaluation.drawing(restored.models_of(config, meta, map_meta), settings, config.seed)

  def predict(params, label, index):
    weights, measured = params
    return program(measured)(weights, label, index)

  extract = evaluation.extractor(how.inception)
  ask, classes = evaluation.fidelity(
    predict, how.labels, how.num, task.meta, stride, known, extract, config.seed, workdir
  )

  def run(params, frozen, step):
    measured = task.measured(params, frozen) if task.measured else {}
    weights = {"content": params, "dvae": frozen["dvae"], **maps}
    facts = evaluation.facts_of_drawing(config, task.name, weights, task.meta, settings) | classes
    params = weights, json.dumps(measured)
    return evaluation.answer(workdir, ask, params, task.name, step, facts)[0].metrics

  return run
