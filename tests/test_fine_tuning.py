"""A run that trains a part of an earlier one: what it takes over, leaves, resumes and refuses."""

import pathlib
import shutil

import jax
import numpy as np
import pytest
import test_end_to_end as e2e
from test_end_to_end import compile_once, interrupt, one_device  # noqa: F401

from dit_jax import train
from dit_jax.core import tree as trees
from dit_jax.core.errors import UserError
from dit_jax.sampling import generate
from dit_jax.tasks import base, restored
from dit_jax.training import frozen, peft
from dit_jax.training.checkpoint import Checkpoints

TUNED = ("dgt", "dct")


def plain(images):
  config = e2e.recipe(images)
  config.dgt.optim.schedule = "constant"  # so that its steps may change
  return config


def recipe(images, source):
  config = plain(images)
  config.init_from, config.peft = str(source), "finediffusion"
  for stage in TUNED:
    config[stage].every.preview = e2e.STEPS
  return config


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  return e2e.make_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def others(images, tmp_path_factory):
  """Another set, with one class more."""
  root = e2e.make_images(tmp_path_factory.mktemp("others") / "images", seed=1)
  shutil.copytree(root / e2e.CLASSES[0], root / "fish" / "ray")
  return root


@pytest.fixture(scope="module")
def source(images, tmp_path_factory, compile_once, one_device):  # noqa: F811
  """The pretrained run."""
  workdir, config = tmp_path_factory.mktemp("source") / "run", plain(images)
  for stage in e2e.STAGES:
    config[stage].total_steps = 2 if stage in TUNED else e2e.STEPS
  train.train_and_evaluate(config, workdir)
  return workdir


@pytest.fixture(scope="module")
def straight(others, source, tmp_path_factory):
  """Its fine-tune; the tests read it."""
  workdir = tmp_path_factory.mktemp("tuned") / "run"
  train.train_and_evaluate(recipe(others, source), workdir)
  return workdir


def ema_of(workdir, stage):
  return {n: np.asarray(x) for n, x in trees.flatten(whole(workdir, stage)).items()}


def whole(workdir, stage):
  return Checkpoints(workdir / stage).restore_ema()[0]


@pytest.mark.parametrize("stage", TUNED)
def test_a_fine_tune_keeps_the_base_and_moves_the_rest(source, straight, stage):
  old, new = ema_of(source, stage), ema_of(straight, stage)
  trained = trees.flatten(peft.Peft("finediffusion").split(new)[0])
  added = {n for n in new if n not in old}
  assert added == {n for n in trained if "norm" in n and "q_norm" not in n and "k_norm" not in n}
  for name, x in new.items():
    if name not in trained:
      assert x.tobytes() == old[name].tobytes()
    elif name.endswith("label/table/embedding"):
      assert len(x) == len(old[name]) + 1
    else:
      assert name in added or (x != old[name]).any(), name


@pytest.mark.parametrize("stage", TUNED)
def test_a_checkpoint_is_small_and_names_its_base(source, straight, stage):
  step, _, arrays = e2e.last(straight, stage)
  assert step == e2e.STEPS
  new = ema_of(straight, stage)
  trained = trees.flatten(peft.Peft("finediffusion").split(new)[0])
  assert {n for n in arrays if n.startswith("ema/")} == {f"ema/{n}" for n in trained}
  assert sum(n.startswith("state/params/") for n in arrays) == len(trained)
  (folder,) = (straight / stage / "frozen").iterdir()
  meta = Checkpoints(straight / stage).read_meta()
  assert meta["frozen"] == folder.name
  assert meta["base"] == {
    "path": str(source / stage),
    "hash": base.read(source / stage)[1],
  }
  kept = frozen.read(Checkpoints(straight / stage).directory / "frozen", folder.name)[peft.BASE]
  assert trees.count(kept) + sum(x.size for x in trained.values()) == sum(
    x.size for x in new.values()
  )


def test_what_was_loaded_is_told_once(others, source, tmp_path, capsys):
  config = recipe(others, source)
  train.train_and_evaluate(config, tmp_path / "run", "dvae")
  told = capsys.readouterr().out
  assert f"[dvae] taken over from {source / 'dvae' / '4'}" in told
  assert "[dvae] finished before: 4 steps" in told
  train.train_and_evaluate(config, tmp_path / "run", "dgt")
  told = capsys.readouterr().out
  lines = [text for text in told.splitlines() if text.startswith("[dgt] init_from ")]
  assert [text.partition("): ")[2].split()[0] for text in lines] == [
    "loaded",
    "re-initialised",
    "skipped",
  ]
  assert "params/label/table/embedding [5, 16]" in lines[1]
  assert "params/label/table/embedding [4, 16]" in lines[2]
  assert "parameters over a frozen base of " in told
  train.train_and_evaluate(config, tmp_path / "run", "dgt")
  assert "init_from" not in capsys.readouterr().out


def test_interrupted_and_resumed_equals_straight_bit_for_bit(
  others,
  source,
  straight,
  tmp_path,
  interrupt,  # noqa: F811
):
  """Stopped and crashed; at the end without its base, whose part lies beside the checkpoints."""
  moved = shutil.copytree(source, tmp_path / "source")
  config, workdir = recipe(others, moved), tmp_path / "run"
  for stage, step, action, saved in (
    ("dgt", 1, e2e.terminate, 1),
    ("dct", 1, e2e.terminate, 1),
    ("dct", 3, e2e.crash, 2),
  ):
    interrupt(stage, step, action)
    with pytest.raises(e2e.Pulled if action is e2e.crash else SystemExit):
      train.train_and_evaluate(config, workdir)
    assert Checkpoints(workdir / stage).latest() == saved
  shutil.rmtree(moved)
  interrupt("none", 0, e2e.crash)
  train.train_and_evaluate(config, workdir)
  for stage in TUNED:
    e2e.assert_bit_equal(e2e.last(workdir, stage), e2e.last(straight, stage))
    found, want = ((w / stage / "frozen").iterdir() for w in (workdir, straight))
    assert [path.name for path in found] == [path.name for path in want]
    picture = pathlib.Path(stage) / "previews" / "step_00000004.png"
    assert (workdir / picture).read_bytes() == (straight / picture).read_bytes()


