"""What a trained stage is asked, and the folder of a workdir that keeps the answers.

    workdir/evaluations/<stage>_step_<8 digits>_<evaluator>/{card.json, 01_samples.png, ...}

An evaluator is handed what predicts and what to compare with, and called with weights. It knows no
config and no checkpoint: who builds it says in the card where the weights come from.
"""

import itertools
import json
import math
import pathlib
import re
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from dit_jax.core import files
from dit_jax.sampling import grids

FOLDER = "evaluations"


class Evaluation(NamedTuple):
  """What an evaluator found.

  Attributes:
    metrics: numbers by name.
    facts: JSON-ready, what has to be known to repeat them.
    pictures: uint8 [H, W, 3] by title, in the order in which they are shown.
  """

  metrics: dict[str, float]
  facts: dict[str, Any]
  pictures: dict[str, np.ndarray]


@runtime_checkable
class Evaluator(Protocol):
  """Numbers and pictures of averaged weights; `name` ends the name of its folder."""

  name: str

  def __call__(self, params: Any) -> Evaluation:
    """Evaluates parameters as the evaluator's predict function takes them."""


def keep(workdir, name: str, stage: str, step: int, found: Evaluation) -> pathlib.Path:
  """Writes card and pictures; pictures first, so that a card says that the folder is whole.

  An evaluation of the same step under other conditions is not written over: the folder gets a
  number at its end.

  Args:
    workdir: of the run.
    name: the evaluator's.
    stage, step: of the weights.
    found: what the evaluator found; one process writes it.

  Returns:
    The folder.
  """
  numbers = {k: v if math.isfinite(v) else None for k, v in found.metrics.items()}
  head = {"evaluator": name, "stage": stage, "step": step, "metrics": numbers}
  card = head | {k: v for k, v in found.facts.items() if k not in head}
  card = json.loads(json.dumps(card, allow_nan=False))  # as it will be read
  folder = _folder(pathlib.Path(workdir) / FOLDER / f"{stage}_step_{step:08d}_{name}", card)
  folder.mkdir(parents=True, exist_ok=True)
  for old in folder.glob("*.png"):
    old.unlink()
  for number, (title, picture) in enumerate(found.pictures.items(), 1):
    grids.save_png(folder / f"{number:02d}_{re.sub('[^a-z0-9]+', '_', title)}.png", picture)
  files.write_text(folder / "card.json", json.dumps(card, indent=2) + "\n")
  return folder


def _folder(path: pathlib.Path, card: dict) -> pathlib.Path:
  """The path, or the first with a number behind it that is free or holds this very evaluation."""
  conditions = lambda card: {k: v for k, v in card.items() if k != "metrics"}
  for number in itertools.count(1):
    folder = path if number == 1 else path.with_name(f"{path.name}_{number}")
    old = folder / "card.json"
    if not old.exists():
      return folder
    try:
      known = json.loads(old.read_text(encoding="utf-8"))
    except ValueError:  # torn by somebody: not ours to write over
      continue
    if conditions(known) == conditions(card):
      return folder
