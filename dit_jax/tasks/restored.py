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
  content = "dit" if "dit" in config.get("stages", ()) else "dct"
  module = dit if content == "dit" else dct
  ema, meta, step = Checkpoints(workdir / content).restore_ema(step)
  config = configs.from_json(meta["config"])
  params = {"content": ema, "dvae": autoencoder.load(config, workdir)[0]}
  if trees.content_hash(params["dvae"]) != meta["vae"]:
    raise UserError(
      f"the autoencoder in {workdir} is not the one that the stage {content} was trained on; "
      "put that one back, or train the stages after it again in a new workdir."
    )
  map_logits = None
  if content == "dct":
    params["dgt"], map_meta, _ = Checkpoints(workdir / "dgt").restore_ema()
    map_model = dgt.make_model(config, map_meta)
    map_logits = lambda params, *args: map_model.apply(params["dgt"], *args)
  process = dct.make_process(config[content].diffusion)
  correct_x0 = hrig.correction(config[content], process, meta)
  model = module.make_model(config, meta)
  content = latent_stage.gated_content(module.content_fn, model, process)
  models = latent_stage.sampling_models(config, meta, process, content, map_logits, correct_x0)
  return Run(config, meta, hierarchy.ClassTable.from_json(meta["classes"]), models, params, step)
