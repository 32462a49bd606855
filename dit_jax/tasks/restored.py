"""A trained workdir as sampling sees it: models, averaged weights and the facts beside them."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from dit_jax.core import config as configs
from dit_jax.core import tree as trees
from dit_jax.core.errors import UserError
from dit_jax.data import grain_maps, hierarchy, images, transforms
from dit_jax.sampling import generate
from dit_jax.tasks import autoencoder, dct, dgt, dit, hrig, labels, latent_stage
from dit_jax.training.checkpoint import Checkpoints


@dataclasses.dataclass(frozen=True)
class Run:
  """What `load` finds in a workdir.

  Attributes:
    config: as the content stage was trained.
    meta: of the content stage's checkpoint: classes, thresholds, latent statistics.
    classes: names and hierarchy.
    models: for `sampling.generate.Generator`.
    params: dict of the averaged weights that `models` take.
    step: of the content stage.
  """

  config: Any
  meta: dict
  classes: hierarchy.ClassTable
  models: generate.Models
  params: dict
  step: int

  @property
  def num_classes(self) -> int:
    return len(self.classes.children)

  def settings(self, **wanted) -> generate.Settings:
    """The run's own sampling settings, with those that the caller wants otherwise (not None).

    Raises:
      UserError: a setting that the model cannot follow.
    """
    given = {name: value for name, value in wanted.items() if value is not None}
    settings = generate.Settings(**(dict(self.config.sampling) | given))
    labels.check_guidance(self.config, settings)
    return settings

  def map_of_image(self, path: str) -> np.ndarray:
    """The grain map of an image file, cropped as in training."""
    if len(self.meta["factors"]) == 1:
      return np.zeros(self.models.regions, np.int32)
    background = self.config.data.get("background", images.WHITE)
    try:
      image = images.decode(path, background)
      square = transforms.center_crop(image, self.meta["image_size"])
    except images.BrokenImage as e:
      raise UserError(f"--grain=entropy-of:{path} cannot be read ({e}); give an image file.") from e
    return grain_maps.GrainMaps.from_record(self.meta["thresholds"]).of(square).astype(np.int32)


def load(workdir, step: int | None = None) -> Run:
  """Reads the newest (or the given) checkpoint of every stage; executes no recipe.

  Args:
    workdir: of a run whose stages are trained.
    step: of the content stage; the others take their newest.

  Raises:
    UserError: no such workdir, stage or checkpoint.
  """
  workdir = pathlib.Path(workdir)
  if not (workdir / "config.json").exists():
    raise UserError(f"--workdir={workdir} has no config.json; give the folder of a trained run.")
  config = configs.from_json((workdir / "config.json").read_text(encoding="utf-8"))
  content = content_stage(config)
  ema, meta, step = Checkpoints(workdir / content).restore_ema(step)
  config = configs.from_json(meta["config"])
  params = {"content": ema, "dvae": autoencoder.load(config, workdir)[0]}
  if trees.content_hash(params["dvae"]) != meta["vae"]:
    raise UserError(
      f"the autoencoder in {workdir} is not the one that the stage {content} was trained on; "
      "put that one back, or train the stages after it again in a new workdir."
    )
  maps, map_meta = grain_transformer(config, workdir)
  models = models_of(config, meta, map_meta)
  return Run(
    config, meta, hierarchy.ClassTable.from_json(meta["classes"]), models, params | maps, step
  )


def content_stage(config) -> str:
  """The stage that draws pictures."""
  return "dit" if "dit" in config.get("stages", ()) else "dct"


def grain_transformer(config, workdir) -> tuple[dict, dict]:
  """({"dgt": averaged weights}, the meta beside them) of a workdir; ({}, {}) where none is used.

  Raises:
    UserError: it is not trained.
  """
  if content_stage(config) == "dit":
    return {}, {}
  params, meta, _ = Checkpoints(pathlib.Path(workdir) / "dgt").restore_ema()
  return {"dgt": params}, meta


def models_of(config, meta: dict, map_meta: dict) -> generate.Models:
  """What sampling takes, from the facts beside the weights.

  Args:
    config: of the run.
    meta: of the content stage, as its checkpoints hold it.
    map_meta: of the grain transformer; {} where there is none.
  """
  name, map_logits = content_stage(config), None
  module = dit if name == "dit" else dct
  if map_meta:
    map_model = dgt.make_model(config, map_meta)
    map_logits = lambda params, *args: map_model.apply(params["dgt"], *args)
  process = dct.make_process(config[name].diffusion)
  correct_x0 = hrig.correction(config[name], process, meta)
  model = module.make_model(config, meta)
  content = latent_stage.gated_content(module.content_fn, model, process)
  return latent_stage.sampling_models(config, meta, process, content, map_logits, correct_x0)
