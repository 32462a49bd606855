"""What stands on a run's page: its stages and its evaluations."""

import itertools
import json
import pathlib
import re
from typing import NamedTuple

from dit_jax.evals import curves, run_files
from dit_jax.evals.curves import Curve
from dit_jax.evals.run_files import Files, Picture
from dit_jax.evals.words import at, flat, listed, number, shown

TITLES = {
  "dvae": "dynamic autoencoder",
  "dgt": "grain transformer",
  "dct": "content transformer",
  "dit": "diffusion transformer",
  "superres": "super-resolution",
}
_FIRST = ("loss", "grad_norm")  # of a stage's curves
# Of a card: metrics are compared where these are equal, n above all.
_CONDITIONS = ("n", "image_size", "trunk", "weights", "eval_size", "reference")
_CONDITIONS += ("reference_fingerprint", "reference_n", "labels", "seed", "sampling", "samples")
_TOLD = {
  "n": "n",
  "sampler": "sampling.stepper",
  "steps": "sampling.steps",
  "guidance": "sampling.guidance",
  "against": "reference",
}


class Stage(NamedTuple):
  """How a stage went.

  Attributes:
    name: its folder.
    title: in words; "" for a folder that is no stage of ours.
    step: the newest that metrics or checkpoints tell of.
    total: the config's; 0 where it does not say.
    facts: pairs in words.
    curves: of what moved.
    constant: names and values of what did not.
    previews: the newest and the first.
  """

  name: str
  title: str
  step: int
  total: int
  facts: list[tuple[str, str]]
  curves: list[Curve]
  constant: list[tuple[str, str]]
  previews: list[Picture]


def stage_names(files: Files, config: dict) -> list[str]:
  """Stages of the config in its order, then other folders of stages or with metrics."""
  wanted = at(config, "stages")
  wanted = [str(name) for name in wanted] if isinstance(wanted, list | tuple) else []
  held = [p.name for p in files.folders(files.root) if _holds_a_stage(p)]
  return list(dict.fromkeys([*(name for name in wanted if re.fullmatch(r"\w+", name)), *held]))


def _holds_a_stage(folder: pathlib.Path) -> bool:
  return folder.name in TITLES or (folder / "metrics.jsonl").exists()


def stage(files: Files, config: dict, name: str) -> Stage:
  """A stage from its folder, which need not be there yet."""
  folder, block = files.root / name, at(config, name)
  metrics = files.metrics(folder / "metrics.jsonl") if folder.is_dir() else {}
  saved = checkpoints(files, name)
  step = max([0, *saved, *(s for series in metrics.values() for s in series)])
  batch, total = at(block, "batch_size"), at(block, "total_steps")
  size = re.search(r"^Total: ([\d,]+)", files.text(folder / "parameters.txt", needed=False), re.M)
  optim = [at(block, f"optim.{key}") for key in ("name", "lr", "schedule")]
  facts = listed(
    ("batch", batch),
    ("images seen", step * batch if isinstance(batch, int) and step else None),
    ("parameters", size and size.group(1)),
    ("optimizer", [x for x in optim if x is not None]),
    ("EMA", at(block, "ema_decay")),
    ("checkpoints", saved),
  )
  order = sorted(metrics, key=lambda n: (n not in _FIRST, _FIRST.index(n) if n in _FIRST else 0, n))
  still = [n for n in order if metrics[n] and curves.constant(metrics[n])]
  return Stage(
    name=name,
    title=TITLES.get(name, ""),
    step=step,
    total=int(total) if run_files.is_number(total) else 0,
    facts=facts,
    curves=[curves.curve(n, metrics[n]) for n in order if n not in still],
    constant=[(n, number(next(iter(metrics[n].values())))) for n in still],
    previews=_previews(files, folder / "previews"),
  )


