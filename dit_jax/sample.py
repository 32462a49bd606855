"""Draws pictures from a trained workdir: python -m dit_jax.sample --workdir=DIR --classes=A,B

Reads the checkpoints alone: no recipe is needed and none is executed. Picture j of a class depends
on the seed, the class and j, not on --num, --batch, the other classes or the number of devices.

  python -m dit_jax.sample --workdir=DIR --superres --images=photo.jpg --out=large.png

draws nothing: it doubles a picture, or those of a folder, by the stage superres of the workdir.
"""

import functools
import json
import pathlib
import secrets
import sys

import numpy as np
from absl import flags

from dit_jax.core import cli
from dit_jax.core.errors import UserError
from dit_jax.evals import npz
from dit_jax.sampling import flags as sampling_flags
from dit_jax.sampling import generate, grain_source, grids, superres
from dit_jax.tasks import doubled, evaluation, restored
from dit_jax.tasks import superres as superres_task

FLAGS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string("workdir", "", "A trained workdir.", flag_values=FLAGS)
_STEP = flags.DEFINE_integer("step", None, "Checkpoint; default: the last.", flag_values=FLAGS)
_CLASSES = flags.DEFINE_string(
  "classes",
  "all",
  "Names, ids (#3) or 'all', comma separated; of superclasses too, where the model has tiers.",
  flag_values=FLAGS,
)
_NUM = flags.DEFINE_integer("num", 1, "Pictures a class.", lower_bound=1, flag_values=FLAGS)
_SEED = flags.DEFINE_integer(
  "seed",
  0,
  "Root of every draw; -1: a fresh one, which is told.",
  lower_bound=-1,
  upper_bound=2**32 - 1,
  flag_values=FLAGS,
)
_settings = sampling_flags.define(FLAGS)
_BATCH = flags.DEFINE_integer(
  "batch", 16, "Pictures in flight; changes none of them.", lower_bound=1, flag_values=FLAGS
)
_GRAIN = flags.DEFINE_string(
  "grain", "dgt", f"Grain maps: {', '.join(grain_source.KINDS)}.", flag_values=FLAGS
)
_SUPERRES = flags.DEFINE_flag(
  flags.Flag(
    flags.ArgumentParser(),
    None,
    "superres",
    None,
    "Twice the size, by the stage superres of the workdir or of --superres=WORKDIR.",
    boolean=True,  # so that it may stand alone
  ),
  FLAGS,
)
_IMAGES = flags.DEFINE_string(
  "images",
  None,
  "With --superres: double this picture, or those of this folder, into --out; draw none.",
  flag_values=FLAGS,
)
_OUT = flags.DEFINE_string("out", "", "Default: samples.png in the workdir.", flag_values=FLAGS)
_NPZ = flags.DEFINE_string(
  "npz", "", "Also uint8 arrays here (arr_0), and how they were made.", flag_values=FLAGS
)


