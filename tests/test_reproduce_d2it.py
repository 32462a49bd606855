"""D2iT's comparison: equal costs, given maps, how orderings read, and a run of all of it."""

import importlib
import json
import pathlib

import numpy as np
import pytest
import tiny_images
from test_end_to_end import compile_once, one_device  # noqa: F401

from dit_jax.core import config as configs
from dit_jax.core.errors import UserError
from dit_jax.sampling import grain_source
from dit_jax.tasks import sizes

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bench():
  """benchmarks.NAME as the command imports it."""
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(ROOT))
    yield lambda name: importlib.import_module(f"benchmarks.{name}")


def record(row, seed, fd, kid, **facts):
  metrics = {"VGG-FD": fd, "VGG-KID": kid}
  recognised = None if row == "floor" else {"class": 7.0, "superclass": 20.0}
  return {"row": row, "seed": seed, "card": {"metrics": metrics, "n": 9}} | {
    "recognised": recognised, "on": None, **facts
  }  # fmt: skip


def pair(low, high):
  """Rows "a" and "b", by seed (VGG-FD, VGG-KID) of each."""
  rows = {"a": low, "b": high}
  return [record(n, s, *x) for n, values in rows.items() for s, x in enumerate(values)]


HIGH = [(300, 2.0), (310, 2.1), (320, 2.2)]


@pytest.mark.parametrize(
  ("low", "reading"),
  [
    ([(290, 1.9), (300, 2.0), (319, 2.1)], "holds"),
    ([(310, 2.1), (320, 2.2), (321, 2.3)], "reversed"),
    ([(290, 1.9), (300, 2.0), (321, 2.1)], "not resolved"),  # not in every seed
    ([(290, 1.9), (300, 2.0), (319, 2.3)], "not resolved"),  # not in both metrics
    ([(290, 1.9), (310, 2.0), (319, 2.1)], "not resolved"),  # a tie
    ([(290, 1.9), (300, 2.0)], "not resolved"),  # two seeds
    ([], "not resolved"),
  ],
)
def test_an_ordering_holds_in_three_seeds_and_both_metrics(bench, low, reading):
  found = bench("orderings").ordering(pair(low, HIGH), "a", "b")
  assert found.reading == reading
  assert found.by_seed["VGG-FD"] == [x[0] - y[0] for x, y in zip(low, HIGH, strict=False)]


def test_a_row_lies_between_two_others(bench):
  records = [*pair([(300, 2.0)], [(400, 4.0)]), record("c", 0, 325, 2.1)]
  place = bench("orderings").place_between(records, "c", "a", "b")
  np.testing.assert_allclose([place["VGG-FD"], place["VGG-KID"]], [[0.25], [0.05]])


def test_maps_of_a_class_are_those_of_its_images_and_none_is_twice(bench):
  grains = np.arange(10)[:, None, None] * np.ones((10, 2, 2), np.uint8)
  labels = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
  wanted = np.array([1, 0, 0, 2, 1, 0, 2, 2, 1, 2, 2])  # five of the three of class 2
  maps = bench("d2it_study").maps_of_class(grains, labels, wanted, np.random.default_rng(0))
  np.testing.assert_array_equal(labels[maps[:, 0, 0]], wanted)
  for label, most in ((0, 1), (1, 1), (2, 2)):
    assert np.bincount(maps[wanted == label, 0, 0]).max() == most


def test_shuffled_maps_keep_their_shares_and_random_ones_only_the_mean(bench):
  rng = np.random.default_rng(0)
  maps = np.zeros((400, 8, 8), np.int32)
  for m, rows in zip(maps, rng.integers(0, 9, 400), strict=True):
    m[:rows] = 1  # whole rows: neighbours agree
  other = bench("d2it_study").shuffled(maps, rng)
  np.testing.assert_array_equal(other.sum((1, 2)), maps.sum((1, 2)))
  by_rule = grain_source.by_rule(
    "random", np.arange(400), 0, (8, 8), [1 - maps.mean(), maps.mean()]
  )
  assert abs(by_rule.mean() - maps.mean()) < 0.02
  assert by_rule.mean((1, 2)).std() < 0.1 < maps.mean((1, 2)).std()
  agree = lambda m: np.mean(m[:, :, 1:] == m[:, :, :-1])
  assert agree(maps) == 1
  assert 0.5 < agree(other) < 0.8  # neighbours know the image's share, and no more


@pytest.mark.parametrize(
  ("fine", "stages", "factors", "patch"),
  [("0", ("dvae", "dit"), (8,), 1), ("0.3", ("dvae", "dgt", "dct"), (4, 8), 0),
   ("1", ("dvae", "dit"), (4,), 2)],
)  # fmt: skip
def test_the_recipe_has_64_tokens_at_every_share(fine, stages, factors, patch):
  c = configs.load(ROOT / "configs" / "d2it_emoji.py", f"fine={fine}")
  assert (c.stages, c.dvae.model.factors) == (stages, factors)
  assert sizes.tokens(c)["base"] == 64
  assert not patch or c.dit.model.patch == patch


def test_a_share_is_a_share():
  with pytest.raises(UserError, match=r"fine=1\.5 must be a share"):
    configs.load(ROOT / "configs" / "d2it_emoji.py", "fine=1.5")


@pytest.fixture(scope="module")
def costs(bench):
  return bench("d2it_study").Study("", pathlib.Path("unused"), False).costs()


