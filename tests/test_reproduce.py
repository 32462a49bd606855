"""A paper's comparison: what its command leaves and skips, and how its table reads."""

import importlib
import json
import pathlib

import benchmark_module
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_images
from test_end_to_end import compile_once, one_device  # noqa: F401

from dit_jax.core import config as configs
from dit_jax.core import tree as trees
from dit_jax.core.errors import UserError
from dit_jax.tasks import dct, dit, sizes

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECIPE = ROOT / "configs" / "efdit_birds.py"
FACTORS = ("A", "B")


effects, judge = (benchmark_module.load(name) for name in ("effects", "judge"))


def record(row, seed, fd, kid, on=None):
  metrics = {"VGG-FD": fd, "VGG-KID": kid}
  labels = None if row == "floor" else {"class": 7.0 + seed, "superclass": 20.0 + 5 * ("A" in on)}
  card = {"metrics": metrics, "n": 599}
  return {"row": row, "seed": seed, "on": on, "card": card, "recognised": labels}


def records(fd_of_a, kid_of_a=lambda seed: -1.0):
  """Three seeds of 2^2 cells, where B and A x B do nothing; floors that lie 7 apart."""
  found = [record("floor", seed, 50 + 3.5 * seed, 0.0) for seed in range(3)]
  for seed in range(3):
    for on in ([], ["A"], ["B"], ["A", "B"]):
      a = "A" in on
      found.append(
        record("+".join(on), seed, 300 + seed + a * fd_of_a(seed), 9 + a * kid_of_a(seed), on)
      )
  return found


def of_factor(records, name):
  resolution = effects.resolution_of(records)
  found = {e.factor: e for e in effects.effects(records, FACTORS, resolution)}
  return found[name]


def test_an_effect_is_the_difference_of_the_cells_seed_by_seed():
  a, b = (of_factor(records(lambda seed: -20.0 - seed), name) for name in FACTORS)
  np.testing.assert_allclose(a.by_seed["VGG-FD"], [-20, -21, -22])
  np.testing.assert_allclose(a.by_seed["VGG-KID"], [-1, -1, -1])
  np.testing.assert_allclose(a.by_seed["superclass"], [5, 5, 5])
  np.testing.assert_allclose(list(b.by_seed.values()), 0, atol=1e-9)
  assert (a.reading, b.reading) == ("better", "not resolved")


@pytest.mark.parametrize(
  ("fd", "kid", "reading"),
  [
    (lambda s: 20.0, lambda s: 1.0, "worse"),
    (lambda s: -20.0, lambda s: -1.0, "better"),
    (lambda s: -6.0, lambda s: -1.0, "not resolved"),  # as near as two draws of real photos
    (lambda s: -60.0 if s else 1.0, lambda s: -1.0, "not resolved"),  # not in every seed
    (lambda s: -20.0, lambda s: 0.1 - s, "not resolved"),  # not in both metrics
  ],
)
def test_an_effect_holds_in_every_seed_and_metric_and_beyond_the_floor(fd, kid, reading):
  assert of_factor(records(fd, kid), "A").reading == reading


def test_the_table_has_a_line_a_row_and_a_line_a_factor(capsys):
  effects.print_table(records(lambda seed: -20.0), FACTORS)
  lines = capsys.readouterr().out.splitlines()
  (floor,) = (line.split() for line in lines if line.startswith("floor"))
  assert floor[1:] == ["3", "53.50", "(3.50)", "0.00", "(0.00)", "-", "-"]
  (cell,) = (line.split() for line in lines if line.startswith("A+B"))
  assert cell[-4:] == ["8.00", "(1.00)", "25.00", "(0.00)"]
  assert [(line.split()[0], line.partition(": ")[2]) for line in lines[-2:]] == [
    ("A", "better"), ("B", "not resolved")
  ]  # fmt: skip


def test_a_record_of_another_recipe_is_refused():
  config = configs.load(RECIPE)
  kept = {"config": effects.as_json(config)}
  config.data.path, config.init_from = "elsewhere", "moved"
  effects.refuse_other("x.json", kept, config)
  for field, value in (("dit.optim.lr", 1.0), ("sampling.guidance", 3.0)):
    other = configs.from_json(configs.to_json(config))
    other.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=r"x\.json is of another recipe"):
      effects.refuse_other("x.json", kept, other)


def fine_tune(**attention):
  """The stage of the tiny fine-tune, 40 steps long."""
  config = configs.load(RECIPE, "tiny")
  config.dit.total_steps = 40
  config.dit.model.attention.update(attention)
  meta = sizes.latent_meta(config, (4, 2))
  statistics = {"mean": np.zeros((1, 4)), "std": np.ones((1, 4))}
  return dct.make_content(config, "dit", meta, statistics, dit.make_model, dit.content_fn)


