"""What is kept of an evaluation: a card, numbered pictures, and nothing is written over."""

import json

import numpy as np
from PIL import Image

from dit_jax.evals import evaluator
from dit_jax.evals.evaluator import Evaluation
from dit_jax.evals.generation import Generation
from dit_jax.evals.reconstruction import Reconstruction


def found(seed=0, value=1.5, pictures=("samples", "real, fine regions")):
  picture = np.random.default_rng(seed).integers(0, 256, (4, 6, 3)).astype(np.uint8)
  return Evaluation({"a": value}, {"seed": seed, "pair": (1, 2)}, dict.fromkeys(pictures, picture))


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def test_card_and_pictures(tmp_path):
  folder = evaluator.keep(tmp_path, "fidelity", "dct", 40, found())
  assert folder == tmp_path / "evaluations" / "dct_step_00000040_fidelity"
  assert names(folder) == ["01_samples.png", "02_real_fine_regions.png", "card.json"]
  card = json.loads((folder / "card.json").read_text())
  assert card == {
    "evaluator": "fidelity",
    "stage": "dct",
    "step": 40,
    "metrics": {"a": 1.5},
    "seed": 0,
    "pair": [1, 2],
  }
  with Image.open(folder / "01_samples.png") as picture:
    np.testing.assert_array_equal(np.asarray(picture), found().pictures["samples"])


def test_the_same_evaluation_replaces_itself_and_no_other(tmp_path):
  keep = lambda *args, **kw: evaluator.keep(tmp_path, "fidelity", "dct", 40, found(*args, **kw))
  first = keep()
  second = keep(seed=1)
  assert second.name == "dct_step_00000040_fidelity_2"
  assert keep(value=float("nan"), pictures=("samples",)) == first
  assert names(first) == ["01_samples.png", "card.json"]
  assert json.loads((first / "card.json").read_text())["metrics"] == {"a": None}
  assert json.loads((second / "card.json").read_text())["seed"] == 1
  assert keep(seed=1) == second


def test_evaluators_are_evaluators():
  for kind in (Generation, Reconstruction):
    assert isinstance(kind.__new__(kind), evaluator.Evaluator)
  assert not isinstance(print, evaluator.Evaluator)
