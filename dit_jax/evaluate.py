"""Scores what a trained workdir draws: python -m dit_jax.evaluate --workdir=DIR [--reference=SET]

Compares it with the run's own held-out images, a folder or an .npz, prints the card and leaves it
with pictures in DIR/evaluations. Picture j of a class is the one that `sample` draws as its j-th.

  python -m dit_jax.evaluate --workdir=DIR --stage=dvae

draws nothing: it scores what comes back of real images through the autoencoder.
"""

import json
import pathlib
import sys

import numpy as np
from absl import flags

from dit_jax.core import cli, clock
from dit_jax.core import config as configs
from dit_jax.core.errors import UserError
from dit_jax.data import sources
from dit_jax.evals import balance, generation, npz, real, report
from dit_jax.evals.reconstruction import Reconstruction
from dit_jax.sampling import flags as sampling_flags
from dit_jax.tasks import autoencoder, evaluation, restored, superres
from dit_jax.training.checkpoint import Checkpoints

FLAGS = flags.FlagValues()
_OWN = {"flag_values": FLAGS}
_WORKDIR = flags.DEFINE_string("workdir", "", "A trained workdir.", **_OWN)
_STAGE = flags.DEFINE_string("stage", "", "dvae, or the stage that draws (the default).", **_OWN)
_STEP = flags.DEFINE_integer("step", None, "Checkpoint; default: the last.", **_OWN)
_REFERENCE = flags.DEFINE_string(
  "reference",
  "heldout",
  "heldout or train, of the run; a data set (docs/data.md); FILE.npz.",
  **_OWN,
)
_NUM = flags.DEFINE_integer(
  "num", None, "Images; default: 10000, or as many as are held out.", lower_bound=1, **_OWN
)
_LABELS = flags.DEFINE_string(
  "labels",
  "",
  f"Classes: {', '.join(balance.MODES)}; default: reference with the run's own images, else "
  "balanced.",
  **_OWN,
)
_INCEPTION = flags.DEFINE_string("inception", "", "Inception's weights; default: VGG16.", **_OWN)
_SAMPLES = flags.DEFINE_string("samples", "", "Score the arr_0 of this .npz; draw none.", **_OWN)
_SEED = flags.DEFINE_integer(
  "seed", 0, "Root of every draw.", lower_bound=0, upper_bound=2**32 - 1, **_OWN
)
_BATCH = flags.DEFINE_integer(
  "batch", 16, "Pictures in flight; changes none of them.", lower_bound=1, **_OWN
)
_NPZ = flags.DEFINE_string("npz", "", "Also keep the pictures here (arr_0).", **_OWN)
_JSON = flags.DEFINE_bool("json", False, "The card as one JSON object on stdout.", **_OWN)
_settings = sampling_flags.define(FLAGS)

_NOT_WITH = {  # what the other way of evaluating has no use for
  "--stage=dvae": ("labels", "samples", "batch", "npz"),
  "--samples": ("step", "num", "labels", "batch", "npz"),
}


def main():
  workdir = pathlib.Path(_WORKDIR.value)
  if not (workdir / "config.json").exists():
    raise UserError(f"--workdir={workdir} has no config.json; give the folder of a trained run.")
  if superres.alone(workdir):
    raise UserError(
      f"--workdir={workdir} has the stage superres alone, which draws nothing; "
      "benchmarks/superres.py measures it."
    )
  config = configs.from_json((workdir / "config.json").read_text(encoding="utf-8"))
  draws = restored.content_stage(config)
  if _STAGE.value not in ("", "dvae", draws):
    raise UserError(f"--stage={_STAGE.value} draws no pictures; choose {draws} or dvae.")
  _refuse_idle()
  cli.refuse_unwritable("workdir", workdir / "evaluations" / "card.json")
  if _NPZ.value:
    cli.refuse_unwritable("npz", pathlib.Path(_NPZ.value))
  if _STAGE.value == "dvae":
    folder = of_autoencoder(workdir, config)
  elif _SAMPLES.value:
    folder = of_samples(workdir, config)
  else:
    folder = of_drawn(workdir)
  report.refresh(workdir)
  text = (folder / "card.json").read_text(encoding="utf-8")
  print(text.rstrip() if _JSON.value else as_text(json.loads(text)))
  print(f"card and pictures: {folder}", file=sys.stderr, flush=True)


def of_drawn(workdir: pathlib.Path) -> pathlib.Path:
  """Scores the content stage; the folder of the answer."""
  run = restored.load(workdir, _STEP.value)
  settings, stage = run.settings(**_settings()), restored.content_stage(run.config)
  known, own = _real(run.config, stage), _REFERENCE.value in evaluation.SPLITS
  num = _NUM.value or (len(known) if _REFERENCE.value == "heldout" else 10_000)
  kept = {}
  draw = evaluation.drawing(run.models, settings, _SEED.value, _BATCH.value)
  ask, classes = evaluation.fidelity(
    _watched(draw, num, kept if _NPZ.value else None),
    _LABELS.value or ("reference" if own else "balanced"),
    num,
    run.meta,
    max(run.models.tiers.num_named, 1),
    known,
    evaluation.extractor(_INCEPTION.value),
    _SEED.value,
    workdir,
  )
  facts = evaluation.facts_of_drawing(run.config, stage, run.params, run.meta, settings) | classes
  _, folder = evaluation.answer(workdir, ask, run.params, stage, run.step, facts)
  if _NPZ.value:
    card = np.asarray((folder / "card.json").read_text(encoding="utf-8"))
    npz.write(_NPZ.value, kept | {"label": ask.label, "index": ask.index, "card": card})
  return folder


