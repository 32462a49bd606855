"""`evaluate` and the evaluators inside training: the same numbers, whatever draws them."""

import dataclasses
import functools
import json
import shutil

import numpy as np
import pytest
import test_end_to_end as e2e
from PIL import Image

from dit_jax import evaluate, sample, train
from dit_jax.core import cli, writer
from dit_jax.core import config as configs
from dit_jax.core.errors import UserError
from dit_jax.evals import features, generation, reconstruction, reference
from dit_jax.sampling import generate
from dit_jax.tasks import timed

STAGES, CLASSES, NUM = e2e.STAGES, 3, 10
compile_once, one_device, interrupt = e2e.compile_once, e2e.one_device, e2e.interrupt


def recipe(images):
  """Half of the images held out; both evaluators at every second step."""
  c = e2e.recipe(images)
  c.data.holdout, c.dgt.optim.schedule = 2, "constant"
  c.dvae.total_steps = c.dgt.total_steps = 2
  c.evals.reconstruction.update(every=2, num=NUM)
  c.evals.fidelity.update(every=2, num=NUM)
  return c


@pytest.fixture(autouse=True, scope="module")
def small_programs():
  """AlexNet looks, in one program of few rows; equal models and settings share theirs."""
  extractor, generator = features.Extractor, generate.Generator
  looks, draws = functools.cache(lambda: extractor("alexnet", batch=12)), {}

  def shared(models, settings):
    key = settings, *(np.asarray(x).tobytes() for x in (models.mean, models.std))
    return draws.setdefault(key, generator(models, settings))

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(features, "Extractor", lambda trunk: looks())
    patch.setattr(generate, "Generator", shared)
    patch.setattr(reconstruction, "TRUNK", "alexnet")
    yield


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  return e2e.make_images(tmp_path_factory.mktemp("data") / "images", per_class=8)


@pytest.fixture(scope="module")
def workdir(images, tmp_path_factory, compile_once):
  folder = tmp_path_factory.mktemp("evaluated") / "run"
  with pytest.MonkeyPatch.context() as patch:
    e2e.machine_of(1, patch)
    train.train_and_evaluate(recipe(images), folder)
  return folder


@pytest.fixture
def copy(workdir, tmp_path):
  return shutil.copytree(workdir, tmp_path / "copy")


@pytest.fixture
def score(copy, capsys):
  """Runs `evaluate` on a copy of the run; the card on stdout."""

  def run(*words):
    cli.run(evaluate.main, evaluate.FLAGS, ["evaluate", f"--workdir={copy}", "--json", *words])
    return json.loads(capsys.readouterr().out)

  return run


def measured(workdir, stage):
  """{step: {name: value}} of the evaluators' lines."""
  lines = writer.read(workdir / stage / "metrics.jsonl")
  found = {line["step"]: line for line in lines if any(name.startswith("eval/") for name in line)}
  return {
    step: {name.removeprefix("eval/"): x for name, x in line.items() if name != "step"}
    for step, line in found.items()
  }


def answers(workdir):
  """Names of the files of every evaluation, by folder."""
  folders = sorted((workdir / "evaluations").iterdir())
  return {folder.name: sorted(path.name for path in folder.iterdir()) for folder in folders}


def test_training_leaves_cards_pictures_and_curves(workdir):
  drawn = ["01_samples.png", "02_fine_regions.png", "03_real.png", "card.json"]
  assert answers(workdir) == {
    "dct_step_00000002_fidelity": drawn,
    "dct_step_00000004_fidelity": drawn,
    "dvae_step_00000002_reconstruction": ["01_real_fine_regions_reconstruction.png", "card.json"],
  }
  curves = {stage: measured(workdir, stage) for stage in STAGES}
  assert {stage: list(steps) for stage, steps in curves.items()} == {
    "dvae": [2],
    "dgt": [],
    "dct": [2, 4],
  }
  assert curves["dct"][2]["AlexNet-FD"] != curves["dct"][4]["AlexNet-FD"]
  assert set(curves["dvae"][2]) >= {"PSNR", "SSIM", "LPIPS", "AlexNet-FD"}
  card = json.loads((workdir / "evaluations/dct_step_00000004_fidelity/card.json").read_text())
  assert card["metrics"] == curves["dct"][4]
  assert (card["evaluator"], card["stage"], card["step"]) == ("fidelity", "dct", 4)
  assert (card["n"], card["reference_n"], card["image_size"], card["seed"]) == (NUM, 12, 32, 0)
  assert (card["labels"], card["classes"], card["per_class"]) == ("reference", CLASSES, [3, 4])
  assert card["sampling"]["steps"] == card["sampling"]["nfe"] == 2
  assert card["checkpoint"]["ema_decay"] == 0.9
  assert set(card["versions"]) == {"dit_jax", "jax"}
  assert sum(card["grains"]["shares"]) == pytest.approx(1)