def test_sampling_sees_the_merged_weights(straight):
  run = restored.load(straight)
  for name, stage in (("content", "dct"), ("dgt", "dgt")):
    np.testing.assert_equal(
      jax.device_get(run.params[name]), jax.device_get(whole(straight, stage))
    )
  assert run.num_classes == 4
  label = np.array([0, 3])
  generator = generate.Generator(run.models, run.settings())
  maps = generator.grain_maps(run.params, label, label, 0)
  pictures = generator.images(run.params, label, label, maps, 0)
  assert pictures.shape == (2, e2e.SIZE, e2e.SIZE, 3)
  damaged = jax.tree.map(lambda x: x * 0, run.params["content"])
  again = generator.images(run.params | {"content": damaged}, label, label, maps, 0)
  assert (again != pictures).any()


def test_tiers_and_hrig_join_a_fine_tune(others, source, tmp_path):
  """The whole of `efdit`, from a base that has neither; a superclass is drawn by its name."""
  config = recipe(others, source)
  config.peft, config.data.holdout, config.dct.hrig.enabled = "efdit", 2, True
  for stage in TUNED:
    config[stage].labels.fusion = "sum"
  train.train_and_evaluate(config, tmp_path / "run")
  old, new = ema_of(source, "dct"), ema_of(tmp_path / "run", "dct")
  trained = trees.flatten(peft.Peft("efdit").split(new)[0])
  assert {n for n in trained if n.startswith("hrig/")}
  assert {n for n in new if "label/" in n} == {
    f"params/label/level_{level}/embedding" for level in (0, 1)
  }
  for name in set(new) - set(trained):
    assert new[name].tobytes() == old[name].tobytes()
  run = restored.load(tmp_path / "run")
  chosen = run.meta["hrig"]
  assert chosen["error"] <= chosen["error_plain"]
  (fish,) = run.classes.resolve("fish", superclasses=True)
  assert fish >= run.num_classes
  label = np.array([fish], np.int32)
  generator = generate.Generator(run.models, run.settings())
  maps = generator.grain_maps(run.params, label, label * 0, 0)
  assert generator.images(run.params, label, label * 0, maps, 0).std() > 0


def test_a_resume_needs_its_base_neither_as_it_was_nor_at_all(others, source, straight, tmp_path):
  """What it gave is in the checkpoint and beside it. Another base is another run."""
  moved, workdir = tmp_path / "source", tmp_path / "run"
  shutil.copytree(source, moved)
  config = recipe(others, moved)
  config.dct.total_steps = 2
  train.train_and_evaluate(config, workdir)
  shutil.rmtree(moved / "dct")
  shutil.copytree(straight / "dct", moved / "dct")
  config.dct.total_steps = 4
  train.train_and_evaluate(config, workdir)
  want = trees.flatten(peft.Peft("finediffusion").split(whole(source, "dct"))[1])
  got = ema_of(workdir, "dct")
  assert all(np.array_equal(got[name], x) for name, x in want.items())
  config.init_from = str(source)
  with pytest.raises(UserError, match=r"init_from: .* -> "):
    train.train_and_evaluate(config, workdir)


@pytest.mark.parametrize(
  ("change", "told"),
  [
    (lambda c: c.update(peft="lora"), "peft='lora' is unknown"),
    (lambda c: c.update(frozen_dtype="int8"), "frozen_dtype='int8' is unknown"),
    (lambda c: c.update(init_from=""), "pretrained base; name it by init_from"),
    (lambda c: c.update(init_from="nowhere"), "init_from=nowhere does not exist"),
    (lambda c: c.update(init_from=f"{c.init_from}/dct"), "is of one stage, and this recipe trains"),
    (lambda c: c.dct.model.update(width=32), r"dct\.model\.width: 16 -> 32; set the stored"),
    (lambda c: c.dct.model.update(num_heads=4), r"dct\.model\.num_heads: 2 -> 4; set the stored"),
    (lambda c: c.dgt.model.update(depth=2), r"stored -> wanted: dgt\.model\.depth: 1 -> 2; set"),
    (lambda c: c.dvae.model.update(width=16), r"the DVAE of init_from=.*width: 8 -> 16"),
    (lambda c: c.dvae.update(total_steps=9), "set dvae.total_steps=4, which now is 9"),
  ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
  others, source, tmp_path, change, told
):
  config = recipe(others, source)
  change(config)
  with pytest.raises(UserError, match=told) as e:
    train.train_and_evaluate(config, tmp_path / "run")
  assert "\n" not in str(e.value)
  assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_of_the_base_is_refused(others, source, tmp_path):
  moved = shutil.copytree(source, tmp_path / "source")
  for path in (moved / "dct" / "2" / "ema").rglob("d/*"):
    path.write_bytes(path.read_bytes()[:-3])
  with pytest.raises(UserError, match="damaged"):
    train.train_and_evaluate(recipe(others, moved), tmp_path / "run")
  assert not (tmp_path / "run").exists()
