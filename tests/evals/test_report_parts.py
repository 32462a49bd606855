"""Stages and evaluations as the files tell them."""

import json

import pytest
import small_run

from dit_jax.core import config as configs
from dit_jax.evals import report_parts
from dit_jax.evals.run_files import Files

CONFIG = configs.from_json(json.dumps(small_run.CONFIG)).to_dict()


@pytest.fixture
def files(tmp_path):
  return Files(small_run.write(tmp_path / "run"))


def test_a_stage_is_its_curves_sizes_and_previews(files):
  got = report_parts.stage(files, CONFIG, "dct")
  assert (got.name, got.title, got.step, got.total) == ("dct", "content transformer", 30, 100)
  assert dict(got.facts) == {
    "batch": "16", "images seen": "480", "parameters": "54,596", "EMA": "0.995",
    "checkpoints": "30",
  }  # fmt: skip
  assert [(c.name, c.last) for c in got.curves] == [("loss", "1.067"), ("grad_norm", "0.06667")]
  assert [c.note for c in got.curves] == ["", "log scale"]
  assert got.constant == [("skipped", "0")]
  assert [p.title for p in got.previews] == ["newest, step 30", "first, step 10"]
  assert got.previews[0].uri != got.previews[1].uri
  assert dict(report_parts.stage(files, CONFIG, "dvae").facts)["optimizer"] == "adam, 0.002"
  assert files.notes == []


def test_a_stage_that_has_not_begun_is_not_at_fault(files):
  got = report_parts.stage(files, CONFIG | {"dgt": {"total_steps": 9}}, "dgt")
  assert (got.step, got.total, got.curves, got.previews, files.notes) == (0, 9, [], [], [])


def test_stages_come_in_the_configs_order_and_others_after(files):
  for name in ("superres", "notes"):
    (files.root / name).mkdir()
  (files.root / "superres" / "metrics.jsonl").touch()
  assert report_parts.stage_names(files, CONFIG) == ["dvae", "dct", "superres"]
  assert report_parts.stage_names(files, {}) == ["dct", "dvae", "superres"]
  for wrong in (5, "dvae", {"a": 1}, ["../..", "dct"]):
    found = report_parts.stage_names(files, {"stages": wrong})
    assert sorted(found) == ["dct", "dvae", "superres"]


def test_a_curve_goes_through_a_resume(files):
  """The writer drops what a killed run wrote past its checkpoint; a page made before shows both."""
  path = files.root / "dct" / "metrics.jsonl"
  with path.open("a") as file:
    file.write('{"step": 25, "loss": 9.0}\n{"step": 40, "loss": 0.5}\n{"step": 45, "lo')
  got = report_parts.stage(files, CONFIG, "dct")
  assert (got.step, got.curves[0].last) == (40, "0.5")
  assert files.notes == ["dct/metrics.jsonl: 1 torn line left out"]


def test_evaluations_are_grouped_by_stage_and_evaluator(files):
  fidelity, reconstruction = report_parts.evaluations(files)
  assert (fidelity.stage, fidelity.evaluator) == ("dct", "fidelity")
  assert fidelity.names == ["VGG-FD", "VGG-KID"]
  assert [row.step for row in fidelity.rows] == [20, 30]
  assert [c.name for c in fidelity.curves] == ["VGG-FD"]  # the other is finite once
  row = fidelity.rows[0]
  assert row.metrics == {"VGG-FD": 60.5, "VGG-KID": None}
  assert dict(row.facts) == {
    "n": "8", "sampling.stepper": "ddim", "sampling.labels": "balanced",
  }  # fmt: skip
  assert [p.title for p in fidelity.rows[1].pictures] == ["samples", "fine regions"]
  assert row.pictures == []  # a page of a hundred evaluations has those of the newest
  assert fidelity.told == "n 8, sampler ddim"
  assert (reconstruction.stage, reconstruction.curves) == ("dvae", [])
  assert files.notes == []


def test_what_was_measured_otherwise_stands_apart(files):
  """A distance of 8 pictures is not on one curve with one of 4."""
  again = files.root / "evaluations" / "dct_step_00000030_fidelity_2"
  again.mkdir()
  card = json.loads((again.parent / again.name.removesuffix("_2") / "card.json").read_text())
  for n, rows in ((4, [1, 2]), (8, [3])):
    (again / "card.json").write_text(json.dumps(card | {"n": n}))
    found = [group for group in report_parts.evaluations(files) if group.stage == "dct"]
    assert [len(group.rows) for group in found] == rows


@pytest.mark.parametrize(
  "card", [{}, {"metrics": [1]}, {"step": "x", "stage": ["a"], "metrics": 1}]
)
def test_a_card_that_says_nothing_still_shows_its_pictures(files, card):
  folder = files.root / "evaluations" / "dct_step_00000030_fidelity"
  (folder / "card.json").write_text(json.dumps(card))
  rows = [row for group in report_parts.evaluations(files) for row in group.rows]
  [row] = [row for row in rows if row.folder == folder.name]
  assert (row.evaluator, row.step, row.metrics) == ("unknown evaluator", 0, {})
  assert len(row.pictures) == 2