def of_samples(workdir: pathlib.Path, config) -> pathlib.Path:
  """Scores pictures of an .npz, whoever drew them; the folder of the answer."""
  samples, arrays = real.of_npz("samples", _SAMPLES.value, config.data.image_size, crop=False)
  known, place = _real(config, restored.content_stage(config)), np.arange(len(samples))
  extract = evaluation.extractor(_INCEPTION.value)
  take = lambda params, label, index: (samples.read(index), None)
  kept = evaluation.references(workdir)
  ask = generation.Generation(take, place, place, known, extract, 1, _SEED.value, kept)
  about = {"file": samples.words, "fingerprint": samples.fingerprint}
  if "card" in arrays:
    about["card"] = _card_in(arrays["card"])
  facts = {"samples": about, "versions": evaluation.versions()}
  return evaluation.answer(workdir, ask, {}, "samples", 0, facts)[1]


def of_autoencoder(workdir: pathlib.Path, config) -> pathlib.Path:
  """Scores what comes back of real images; the folder of the answer."""
  if autoencoder.pretrained(config):
    (params, thresholds), step = autoencoder.load(config, workdir), 0
  else:
    ema, meta, step = Checkpoints(workdir / "dvae").restore_ema(_STEP.value)
    params, thresholds = ema["gen"], meta["thresholds"]
  known = _real(config, "dvae")
  if _NUM.value and _NUM.value < len(known):
    known = known.take(balance.spread(len(known), _NUM.value))
  predict, grains = evaluation.coding(config, thresholds), len(thresholds["taus"]) + 1
  extract = evaluation.extractor(_INCEPTION.value)
  ask = Reconstruction(predict, known, extract, grains, _SEED.value)
  facts = evaluation.facts_of_coding(config, params)
  return evaluation.answer(workdir, ask, params, "dvae", step, facts)[1]


def as_text(card: dict) -> str:
  """The same card as lines for a person."""
  head = ("evaluator", "stage", "step", "metrics")
  rest = {k: v for k, v in card.items() if k not in head and v not in ({}, "")}
  lines = ["{evaluator} of {stage}, step {step}".format(**card)]
  width = max(map(len, (*card["metrics"], *rest)))
  for name, value in (card["metrics"] | rest).items():
    lines.append(f"{name:{width}s}  {_plain(value)}")
  return "\n".join(lines)


def _plain(value) -> str:
  if isinstance(value, dict):  # a card within a card is read in the file
    return ", ".join(f"{name} {_plain(x)}" for name, x in value.items() if name != "card")
  if isinstance(value, list):
    return " ".join(map(_plain, value))
  if value is None:
    return "none"
  return f"{value:.6g}" if isinstance(value, float) else str(value)


def _refuse_idle() -> None:
  """Raises UserError where a flag that was given would not be looked at."""
  drawing = (*_settings(), "sampler")
  for way, asked in (("--stage=dvae", _STAGE.value == "dvae"), ("--samples", _SAMPLES.value)):
    idle = [name for name in (*_NOT_WITH[way], *drawing) if name in FLAGS and FLAGS[name].present]
    if asked and idle:
      raise UserError(f"{way} draws no pictures; leave out {', '.join(f'--{n}' for n in idle)}.")


def _real(config, stage: str) -> real.Real:
  """What --reference names, of the run's size."""
  wanted, data = _REFERENCE.value, config.data
  if wanted in evaluation.SPLITS:
    return evaluation.split_of(config, wanted, stage)
  if wanted.endswith(".npz"):
    return real.of_npz("reference", wanted, data.image_size)[0]
  block = sources.block_at(
    wanted, data.image_size, background=data.get("background", sources.WHITE)
  )
  try:
    return real.of_source(sources.open_source(block, "all"), wanted)
  except UserError as e:
    raise UserError(f"--reference={wanted} is no image set ({e})") from e


def _card_in(array: np.ndarray):
  """The card that `--npz` left in a file."""
  try:
    return json.loads(str(array), parse_constant=lambda name: None)  # NaN is no JSON
  except json.JSONDecodeError as e:
    raise UserError(f"--samples={_SAMPLES.value} has a card that is no JSON; take it out.") from e


def _watched(draw, num: int, kept: dict | None):
  """The same predict function, which shows how far it is, and keeps what it draws where asked."""
  progress = clock.Progress(-(-num // real.CHUNK), real.CHUNK, label="evaluate")
  done = at = 0

  def predict(params, label, index):
    nonlocal done, at
    drawn = draw(params, label, index)
    done, at = done + 1, at + len(label)
    progress.tick(done)
    progress.report(done, {})
    if kept is not None:  # in place: 50,000 images fit into memory once
      for name, rows in zip(("arr_0", "grains"), drawn, strict=True):
        if name not in kept:
          kept[name] = np.empty((num, *rows.shape[1:]), rows.dtype)
        kept[name][at - len(label) : at] = rows
    return drawn

  return predict


if __name__ == "__main__":
  cli.run(main, FLAGS)