def test_a_prob_sparse_fine_tune_starts_as_its_dense_base():
  """u falls from all 64 queries to c's 25, in the blocks that are chosen; the weights are alike."""
  dense, pro = fine_tune(), fine_tune(kind="pro", pro_blocks=(1,))
  assert [start for start, _ in pro.phases] == [0, 1, 2]
  queries = [
    phase.of_block(1, 64).num_queries(64)
    for _, phase in pro.model.attention.phases(40, pro.model.block_tokens)
  ]
  assert queries == [64, 32, 25]
  assert pro.model.attention.of_block(0, 64) is None
  params = jax.jit(dense.init)(jax.random.key(0))
  born = jax.eval_shape(pro.init, jax.random.key(0))
  assert {n: x.shape for n, x in trees.flatten(born).items()} == {
    n: x.shape for n, x in trees.flatten(params).items()
  }
  # Zero at init: gates would hide what attention answers.
  drawn = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(params))))
  params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(drawn), x.shape), params)
  z, label = jax.random.normal(jax.random.key(2), (3, 16, 16, 4)), jnp.arange(3)
  step = jnp.int32(0)
  of = lambda content, phase: content.phases[phase][1].apply(
    params, z, jnp.full(3, 300.0), label, {"grains": None}, step
  )
  np.testing.assert_allclose(of(pro, 0), of(dense, 0), atol=1e-5)
  assert np.abs(of(pro, 2) - of(dense, 0)).max() > 1e-4


def test_the_discriminant_finds_the_classes_it_was_shown_the_spread_of():
  """Two classes apart along a thin direction of a long cloud, where the nearer mean misleads."""
  rng = np.random.default_rng(0)
  draw = lambda: rng.standard_normal((8_000, 2)) * (3, 0.5)
  labels = np.repeat([0, 1], 4_000)
  moved = lambda x: x + np.where(labels[:, None], (3, 1), 0)
  classify = judge.Discriminant(moved(draw()), labels)
  x = moved(draw())
  assert np.mean(classify(x) == labels) > 0.8
  nearer = np.linalg.norm(x - (3, 1), axis=1) < np.linalg.norm(x, axis=1)
  assert np.mean(nearer == labels) < 0.75


def test_the_records_of_the_repository_are_of_its_recipes_and_print_their_table(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.syspath_prepend(str(ROOT))
  study = importlib.import_module("benchmarks.efdit_study").Study("", tmp_path, False)
  records = study.done((0, 1, 2), ROOT / "benchmarks" / "results" / "efdit")
  assert len(records) == 2 + 3 * 10
  study.print_table(records)
  lines = capsys.readouterr().out.splitlines()
  (cell,) = (line.split() for line in lines if line.startswith("TE+HRIG+Pro"))
  assert cell[1:4] == ["3", "680.90", "(10.81)"]  # as docs/reproduction.md has them
  readings = {line.split()[0]: line.rpartition(": ")[2] for line in lines[-3:]}
  assert readings == {"TE": "better", "HRIG": "not resolved", "Pro": "worse"}


@pytest.mark.all
def test_a_finished_comparison_is_printed_and_not_repeated(tmp_path, monkeypatch, capsys):
  monkeypatch.syspath_prepend(str(ROOT))
  reproduce = benchmark_module.load("reproduce")
  study = importlib.import_module("benchmarks.efdit_study").Study
  monkeypatch.setattr(study, "factors", {"Pro": study.factors["Pro"]})
  monkeypatch.setattr(study, "shown", ((), ("Pro",)))
  images = tiny_images.write(tmp_path / "images", per_class=10)
  out = tmp_path / "out"
  words = ["--paper=efdit", "--tiny", f"--out={out}", f"--workdir={tmp_path / 'work'}", "--seeds=3"]
  with pytest.raises(UserError, match=r"held_out_seed0\.json is missing; give --data"):
    reproduce.main(words)
  reproduce.main([*words, f"--data={images}", f"--grid={tmp_path / 'grid.png'}"])
  first = capsys.readouterr().out
  names = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
  assert set(names) == {
    *("held_out_seed0.json", "decoded_seed0.json"),
    *(f"{row}_seed3.json" for row in ("floor", "before", "plain", "pro")),
  }
  made = {name: json.loads((out / name).read_text()) for name in names}
  assert {r["card"]["n"] for r in made.values()} == {8}
  assert made["pro_seed3.json"]["on"] == ["Pro"]
  assert made["pro_seed3.json"]["base"] == made["before_seed3.json"]["base"]
  assert (tmp_path / "grid.png").stat().st_size

  reproduce.main(words)  # without the images
  again = capsys.readouterr().out
  assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == names
  table = again[again.index("n = 8") :]
  assert first.endswith(table)
  assert "[dit]" not in again
