"""Whole runs on a dozen images: every stage, interrupted, resumed, on a mesh, with three grains.

All runs share a compilation cache: a program that was compiled once is loaded afterwards.
"""

import json
import os
import pathlib
import shutil
import signal

import chex
import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from dit_jax import train
from dit_jax.core import clock, writer
from dit_jax.core import config as configs
from dit_jax.core import tree as trees
from dit_jax.core.errors import UserError
from dit_jax.data import latents
from dit_jax.sampling import grids
from dit_jax.tasks import latent_stage
from dit_jax.training import sharding, stored
from dit_jax.training.checkpoint import ITEMS, Checkpoints

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"
STAGES, SIZE, STEPS = ("dvae", "dgt", "dct"), 32, 4
CLASSES = ("bird/owl", "bird/tit", "fish/eel")
DEVICES = {name: getattr(jax, name) for name in ("devices", "local_devices")}
PROGRESS = clock.Progress


def make_images(root, per_class=4, seed=0):
  """Flat pictures with one noisy quarter."""
  draw = np.random.default_rng(seed)
  for name in CLASSES:
    (root / name).mkdir(parents=True)
    for i in range(per_class):
      image = np.full((SIZE, SIZE, 3), draw.integers(40, 220, 3), np.uint8)
      top, left = draw.integers(0, SIZE // 2, 2)
      image[top : top + 16, left : left + 16] = draw.integers(0, 256, (16, 16, 3))
      Image.fromarray(image).save(root / name / f"{i}.png")
  return root


def shrink(c, images, steps=STEPS):
  """A recipe as small as its stages allow; saves every second step."""
  c.data.update(path=str(images), image_size=SIZE, only=(), holdout=0, workers=0)
  c.latents.update(batch_size=4)
  c.sampling.update(steps=2, microbatch=2)
  levels = dict(stem=4, encoder_mults=(1, 1, 1, 1), decoder_mults=(1, 1, 1))
  c.dvae.model.update(factors=(4, 8), z_channels=4, width=8, res_blocks=1, **levels)
  c.dvae.model.update(decoder_res_blocks=1, attention=False)
  c.dvae.loss.update(lpips=0.0, trunk="none", disc_weight=0.0)
  for name in c.stages:
    every = dict(log=1, save=2, preview=0)
    c[name].update(batch_size=8, total_steps=steps, ema_decay=0.9, every=every)
    c[name].optim.update(lr=1e-3, warmup_steps=2, schedule="constant")
    if name != "dvae":
      c[name].model.update(depth=1, width=16, num_heads=2)
  return c


def recipe(images):
  """Three stages; the grain transformer's rate falls to zero, the others' stays."""
  c = shrink(configs.load(CONFIGS / "demo.py", "tiny"), images)
  c.dct.model.refine_depth = 1
  c.dgt.optim.schedule = "cosine"
  return c


@pytest.fixture(autouse=True, scope="module")
def compile_once(tmp_path_factory):
  settings = {  # during, and after
    "jax_compilation_cache_dir": (
      str(tmp_path_factory.mktemp("compiled")),
      jax.config.jax_compilation_cache_dir,
    ),
    "jax_persistent_cache_min_compile_time_secs": (0.0, 1.0),
    "jax_persistent_cache_min_entry_size_bytes": (-1, 0),
  }
  for i in (0, 1):
    compilation_cache.reset_cache()
    for name, values in settings.items():
      jax.config.update(name, values[i])
    if i == 0:
      yield


def machine_of(count, patch):
  """Lets this process see so many devices."""
  for name, real in DEVICES.items():
    patch.setattr(jax, name, lambda *args, real=real, **kw: real(*args, **kw)[:count])


@pytest.fixture(autouse=True, scope="module")
def one_device():
  with pytest.MonkeyPatch.context() as patch:
    machine_of(1, patch)
    yield


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  return make_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def straight(images, tmp_path_factory, compile_once, one_device):
  """A finished run, with previews; tests that change it work on copies."""
  workdir, config = tmp_path_factory.mktemp("straight") / "run", recipe(images)
  for name in STAGES:
    config[name].every.preview = STEPS
  train.train_and_evaluate(config, workdir)
  return workdir


@pytest.fixture
def copy(straight, tmp_path):
  shutil.copytree(straight, tmp_path / "copy")
  return tmp_path / "copy"


def adopt(straight, workdir, config):
  """A new run with another config that starts from the trained DVAE and its cache."""
  workdir.mkdir()
  for name in ("dvae", "latents"):
    shutil.copytree(straight / name, workdir / name)
  (workdir / "config.json").write_text(configs.to_json(config))
  return workdir


def last(workdir, stage):
  """Step, data item and all arrays of a stage's newest checkpoint, read without our classes."""
  step = Checkpoints(workdir / stage).latest()
  path = Checkpoints(workdir / stage).directory / str(step)
  items = {name: stored.read(path / name, stored.shapes(path / name)) for name in ("state", "ema")}
  data = json.loads((path / "data" / "metadata").read_text())
  return step, data, {name: np.asarray(x) for name, x in trees.flatten(items).items()}


def assert_bit_equal(got, want):
  assert got[:2] == want[:2]
  assert list(got[2]) == list(want[2])
  for name, x in got[2].items():
    np.testing.assert_array_equal(x, want[2][name], err_msg=name)


def params_of(found):
  return {name: x for name, x in found[2].items() if name.startswith("state/params")}


def snapshot(workdir):
  """Bytes of every file, and when it was written."""
  return {
    str(path.relative_to(workdir)): (path.read_bytes(), path.stat().st_mtime_ns)
    for path in sorted(workdir.rglob("*"))
    if path.is_file()
  }


class Pulled(Exception):
  """The plug."""


@pytest.fixture
def interrupt(monkeypatch):
  """interrupt(stage, step, action): the action runs when that step has been dispatched."""

  def arrange(stage, step, action):
    class Progress(PROGRESS):
      def __init__(self, *args, label="", **kwargs):
        super().__init__(*args, label=label, **kwargs)
        self.stage = label

      def tick(self, now):
        super().tick(now)
        if (self.stage, now) == (stage, step):
          action()

    monkeypatch.setattr(clock, "Progress", Progress)

  return arrange


def terminate():
  os.kill(os.getpid(), signal.SIGTERM)


def crash():
  raise Pulled


def test_a_run_leaves_what_it_promises(straight, images):
  found = {path.name for path in straight.iterdir()}
  assert found == {"config.json", "entropies.npz", "latents", "report.html", *STAGES}
  page = (straight / "report.html").read_text()
  assert all(f"{name}</" in page for name in STAGES)
  assert "no JSON" not in page
  want = recipe(images)
  for name in STAGES:
    want[name].every.preview = STEPS
  assert configs.from_json((straight / "config.json").read_text()) == want
  for name in STAGES:
    checkpoints = Checkpoints(straight / name)
    assert checkpoints.steps() == [2, 4]
    for step in (2, 4):
      items = {path.name for path in (checkpoints.directory / str(step)).iterdir()}
      assert items >= {*ITEMS, "manifest.json"}
    lines = writer.read(straight / name / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(np.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in lines)
    with Image.open(straight / name / "previews" / "step_00000004.png") as picture:
      assert picture.width > 2 * SIZE
    meta = checkpoints.read_meta()
    assert meta["classes"]["children"] == ["owl", "tit", "eel"]
    assert configs.from_json(meta["config"]) == want
    assert len(meta["thresholds"]["taus"]) == 1
  assert np.shape(meta["latent_stats"]["std"]) == (2, 4)


def test_every_step_moves_every_stage(straight):
  """The comparisons below would hold for a run that does nothing."""
  for name in STAGES:
    path = Checkpoints(straight / name).directory
    early, late = (stored.read(p, stored.shapes(p)) for p in (path / "2/state", path / "4/state"))
    moved = [
      bool((np.asarray(a) != np.asarray(b)).any())
      for a, b in zip(*(jax.tree.leaves(tree["params"]) for tree in (early, late)), strict=True)
    ]
    assert np.mean(moved) > 0.8


def test_a_second_call_passes_over_finished_stages(straight, images, capfd):
  config = recipe(images)
  for name in STAGES:
    config[name].every.preview = STEPS
  before = snapshot(straight)
  train.train_and_evaluate(config, straight)
  after = snapshot(straight)
  assert after.pop("config.json")[0] == before.pop("config.json")[0]
  assert after == before
  printed = "".join(capfd.readouterr())
  assert [name for name in STAGES if f"[{name}] finished before" in printed] == list(STAGES)


def test_a_finished_stage_whose_last_checkpoint_is_damaged_is_finished_again(
  straight, copy, images
):
  config = recipe(images)
  for name in STAGES:
    config[name].every.preview = STEPS
  largest = max((copy / "dvae/4/state").rglob("d/*"), key=lambda path: path.stat().st_size)
  largest.write_bytes(bytes(largest.stat().st_size))
  with pytest.raises(UserError, match="dvae, which is not finished"):
    train.train_and_evaluate(config, copy, stage="dct")
  train.train_and_evaluate(config, copy)
  for stage in STAGES:
    assert_bit_equal(last(copy, stage), last(straight, stage))


def test_interrupted_and_resumed_equals_straight_bit_for_bit(
  straight, images, tmp_path, interrupt, monkeypatch
):
  """Signals off the rhythm of saves, crashes between two, a signal during the last preview."""
  workdir, config = tmp_path / "run", recipe(images)
  for name in STAGES:
    config[name].every.preview = STEPS
  save_png = grids.save_png

  def late(path, picture):
    save_png(path, picture)
    if path.parts[-3] == "dgt":
      terminate()

  monkeypatch.setattr(grids, "save_png", late)
  events = [
    ("dvae", 3, crash, 2),
    ("dgt", 1, terminate, 1),
    ("dgt", STEPS + 1, None, STEPS),
    ("dct", 1, terminate, 1),
    ("dct", 3, crash, 2),
  ]
  for stage, step, action, saved in events:
    interrupt(stage, step, action)
    with pytest.raises(Pulled if action is crash else SystemExit) as e:
      train.train_and_evaluate(config, workdir)
    assert action is crash or e.value.code == 128 + signal.SIGTERM
    assert Checkpoints(workdir / stage).latest() == saved
    following = STAGES[STAGES.index(stage) + 1 :]
    assert not [name for name in following if (workdir / name).exists()]
  interrupt("none", 0, crash)
  train.train_and_evaluate(config, workdir)
  for stage in STAGES:
    assert_bit_equal(last(workdir, stage), last(straight, stage))
    lines, want = (writer.read(w / stage / "metrics.jsonl") for w in (workdir, straight))
    assert lines == want
    pictures = [
      (w / stage / "previews/step_00000004.png").read_bytes() for w in (workdir, straight)
    ]
    assert pictures[0] == pictures[1]


def test_another_config_is_refused_by_field(straight, images):
  config = recipe(images)
  config.dct.optim.lr, config.dvae.flip, config.dgt.batch_size = 0.5, False, 4
  before = snapshot(straight)
  with pytest.raises(UserError) as e:
    train.train_and_evaluate(config, straight)
  for text in ("dct.optim.lr: 0.001 -> 0.5", "dvae.flip: True -> False", "dgt.batch_size: 8 -> 4"):
    assert text in str(e.value)
  assert "\n" not in str(e.value)
  assert snapshot(straight) == before


def test_what_may_change_does(copy, images):
  config = recipe(images)
  config.data.workers, config.dct.every.log, config.mesh.data = 2, 3, 1
  config.dct.model.remat = "full"
  before = {name: last(copy, name) for name in STAGES}
  train.train_and_evaluate(config, copy)
  for name in STAGES:
    assert_bit_equal(last(copy, name), before[name])


def test_more_steps_go_on_where_the_rate_does_not_depend_on_them(copy, images):
  config = recipe(images)
  lines = writer.read(copy / "dct" / "metrics.jsonl")
  config.dct.total_steps = 6
  train.train_and_evaluate(config, copy)
  step, data, _ = last(copy, "dct")
  assert (step, data["step"]) == (6, 6)
  longer = writer.read(copy / "dct" / "metrics.jsonl")
  assert longer[:4] == lines
  assert [line["step"] for line in longer[4:]] == [5, 6]
  config.dct.total_steps = 5  # fewer than are done: nothing to do
  train.train_and_evaluate(config, copy)
  assert last(copy, "dct")[0] == 6
  config.dgt.total_steps = 6
  with pytest.raises(UserError, match=r"dgt.total_steps: 4 -> 6"):
    train.train_and_evaluate(config, copy)


@pytest.mark.parametrize("case", ["cache", "stage", "thresholds", "dvae"])
def test_other_data_are_refused(copy, images, tmp_path, case):
  other = shutil.copytree(images, tmp_path / "images")
  Image.new("RGB", (SIZE, SIZE), "teal").save(other / CLASSES[1] / "new.png")
  config = recipe(other)
  config.dct.total_steps = 6
  message = "latent cache .* is stale .data: "
  if case == "stage":  # the cache was deleted, as the message says
    shutil.rmtree(copy / "latents")
    message = "stage dct was trained on other data .fingerprint: "
  elif case != "cache":
    config.dvae.total_steps = 6
    message = "thresholds .* were made for other data .fingerprint: .*images: 12 -> 13"
  if case == "dvae":
    (copy / "entropies.npz").unlink()
    message = "stage dvae was trained on other data .fingerprint: "
  with pytest.raises(UserError, match=message) as e:
    train.train_and_evaluate(config, copy)
  assert "\n" not in str(e.value)
  assert last(copy, "dct")[0] == last(copy, "dvae")[0] == 4


def test_the_same_data_elsewhere_are_the_same_data(copy, images, tmp_path):
  config = recipe(shutil.copytree(images, tmp_path / "moved"))
  config.dct.total_steps = 5
  train.train_and_evaluate(config, copy)
  assert last(copy, "dct")[0] == 5


def test_a_broken_image_is_skipped_counted_and_named(images, tmp_path, capfd):
  broken = shutil.copytree(images, tmp_path / "images")
  (broken / CLASSES[0] / "3b.png").write_bytes(b"\x89PNG of nothing")
  config = recipe(broken)
  train.train_and_evaluate(config, tmp_path / "run", "dvae")
  assert "[dvae] skipped 1 unreadable images: bird/owl/3b.png" in "".join(capfd.readouterr())
  assert all(np.isfinite(x).all() for x in last(tmp_path / "run", "dvae")[2].values())
  cache = latent_stage.ensure(config, tmp_path / "run", None)
  assert sorted(set(cache.indices.tolist())) == [0, 1, 2, 3, *range(5, 13)]


def test_accumulation_changes_no_update(straight, images, tmp_path):
  config = recipe(images)
  config.dct.accum = 4
  workdir = adopt(straight, tmp_path / "run", config)
  train.train_and_evaluate(config, workdir, "dct")
  got, want = (params_of(last(w, "dct")) for w in (workdir, straight))
  chex.assert_trees_all_close(got, want, rtol=0, atol=1e-5)


def test_a_mesh_of_eight_devices_trains_the_same_parameters(
  straight, images, tmp_path, monkeypatch
):
  """Split over data and fsdp, small leaves too; the previews show pictures of sharded weights."""
  machine_of(8, monkeypatch)
  monkeypatch.setattr(sharding, "BIG", 64)
  config = recipe(images)
  config.mesh = dict(data=4, fsdp=2, tensor=1)
  config.dct.every.preview = STEPS
  split = []
  real = sharding.infer
  monkeypatch.setattr(sharding, "infer", lambda *args: split.append(real(*args)) or split[-1])
  train.train_and_evaluate(config, tmp_path / "whole", "dvae")
  workdir = adopt(straight, tmp_path / "rest", config)
  train.train_and_evaluate(config, workdir, "dct")
  for name, where in (("dvae", tmp_path / "whole"), ("dct", workdir)):
    got, want = (params_of(last(w, name)) for w in (where, straight))
    chex.assert_trees_all_close(got, want, rtol=0, atol=1e-5)
  specs = [leaf.spec for leaf in jax.tree.leaves(split[-1])]
  assert sum("fsdp" in spec for spec in specs) > 10
  assert (workdir / "dct" / "previews" / "step_00000004.png").exists()


def test_three_grains(images, tmp_path):
  config = recipe(images)
  config.dvae.ratios = (0.3, 0.4, 0.3)
  mults = dict(stem=2, encoder_mults=(1, 1, 1, 1), decoder_mults=(1, 1))
  config.dvae.model.update(factors=(2, 4, 8), **mults)
  for name in STAGES:
    config[name].total_steps = 2
    config[name].optim.warmup_steps = 1
  train.train_and_evaluate(config, tmp_path / "run")
  cache = latents.LatentSource(tmp_path / "run" / "latents")
  assert set(np.unique(cache.grains)) == {0, 1, 2}
  assert cache.moments_shape == (16, 16, 8)
  for name in STAGES:
    step, _, arrays = last(tmp_path / "run", name)
    assert step == 2
    assert all(np.isfinite(x).all() for x in arrays.values())


def test_a_plain_transformer(images, tmp_path):
  config = shrink(configs.load(CONFIGS / "dit_xl.py", "tiny"), images, steps=2)
  config.dvae.model.update(factors=(4,), encoder_mults=(1, 1, 1))
  config.dit.every.preview = 2
  train.train_and_evaluate(config, tmp_path / "run")
  step, _, arrays = last(tmp_path / "run", "dit")
  assert step == 2
  assert all(np.isfinite(x).all() for x in arrays.values())
  cache = latents.LatentSource(tmp_path / "run" / "latents")
  assert not cache.grains.any()
  assert len(cache) == (24 if config.latents.flip else 12)
  assert (tmp_path / "run" / "dit" / "previews" / "step_00000002.png").exists()


def test_prob_sparse_attention_anneals_and_resumes_in_the_middle(
  straight, images, tmp_path, interrupt
):
  """Two steps with one query in eight at least, one with c's; stopped between the phases."""
  config = recipe(images)
  config.dct.model.attention.update(kind="pro", c=1, pro_min_tokens=1, anneal=0.5)
  workdirs = [tmp_path / name for name in ("whole", "parts")]
  for workdir in workdirs:
    adopt(straight, workdir, config)
  train.train_and_evaluate(config, workdirs[0], "dct")
  interrupt("dct", 2, terminate)
  with pytest.raises(SystemExit):
    train.train_and_evaluate(config, workdirs[1], "dct")
  interrupt("none", 0, crash)
  train.train_and_evaluate(config, workdirs[1], "dct")
  assert_bit_equal(last(workdirs[1], "dct"), last(workdirs[0], "dct"))
  dense = last(straight, "dct")[2]
  assert any((x != dense[name]).any() for name, x in last(workdirs[0], "dct")[2].items())


def test_a_run_killed_before_its_config_was_there_starts_anew(images, tmp_path):
  config = recipe(images)
  (tmp_path / "config.json.0123abcd.tmp").write_text("{half")
  train.claim(tmp_path, config)
  assert configs.from_json((tmp_path / "config.json").read_text()) == config
  assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_folder_of_other_files_is_no_workdir(images, tmp_path):
  (tmp_path / "thesis.tex").write_text("years of work")
  with pytest.raises(UserError, match=r"holds files but no config.json"):
    train.train_and_evaluate(recipe(images), tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
  with pytest.raises(UserError, match="cannot be used"):
    train.train_and_evaluate(recipe(images), tmp_path / "thesis.tex" / "run")


@pytest.mark.parametrize(
  ("stages", "stage", "message"),
  [
    (("dvae", "vae"), "", "config.stages has 'vae'; expected names of dvae, dgt, dct, dit"),
    (("dvae", "dit"), "", "config.stages has 'dit'.*each with its block"),
    (("dvae",), "dct", r"--stage=dct is not in config.stages=\('dvae',\)"),
  ],
)
def test_stages_that_are_none_are_refused(images, tmp_path, stages, stage, message):
  config = recipe(images)
  config.stages = stages
  with pytest.raises(UserError, match=message):
    train.train_and_evaluate(config, tmp_path / "run", stage)
  assert not (tmp_path / "run").exists()


def test_a_stage_without_the_one_it_builds_on_is_refused(images, tmp_path):
  with pytest.raises(UserError, match=r"stage dct builds on dvae, which is not finished"):
    train.train_and_evaluate(recipe(images), tmp_path / "run", "dct")