def main():
  if _IMAGES.value is not None:
    _double()
    return
  if not _WORKDIR.value:
    raise UserError("--workdir=DIR is needed: the folder of a trained run.")
  if superres_task.alone(_WORKDIR.value):
    raise UserError(
      f"--workdir={_WORKDIR.value} has the stage superres alone, which draws nothing; double "
      "pictures, --superres --images=FILE --out=FILE, or give the --workdir of a run that draws."
    )
  kind, image_path = grain_source.parse(_GRAIN.value)
  out = pathlib.Path(_OUT.value or pathlib.Path(_WORKDIR.value) / "samples.png")
  for name, path in (("out", out), ("npz", pathlib.Path(_NPZ.value or out))):
    cli.refuse_unwritable(name, path)
  enlarged = _enlarged()
  run = restored.load(_WORKDIR.value, _STEP.value)
  labels, names = _labels(run, _CLASSES.value)
  settings = run.settings(**_settings())
  generator = generate.Generator(run.models, settings)
  seed = secrets.randbelow(2**32) if _SEED.value == -1 else _SEED.value

  label = np.repeat(labels, _NUM.value).astype(np.int32)
  stride = max(run.models.tiers.num_named, 1)
  index = np.tile(np.arange(_NUM.value), len(labels)) * stride + label
  index = index.astype(np.int32)
  if kind in grain_source.OUTSIDE:
    _say(f"--grain={kind}: outside the training distribution; judge no quality by it")
    grains = grain_source.by_rule(
      kind, index, seed, run.models.regions, run.meta["thresholds"]["fractions"]
    )
  elif kind == "entropy-of":
    one = run.map_of_image(image_path)
    grains = np.repeat(one[None], len(label), axis=0)
  else:
    grains = generator.grain_maps(run.params, label, index, seed)

  images = generator.images(run.params, label, index, grains, seed, _BATCH.value)
  images = enlarged(images)
  grids.save_png(out, grids.grid(images, columns=min(len(images), max(8, _NUM.value))))
  if _NPZ.value:
    card = np.asarray(json.dumps(_card(run, settings, seed), indent=2))
    arrays = {"arr_0": images, "label": label, "index": index, "grains": grains, "card": card}
    npz.write(_NPZ.value, arrays)
  _say(
    f"{len(images)} pictures of {len(labels)} classes ({', '.join(names[:5])}"
    f"{', ...' if len(names) > 5 else ''}), seed {seed}, {settings.steps} steps, guidance "
    f"{settings.guidance}, {settings.stepper}: {out}"
  )


def _card(run, settings: generate.Settings, seed: int) -> dict:
  """What has to be known to draw the same pictures again."""
  stage = restored.content_stage(run.config)
  facts = evaluation.facts_of_drawing(run.config, stage, run.params, run.meta, settings)
  facts |= {"superres": _SUPERRES.value} if _SUPERRES.value else {}
  return {"stage": stage, "step": run.step, "seed": seed, "grain": _GRAIN.value} | facts


def _double() -> None:
  """Doubles the pictures of --images."""
  wanted = f"--images={_IMAGES.value}"
  if (workdir := _superres_workdir()) is None:
    raise UserError(f"{wanted} gives pictures to double; add --superres, or leave it out.")
  used = ("workdir", "superres", "images", "out")
  if idle := [f"--{name}" for name in FLAGS if FLAGS[name].present and name not in used]:
    raise UserError(f"{wanted} doubles pictures and draws none; leave out {', '.join(idle)}.")
  files = doubled.plan(_IMAGES.value, _OUT.value)
  for target in files.values():
    cli.refuse_unwritable("out", target)
  skipped = doubled.write(files, workdir)
  for name, reason in skipped.items():
    _say(f"skipped {name}, which cannot be read ({reason})")
  _say(f"{len(files) - len(skipped)} of {len(files)} pictures doubled: {_OUT.value}")


def _enlarged():
  """What --superres makes of pictures; without it they stay as they are."""
  if (workdir := _superres_workdir()) is None:
    return lambda images: images
  stage, params = superres_task.restore(workdir)
  return functools.partial(superres.Doubler(stage.enhance), params)


def _superres_workdir() -> str | None:
  """Where the stage that --superres asks for was trained, None without the flag."""
  if _SUPERRES.value in (None, "false"):
    return None
  if _SUPERRES.value != "true":
    return _SUPERRES.value
  if not _WORKDIR.value or not (pathlib.Path(_WORKDIR.value) / "superres").exists():
    raise UserError(
      f"--superres alone takes the stage superres of --workdir={_WORKDIR.value}, which has none; "
      "train configs/superres.py and give its folder, --superres=DIR."
    )
  return _WORKDIR.value


def _labels(run, text: str) -> tuple[np.ndarray, list[str]]:
  """Nodes to draw and their names; an unconditional model has the null class alone."""
  if not run.num_classes:
    if text != "all":
      raise UserError(f"--classes={text}: this model was trained without classes; leave it out.")
    return np.zeros(1, np.int32), ["no class"]
  nodes = run.classes.resolve(text, superclasses=run.models.tiers.num_levels > 1)
  return np.asarray(nodes, np.int32), [run.classes.nodes[i] for i in nodes]


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
  cli.run(main, FLAGS)