def test_the_command_repeats_what_training_measured(score, copy, workdir):
  """Of both checkpoints, into the very folders."""
  for step in (2, 4):
    got = score(f"--step={step}", f"--num={NUM}", "--labels=reference")
    folder = workdir / "evaluations" / f"dct_step_{step:08d}_fidelity"
    assert got == json.loads((folder / "card.json").read_text())
  got = score("--stage=dvae", f"--num={NUM}")
  assert got["metrics"] == measured(workdir, "dvae")[2]
  assert answers(copy) == answers(workdir)
  for path in (copy / "evaluations").rglob("*.png"):
    assert path.read_bytes() == (workdir / path.relative_to(copy)).read_bytes()


def test_pictures_are_those_of_sample_whatever_is_in_flight(score, copy, tmp_path):
  npz = [tmp_path / name for name in ("0.npz", "1", "2.files")]  # the very names
  cards = [
    score(f"--npz={npz[0]}", "--num=7", "--labels=balanced", "--batch=1"),
    score(f"--npz={npz[1]}", "--num=7", "--labels=balanced", "--batch=6"),
  ]
  assert cards[0] == cards[1]
  words = [f"--workdir={copy}", f"--out={tmp_path / 'a.png'}", f"--npz={npz[2]}", "--num=3"]
  cli.run(sample.main, sample.FLAGS, ["sample", *words])
  first, second, drawn = (dict(np.load(path)) for path in npz)
  assert str(first["card"]) == str(second["card"])
  assert json.loads(str(first["card"])) == cards[0]
  for name in ("arr_0", "label", "index", "grains"):
    np.testing.assert_array_equal(first[name], second[name])
  assert first["label"].tolist() == [0, 1, 2, 0, 1, 2, 0]
  of = {index: i for i, index in enumerate(drawn["index"].tolist())}
  same = [of[index] for index in first["index"].tolist()]
  np.testing.assert_array_equal(first["arr_0"], drawn["arr_0"][same])

  got = score(f"--samples={npz[0]}")
  assert got["metrics"] == cards[0]["metrics"]
  assert got["samples"]["card"] == cards[0]
  assert (got["stage"], got["step"]) == ("samples", 0)