def test_runs_of_a_comparison_cost_the_same(costs):
  """Within 2 %: each DVAE, each transformer of a comparison, and DiT what DGT and DCT cost."""
  of = lambda *names: [sum(costs[name].train.values()) for name in names]
  for names in (
    [name for name in costs if name.startswith("decoded")],
    ["DiT coarse", "DiT fine", "D2iT"],
    ["6+0", "copied", "grain means"],
  ):
    flops = of(*names)
    assert max(flops) < 1.02 * min(flops), names
  np.testing.assert_allclose(of("6+0")[0], costs["D2iT"].train["dct"], rtol=0.02)
  assert of("held out", "floor", "true maps", "shuffled maps", "random maps") == [0] * 5


def test_all_of_it_takes_two_cores_two_hours_and_a_half_at_most(costs):
  minutes = sum(3 * cost.seconds / 60 for cost in costs.values())
  assert 100 < minutes < 2 * 150


def test_strangers_of_one_recipe_are_refused(bench):
  fields = dict(seed=0, data=1, dvae=2)
  rows = [
    record("D2iT", 0, 1, 1, dvae="d", transformer="t", config=fields | dict(dct=1)),
    record("random maps", 0, 1, 1, dvae="d", transformer="t", config=fields | dict(dct=1)),
    record("copied", 0, 1, 1, dvae="d", transformer="u", config=fields | dict(dct=2)),
    record("D2iT", 1, 1, 1, dvae="e", transformer="v", config=fields | dict(seed=1, dct=1)),
  ]
  refuse = bench("d2it_study").refuse_strangers
  refuse(rows)
  with pytest.raises(UserError, match=r"'D2iT' and 'random maps' of seed 0 .* of the transformer"):
    refuse([rows[0], rows[1] | {"transformer": "w"}, *rows[2:]])
  with pytest.raises(UserError, match=r"'D2iT' and 'copied' of seed 0 .* of the dvae"):
    refuse([*rows[:2], rows[2] | {"dvae": "w"}, rows[3]])


def test_work_that_is_claimed_is_left_to_its_claimant(bench, tmp_path):
  claims = bench("claims")
  a, b = tmp_path / "a", tmp_path / "b"
  with claims.claimed(a), claims.claimed(b), pytest.raises(claims.Busy), claims.claimed(a):
    pass
  with claims.claimed(a):
    pass


def test_an_unknown_comparison_is_refused(bench, tmp_path):
  with pytest.raises(UserError, match=r"--only=graine is no comparison .* grains, maps, depth"):
    bench("d2it_study").Study("", tmp_path, True, "maps,graine")
  with pytest.raises(UserError, match="it has none"):
    bench("efdit_study").Study("", tmp_path, True, "maps")


@pytest.mark.all
def test_a_comparison_of_maps_is_trained_drawn_printed_and_not_repeated(
  bench, tmp_path, monkeypatch, capsys
):
  study = bench("d2it_study")
  monkeypatch.setattr(study, "COMPARISONS", {"maps": (("true maps", "D2iT"),)})
  images = tiny_images.write(tmp_path / "images", per_class=6)
  out, work = tmp_path / "out", tmp_path / "work"
  words = ["--paper=d2it", "--tiny", f"--data={images}", f"--out={out}", f"--workdir={work}"]
  words.append("--seeds=3")
  main = bench("reproduce").main
  main([*words, f"--grid={tmp_path / 'grid.png'}"])
  first = capsys.readouterr().out
  names = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
  rows = ("floor", "d2it", "true_maps")
  assert set(names) == {"held_out_seed0.json", *(f"{row}_seed3.json" for row in rows)}
  made = {name: json.loads((out / name).read_text()) for name in names}
  assert {r["card"]["n"] for r in made.values()} == {8}
  ours = [made[f"{row}_seed3.json"] for row in rows[1:]]
  assert len({(r["dvae"], r["transformer"]) for r in ours}) == 1
  assert (tmp_path / "grid_maps.png").stat().st_size
  with np.load(work / "true_maps_seed3.npz") as drawn, np.load(work / "d2it_seed3.npz") as own:
    assert drawn["grains"].any()
    assert not np.array_equal(drawn["images"], own["images"])

  main(words)
  again = capsys.readouterr().out
  assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == names
  assert first.endswith(again[again.index("n = 8") :])
  assert "[dct]" not in again


def test_the_records_of_the_repository_are_of_its_recipes_and_read_as_the_page_says(
  bench, tmp_path, capsys
):
  study = bench("d2it_study").Study("", tmp_path, False, "")
  records = study.done((0, 1, 2), ROOT / "benchmarks" / "results" / "d2it")
  assert len(records) == 1 + 3 * 15
  study.print_table(records)
  lines = capsys.readouterr().out.splitlines()
  page = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
  pairs = [pair for pairs in bench("d2it_study").COMPARISONS.values() for pair in pairs]
  assert len(pairs) == 13
  for pair in pairs:
    (line,) = (line for line in lines if f" {' < '.join(pair)}: " in line)
    name, fd, kid, reading = line.split(maxsplit=1)[1].replace(";", ":").split(": ")
    cells = name, fd.removeprefix("VGG-FD "), kid.removeprefix("VGG-KID "), f"**{reading}**"
    assert f"| {' | '.join(cells)} |" in page, line