def checkpoints(files: Files, name: str) -> list[int]:
  """Steps that a stage's folder has checkpoints of, ascending."""
  return list(run_files.numbered(files.root / name, r"(\d+)"))


def _previews(files: Files, folder: pathlib.Path) -> list[Picture]:
  steps = list(run_files.numbered(folder, r"step_(\d+)\.png").items())
  ends = zip(("newest", "first"), steps[-1:] + steps[:-1][:1], strict=False)
  pictures = [files.picture(path, f"{which}, step {step:,}") for which, (step, path) in ends]
  return [picture for picture in pictures if picture]


class Evaluation(NamedTuple):
  """What an evaluator found in a stage.

  Attributes:
    folder: its name under evaluations/.
    evaluator, stage, step: of its card.
    metrics: by name; None for what was not finite.
    facts: the rest of the card, pairs in words.
    conditions: what of them has to be equal where metrics are compared, as JSON.
    told: those that tell evaluations apart, in words.
    pictures: in the order of their numbers; of the newest of a group alone, or a page of a long run
      would weigh gigabytes.
  """

  folder: str
  evaluator: str
  stage: str
  step: int
  metrics: dict[str, float | None]
  facts: list[tuple[str, str]]
  conditions: str
  told: str
  pictures: list[Picture]


class Group(NamedTuple):
  """Evaluations of one stage by one evaluator under equal conditions, oldest step first.

  Attributes:
    stage, evaluator: whose.
    told: the conditions in words.
    names: of all their metrics.
    rows: the evaluations.
    curves: of metrics that several steps have.
  """

  stage: str
  evaluator: str
  told: str
  names: list[str]
  rows: list[Evaluation]
  curves: list[Curve]


def evaluations(files: Files) -> list[Group]:
  """Everything under evaluations/, by stage, evaluator and conditions."""
  found = [_evaluation(files, folder) for folder in files.folders(files.root / "evaluations")]
  whose = lambda e: (e.stage, e.evaluator, e.conditions)
  found.sort(key=lambda e: (*whose(e), e.step, e.folder))
  return [_group(files, list(rows)) for _, rows in itertools.groupby(found, whose)]


def _group(files: Files, rows: list[Evaluation]) -> Group:
  newest = rows[-1]
  rows = [*rows[:-1], newest._replace(pictures=_pictures(files, newest.folder))]
  names = list(dict.fromkeys(name for row in rows for name in row.metrics))
  found = []
  for name in names:
    series = {e.step: x for e in rows if (x := e.metrics.get(name)) is not None}
    if len(series) > 1:
      found.append(curves.curve(name, series, dots=True))
  return Group(newest.stage, newest.evaluator, newest.told, names, rows, found)


def _evaluation(files: Files, folder: pathlib.Path) -> Evaluation:
  card = files.json(folder / "card.json")
  metrics = card.pop("metrics", None)
  metrics = metrics if isinstance(metrics, dict) else {}
  evaluator, stage, step = (card.pop(key, None) for key in ("evaluator", "stage", "step"))
  told = [(name, at(card, path)) for name, path in _TOLD.items()]
  return Evaluation(
    folder=folder.name,
    evaluator=shown(evaluator) if evaluator else "unknown evaluator",
    stage=shown(stage) if stage else "unknown stage",
    step=int(step) if run_files.is_number(step) else 0,
    metrics={name: x if run_files.is_number(x) else None for name, x in metrics.items()},
    facts=list(flat(card)),
    conditions=json.dumps([card.get(key) for key in _CONDITIONS], sort_keys=True),
    told=", ".join(f"{name} {value}" for name, value in listed(*told)),
    pictures=[],
  )


def _pictures(files: Files, name: str) -> list[Picture]:
  paths = run_files.numbered(files.root / "evaluations" / name, r"(\d+)_.+\.png").values()
  pictures = [files.picture(p, p.stem.partition("_")[2].replace("_", " ")) for p in paths]
  return [picture for picture in pictures if picture]