def test_pieces_change_nothing(score, workdir, monkeypatch):
  monkeypatch.setattr(generation, "CHUNK", 4)
  got = score(f"--num={NUM}", "--labels=reference")["metrics"]
  for name, value in measured(workdir, "dct")[4].items():
    assert got[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name


def test_other_conditions_have_a_folder_of_their_own(score, copy, images):
  before = set(answers(copy))
  first = score("--labels=random", "--seed=3")
  assert (first["n"], first["seed"], first["labels"]) == (12, 3, "random")
  assert set(answers(copy)) == before | {"dct_step_00000004_fidelity_2"}
  other = score("--num=6", f"--reference={images}")
  assert (other["n"], other["reference_n"], other["labels"]) == (6, 24, "balanced")
  assert other["reference"] == str(images)


def test_a_reference_may_be_an_npz_of_larger_images(score, images, tmp_path):
  """Of pictures that cropping gives back exactly: twice as large, every pixel four times."""
  found = sorted(images.rglob("*.png"))[:6]
  small = np.stack([np.asarray(Image.open(path)) for path in found])
  large = small.repeat(2, 1).repeat(2, 2)
  np.savez(tmp_path / "small.npz", arr_0=small)
  np.savez(tmp_path / "large.npz", arr_0=large)
  words = [f"--reference={tmp_path / f'{name}.npz'}" for name in ("small", "large")]
  cards = [score(f"--samples={tmp_path / 'small.npz'}", word) for word in words]
  assert cards[0]["metrics"] == cards[1]["metrics"]
  assert cards[0]["metrics"]["AlexNet-FD"] == pytest.approx(0, abs=1e-3)
  assert cards[0]["reference_fingerprint"] != cards[1]["reference_fingerprint"]


def test_a_reference_may_be_statistics_from_a_file(score, images, tmp_path):
  pictures = np.stack([np.asarray(Image.open(path)) for path in sorted(images.rglob("*.png"))])
  np.savez(tmp_path / "all.npz", arr_0=pictures)
  made = reference.Reference.of_parts([features.Extractor("vgg16")(pictures)], "all of them")
  dataclasses.replace(made, features=None).save(tmp_path / "kept.npz")
  names = ("all", "kept")
  cards = [
    score(f"--samples={tmp_path / 'all.npz'}", f"--reference={tmp_path / n}.npz") for n in names
  ]
  whole, alone = (card["metrics"] for card in cards)
  assert whole["AlexNet-FD"] == pytest.approx(alone["AlexNet-FD"], abs=1e-6)
  assert "AlexNet-KID" in whole
  assert "AlexNet-KID" not in alone
  assert "AlexNet-KID" in cards[1]["left_out"]


def test_the_card_as_text(copy, capsys):
  words = [f"--workdir={copy}", f"--num={NUM}", "--labels=reference"]
  cli.run(evaluate.main, evaluate.FLAGS, ["evaluate", *words])
  out, err = capsys.readouterr()
  folder = copy / "evaluations" / "dct_step_00000004_fidelity"
  card = json.loads((folder / "card.json").read_text())
  first, *lines = out.splitlines()
  assert first == "fidelity of dct, step 4"
  told = dict(line.split(maxsplit=1) for line in lines if not line.startswith("AlexNet-KID "))
  assert float(told["AlexNet-FD"]) == pytest.approx(card["metrics"]["AlexNet-FD"], rel=1e-5)
  assert told["reference"] == card["reference"]
  assert "steps 2, stepper ddim, " in told["sampling"]
  assert f"card and pictures: {folder}" in err


@pytest.mark.parametrize(
  ("words", "told"),
  [
    (["--workdir=nowhere"], "--workdir=nowhere has no config.json"),
    (["--step=3"], "no checkpoint of step 3"),
    (["--stage=dgt"], "--stage=dgt draws no pictures; choose dct or dvae"),
    (["--num=3"], "scoring needs 4 images or more a side, not 3 and 12; take more"),
    (["--labels=even"], "labels='even' is unknown; choose one of reference, balanced, random"),
    (["--steps=0"], "steps=0 must be at least 1"),
    (["--sampler=best"], "stepper='best' is unknown"),
    (["--guidance_interval=a,b"], "--guidance_interval=a,b must be LOW,HIGH"),
    (["--inception=none.npz"], "the Inception weights 'none.npz' are no file"),
    (["--reference=none"], "--reference=none is no image set"),
    (["--reference=none.npz"], "--reference: none.npz does not exist"),
    (["--reference={tmp}/bare.npz"], "bare.npz is damaged or no npz file"),
    (["--reference={tmp}/objects.npz"], "arr_0 of {tmp}/objects.npz holds Python objects"),
    (["--reference={tmp}/text.npz"], "text.npz is damaged or no npz file"),
    (["--reference={tmp}/keys.npz"], "has no arr_0 but images; give an npz file that has it"),
    (["--reference={tmp}/floats.npz"], "arr_0 is float32 [4, 32, 32, 3]; expected images, uint8"),
    (["--reference={tmp}/small.npz"], "has images of 16 px and the run is of 32 px"),
    (["--reference={tmp}/good.npz", "--labels=reference"], "good.npz says none; choose labels"),
    (["--samples={tmp}/large.npz"], "has images of 64 px and the run is of 32 px"),
    (["--samples={tmp}/good.npz", "--num=4"], "--samples draws no pictures; leave out --num"),
    (["--stage=dvae", "--sampler=ddim"], "--stage=dvae draws no pictures; leave out --sampler"),
    (["--npz={tmp}"], "cannot be written; name a file"),
  ],
  ids=str,
)
def test_what_cannot_be_scored_is_one_line(workdir, tmp_path, capsys, words, told):
  images = lambda size: np.zeros((4, size, size, 3), np.uint8)
  np.save(tmp_path / "bare.npy", images(32))
  (tmp_path / "bare.npy").rename(tmp_path / "bare.npz")
  np.savez(tmp_path / "objects.npz", arr_0=np.array([{}, None]))
  (tmp_path / "text.npz").write_text("no archive")
  np.savez(tmp_path / "keys.npz", images=images(32))
  np.savez(tmp_path / "floats.npz", arr_0=images(32).astype(np.float32))
  for name, size in (("small", 16), ("good", 32), ("large", 64)):
    np.savez(tmp_path / f"{name}.npz", arr_0=images(size))
  before = answers(workdir)
  words = [f"--workdir={workdir}", *(word.format(tmp=tmp_path) for word in words)]
  with pytest.raises(SystemExit) as stop:
    cli.run(evaluate.main, evaluate.FLAGS, ["evaluate", *words])
  err = capsys.readouterr().err
  assert (stop.value.code, err.count("\n"), answers(workdir)) == (2, 1, before)
  assert told.format(tmp=tmp_path) in err


@pytest.mark.parametrize(
  ("fields", "told"),
  [
    ({"data.holdout": 0}, "cannot be had: the split 'heldout' is empty with data.holdout=0"),
    ({"data.holdout": 8}, "scoring needs 4 images or more a side, not 10 and 3"),
    ({"evals.fidelity.num": 3}, "scoring needs 4 images or more a side, not 3 and 12"),
    ({"evals.fidelity.every": -1}, "evals.fidelity.every=-1 must be a number of steps"),
    ({"evals.fidelity.labels": "all"}, "labels='all' is unknown"),
    ({"evals.fidelity.inception": "none"}, "the Inception weights 'none' are no file"),
    ({"stages": ("dgt", "dct")}, "evals.reconstruction.every=2 evaluates a stage that this recipe"),
  ],
  ids=str,
)
def test_what_training_could_not_evaluate_is_refused_at_its_start(images, tmp_path, fields, told):
  config = recipe(images)
  config.update_from_flattened_dict(fields)
  with pytest.raises(UserError) as e:
    timed.check(config, config.stages, tmp_path)
  assert told in str(e.value)


def test_maps_that_nobody_can_draw_are_refused_at_the_start(images, workdir, tmp_path):
  shutil.copytree(workdir / "dvae", tmp_path / "run" / "dvae")
  shutil.copy(workdir / "config.json", tmp_path / "run")
  before = e2e.snapshot(tmp_path)
  with pytest.raises(UserError, match="draws grain maps by the stage dgt, which is not trained"):
    train.train_and_evaluate(recipe(images), tmp_path / "run", "dct")
  assert e2e.snapshot(tmp_path) == before


@pytest.mark.all
def test_stopped_and_resumed_measures_the_same(workdir, images, tmp_path, interrupt):
  """Stopped by a signal at a step that evaluates, which waits for no evaluation, and by a crash."""
  again = tmp_path / "run"
  shutil.copytree(workdir, again, ignore=shutil.ignore_patterns("dct", "evaluations", "compiled"))
  for step, action in ((2, e2e.terminate), (3, e2e.crash)):
    interrupt("dct", step, action)
    with pytest.raises((SystemExit, e2e.Pulled)):
      train.train_and_evaluate(recipe(images), again)
  interrupt("none", 0, e2e.crash)
  train.train_and_evaluate(recipe(images), again)
  e2e.assert_bit_equal(e2e.last(again, "dct"), e2e.last(workdir, "dct"))
  lines = [writer.read(folder / "dct" / "metrics.jsonl") for folder in (again, workdir)]
  evaluated = [line for line in lines[1] if any(name.startswith("eval/") for name in line)]
  assert [line["step"] for line in evaluated] == [2, 4]
  assert lines[0] == [line for line in lines[1] if line is not evaluated[0]]


@pytest.mark.all
def test_images_that_vanish_cost_numbers_and_not_the_run(
  copy, images, tmp_path, monkeypatch, capfd
):
  """A resume may also ask for other evaluations."""
  config = recipe(shutil.copytree(images, tmp_path / "moved"))
  config.evals.fidelity.update(every=1, num=4)
  config.dct.total_steps = 5
  attached = timed.attached

  def unplugged(*args):
    task = attached(*args)
    shutil.rmtree(config.data.path)
    return task

  monkeypatch.setattr(timed, "attached", unplugged)
  train.train_and_evaluate(config, copy, "dct")
  told = "".join(capfd.readouterr())
  assert "warning: evals.fidelity at step 5 was not made (none of the 12 images" in told
  assert e2e.last(copy, "dct")[0] == 5
  assert [line["step"] for line in writer.read(copy / "dct" / "metrics.jsonl")][-1] == 5
  assert configs.resume_differences(recipe(images), config) == []
