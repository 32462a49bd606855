"""Evaluators of a run's stages, as the command `evaluate` and training build them alike."""

import dataclasses
import pathlib

import jax
import numpy as np

import dit_jax
from dit_jax.core import tree as trees
from dit_jax.core.errors import UserError
from dit_jax.data import grain_maps, sources
from dit_jax.evals import balance, evaluator, features, generation, real
from dit_jax.models.dvae import dvae as dvae_model
from dit_jax.sampling import generate, parallel
from dit_jax.tasks import autoencoder, dvae

SPLITS = ("heldout", "train")  # of a run's own data


def answer(workdir, ask: evaluator.Evaluator, params, stage: str, step: int, facts: dict):
  """Evaluates weights; process 0 keeps the answer in the workdir.

  Args:
    workdir: of the run.
    ask: the evaluator.
    params: as it takes them.
    stage, step: of the weights.
    facts: what the card says beside what the evaluator knows.

  Returns:
    The evaluation and its folder, None in other processes.
  """
  found = ask(params)
  found = found._replace(facts=found.facts | facts)
  if jax.process_index():
    return found, None
  return found, evaluator.keep(workdir, ask.name, stage, step, found)


# What is compared with.


def split_of(config, split: str, stage: str) -> real.Real:
  """A split of the run's own images, of the superclasses that a stage sees.

  Raises:
    UserError: there is no such image, or the data cannot be read.
  """
  data = dvae.every_superclass(config.data) if stage == "dvae" else config.data
  try:
    source = sources.open_source(data, split)
  except UserError as e:
    raise UserError(f"the run's {split} images, to compare with, cannot be had: {e}") from e
  return real.of_source(source, f"{split} split of the run, data.holdout={data.holdout}")


def references(workdir) -> pathlib.Path:
  """Where a workdir keeps what was measured of real images."""
  return pathlib.Path(workdir) / "references"


def extractor(inception: str = "") -> features.Extractor:
  """Inception's features, of the weights in a file, or VGG16's.

  Raises:
    UserError: the file is missing or holds something else, or VGG16's weights are not installed.
  """
  if not inception:
    return features.Extractor("vgg16")
  if not pathlib.Path(inception).is_file():
    raise UserError(
      f"the Inception weights {inception!r} are no file; give one, or leave it out for VGG16."
    )
  return features.Extractor(trunk="inception", weights_file=inception)


def drawn_labels(
  mode: str, n: int, classes: tuple[str, ...], known: real.Real, seed: int
) -> np.ndarray:
  """Classes of n pictures, int32 [n]; see evals.balance.

  Args:
    mode: of balance.MODES.
    n: how many.
    classes: of the model; () draws without.
    known: whose classes `mode="reference"` takes.
    seed: of `mode="random"`.

  Raises:
    UserError: an unknown mode, or a reference whose classes are not the model's.
  """
  if mode not in balance.MODES:
    raise UserError(f"labels={mode!r} is unknown; choose one of {', '.join(balance.MODES)}.")
  if not classes:
    return np.zeros(n, np.int32)
  if mode == "balanced":
    return balance.balanced(n, len(classes))
  if mode == "random":
    return balance.random(n, len(classes), seed)
  labels, told = known.labels, "labels=reference needs the model's classes"
  if labels is None:
    raise UserError(f"{told}, and {known.words} says none; choose labels=balanced or random.")
  if known.classes and known.classes != classes:
    ids = {name: i for i, name in enumerate(classes)}
    if strange := [name for name in known.classes if name not in ids]:
      raise UserError(
        f"{told}, and {known.words} has {strange[0]!r}; choose labels=balanced or random."
      )
    labels = np.array([ids[name] for name in known.classes])[labels]
  if not 0 <= labels.min() <= labels.max() < len(classes):
    raise UserError(
      f"{told}, 0 to {len(classes) - 1}, and {known.words} has {labels.min()} to {labels.max()}; "
      "choose labels=balanced or random."
    )
  return balance.like(labels, n)


def fidelity(
  predict, mode: str, n: int, meta: dict, stride: int, known: real.Real, extract, seed: int, workdir
) -> tuple[generation.Generation, dict]:
  """The evaluator of n drawn pictures, and what the card says of their classes.

  Args:
    predict: see `drawing`.
    mode: of balance.MODES.
    n: how many.
    meta: of the stage's checkpoints.
    stride: nodes of the label tree that have a name, 1 or more.
    known: what they are compared with.
    extract: makes features of both.
    seed: of classes and of KID's subsets.
    workdir: keeps what is measured of `known`.
  """
  classes = tuple(meta["classes"]["children"])
  label = drawn_labels(mode, n, classes, known, seed)
  facts = {"labels": mode if classes else "none"}
  if classes:
    counts = np.bincount(label, minlength=len(classes)).tolist()
    facts |= {"classes": len(classes), "per_class": [min(counts), max(counts)]}
  index, grains = balance.numbers(label, stride), len(meta["factors"])
  kept = references(workdir)
  ask = generation.Generation(predict, label, index, known, extract, grains, seed, kept)
  return ask, facts


# What predicts.


def drawing(models: generate.Models, settings: generate.Settings, seed: int, batch: int = 0):
  """(params, label, index) -> images and their grain maps: what `sample` draws."""
  generator = generate.Generator(models, settings)

  def predict(params, label, index):
    maps = generator.grain_maps(params, label, index, seed)
    return generator.images(params, label, index, maps, seed, batch), maps

  return predict


def coding(config, thresholds: dict):
  """(params of the autoencoder, uint8 images) -> what comes back of posterior means, and the maps.

  Args:
    config: of the run.
    thresholds: record of the grain maps.
  """
  vae, maps = autoencoder.of(config), grain_maps.GrainMaps.from_record(thresholds)
  places = parallel.Rows(config.latents.batch_size)

  def again(params, rows):
    moments = vae.moments(params, rows["image"], rows["grains"])
    return generate.to_uint8(vae.decode(params, dvae_model.split_moments(moments)[0]))

  again = places.jit(again)

  def predict(params, images):
    grains = np.stack([maps.of(image) for image in images]).astype(np.int32)
    return places.run(again, params, {"image": images, "grains": grains}), grains

  return predict


# What the card says of them.


def facts_of_drawing(config, stage: str, params: dict, meta: dict, settings) -> dict:
  """Where pictures come from.

  Args:
    config: of the run.
    stage: that draws.
    params: {"content": .., "dgt": ..}, averaged.
    meta: of the stage's checkpoint.
    settings: of sampling.
  """
  checkpoint = facts_of_weights(config, stage, params["content"])
  checkpoint["autoencoder"] = meta["vae"]
  if "dgt" in params:
    checkpoint["dgt"] = trees.content_hash(params["dgt"])
  sampling = dataclasses.asdict(settings) | {"nfe": settings.nfe}
  return {"checkpoint": checkpoint, "sampling": sampling, "versions": versions()}


def facts_of_coding(config, params) -> dict:
  """Which autoencoder it is that images go through."""
  return {"checkpoint": facts_of_weights(config, "dvae", params), "versions": versions()}


def facts_of_weights(config, stage: str, params) -> dict:
  """The hash of averaged weights, and how they were averaged; others' weights do not say."""
  decay = {"ema_decay": config[stage].ema_decay} if stage in config else {}
  return {"ema": trees.content_hash(params), **decay}


def versions() -> dict:
  """Of the code that made the numbers."""
  return {"dit_jax": dit_jax.__version__, "jax": jax.__version__}
