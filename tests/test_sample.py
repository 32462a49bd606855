"""`sample` draws from a workdir that `main` trained: names, numbers, grain maps, files."""

import json
import os
import pathlib
import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny_images
from PIL import Image

from dit_jax import sample
from dit_jax.core import cli, entropy
from dit_jax.core.errors import UserError
from dit_jax.sampling import generate, grain_source
from dit_jax.sampling.superres import Doubler
from dit_jax.tasks import restored, superres

ROOT = pathlib.Path(__file__).resolve().parents[1]
SIZE, STEPS = 32, 4  # pixels; updates of every stage
SMALL = (  # compiles quickly
  f"data.image_size={SIZE}",
  "dvae.model.factors=(4, 8)",
  "dvae.model.z_channels=4",
  "dvae.ratios=(0.5, 0.5)",
  "dvae.model.encoder_mults=(1, 1, 1, 1)",
  "dvae.model.decoder_mults=(1, 1, 1)",
  "dgt.model.depth=1",
  "dct.model.depth=1",
  "dct.optim.name=adam",
  *(f"{stage}.every.preview=0" for stage in ("dvae", "dgt", "dct")),
)


def command(entry: str, *words: str) -> subprocess.CompletedProcess:
  """A real command, on one device."""
  env = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
  line = [sys.executable, "-m", f"dit_jax.{entry}", *words]
  run = subprocess.run(line, env=env, capture_output=True, text=True, timeout=600, check=False)
  assert run.returncode == 0, run.stderr
  return run


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  return tiny_images.write(tmp_path_factory.mktemp("images") / "set")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, images):
  """Trained on one device; the tests sample it on eight."""
  folder = tmp_path_factory.mktemp("run") / "run"
  recipe = f"--config={ROOT / 'configs' / 'demo.py'}:tiny"
  fields = (f"--config.{field}" for field in (f"data.path={images}", *SMALL))
  command("main", recipe, f"--workdir={folder}", *fields)
  return folder


@pytest.fixture(scope="module")
def superres_workdir(tmp_path_factory, images):
  """Of the recipe of the stage alone."""
  folder = tmp_path_factory.mktemp("run") / "superres"
  recipe = f"--config={ROOT / 'configs' / 'superres.py'}:tiny"
  command("main", recipe, f"--workdir={folder}", f"--config.data.path={images}")
  return folder


@pytest.fixture(scope="module")
def compiled_once():
  """Calls of `sample` with equal settings share their programs, which get the weights by value."""
  real, made = generate.Generator, {}

  def generator(models, settings):
    if settings not in made:
      made[settings] = real(models, settings)
    return made[settings]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(generate, "Generator", generator)
    yield


@pytest.fixture
def draw(workdir, tmp_path, capsys, compiled_once):
  """Runs `sample` and returns the arrays of its npz, its lines and its picture."""

  def run(*words: str):
    out, npz = tmp_path / "grid.png", tmp_path / "new" / "all.npz"
    where = (f"--workdir={workdir}", f"--out={out}", f"--npz={npz}")
    cli.run(sample.main, sample.FLAGS, ["sample", *where, *words])
    with np.load(npz) as file, Image.open(out) as grid:
      return dict(file), capsys.readouterr().err, np.asarray(grid)

  return run


@pytest.fixture(scope="module")
def everything(workdir, tmp_path_factory, compiled_once):
  """Three pictures of every class."""
  npz = tmp_path_factory.mktemp("everything") / "all.npz"
  words = (f"--workdir={workdir}", f"--out={npz.with_suffix('.png')}", f"--npz={npz}", "--num=3")
  cli.run(sample.main, sample.FLAGS, ["sample", *words])
  with np.load(npz) as file:
    return dict(file)


def test_npz(everything):
  assert set(everything) == {"arr_0", "label", "index", "grains", "card"}
  card = json.loads(str(everything["card"]))
  assert (card["stage"], card["seed"], card["sampling"]["steps"]) == ("dct", 0, 4)
  assert set(card["checkpoint"]) == {"ema", "ema_decay", "autoencoder", "dgt"}
  pictures, grains = everything["arr_0"], everything["grains"]
  assert (pictures.shape, pictures.dtype) == ((12, SIZE, SIZE, 3), np.uint8)
  assert (grains.shape, set(np.unique(grains))) == ((12, 4, 4), {0, 1})
  np.testing.assert_array_equal(everything["label"], np.repeat(np.arange(4), 3))
  assert len(set(everything["index"].tolist())) == 12
  assert len({p.tobytes() for p in pictures}) == 12


def test_the_number_a_class_changes_no_picture(draw, everything):
  got, told, grid = draw("--num=1")
  np.testing.assert_array_equal(got["arr_0"], everything["arr_0"][::3])
  np.testing.assert_array_equal(got["grains"], everything["grains"][::3])
  assert "4 pictures of 4 classes (finch, gull, fern, moss), seed 0, 4 steps, guidance 2" in told
  assert "outside" not in told
  for i, picture in enumerate(got["arr_0"]):
    x = 2 + i * (SIZE + 4)
    np.testing.assert_array_equal(grid[2 : 2 + SIZE, x : x + SIZE], picture)


@pytest.mark.parametrize(
  ("classes", "ids"),
  [("gull", [1]), ("3", [3]), ("#2", [2]), ("moss,finch", [3, 0]), ("plants/fern,#1", [2, 1])],
)
def test_classes_by_name_and_id(draw, everything, classes, ids):
  got, told, _ = draw(f"--classes={classes}", "--batch=2")
  np.testing.assert_array_equal(got["label"], ids)
  np.testing.assert_array_equal(got["arr_0"], everything["arr_0"][np.array(ids) * 3])
  assert ", ".join(tiny_images.CLASSES[i] for i in ids) in told


def test_one_device_and_a_real_command_draw_the_same(workdir, everything, tmp_path):
  words = (f"--workdir={workdir}", f"--out={tmp_path / 'a.png'}", f"--npz={tmp_path / 'a.npz'}")
  run = command("sample", *words, "--classes=gull,moss", "--num=2")
  with np.load(tmp_path / "a.npz") as file:
    np.testing.assert_array_equal(file["grains"], everything["grains"][[3, 4, 9, 10]])
    np.testing.assert_array_equal(file["arr_0"], everything["arr_0"][[3, 4, 9, 10]])
  assert run.stdout == ""


def test_a_fresh_seed_is_told_and_draws_the_same_again_by_any_sampler(draw):
  how = ("--sampler=heun", "--spacing=quadratic", "--guidance_rescale=0.5", "--steps=2")
  first, told, _ = draw("--seed=-1", *how)
  seed = re.search(r"seed (\d+), 2 steps, guidance 2.0, heun: ", told)[1]
  other, told, _ = draw("--seed=-1", *how)
  assert f"seed {seed}," not in told
  assert (other["arr_0"] != first["arr_0"]).any()
  np.testing.assert_array_equal(draw(f"--seed={seed}", *how)[0]["arr_0"], first["arr_0"])


def test_seed_steps_guidance_and_checkpoint_matter(draw, everything):
  base = everything["arr_0"][::3]
  for words in (["--seed=1"], ["--steps=2", "--guidance=1"], ["--step=2"]):
    got, told, _ = draw(*words)
    assert (got["arr_0"] != base).any((1, 2, 3)).all(), words
  assert "4 steps, guidance 2" in told
  got, told, _ = draw("--steps=2", "--guidance=1")
  assert "2 steps, guidance 1" in told
  np.testing.assert_array_equal(draw(f"--step={STEPS}")[0]["arr_0"], base)


@pytest.mark.parametrize("kind", grain_source.OUTSIDE)
def test_maps_by_rule_say_what_they_are(draw, everything, kind):
  got, told, _ = draw(f"--grain={kind}")
  assert f"--grain={kind}: outside the training distribution" in told
  levels = {"all-fine": {1}, "all-coarse": {0}, "random": {0, 1}}[kind]
  assert set(np.unique(got["grains"])) == levels
  assert (got["arr_0"] != everything["arr_0"][::3]).any()
  if kind == "random":
    np.testing.assert_array_equal(
      draw(f"--grain={kind}", "--num=2")[0]["grains"][::2], got["grains"]
    )


def test_the_map_of_a_picture(draw, workdir, tmp_path):
  """Noise above white: fine regions above coarse ones, cut as in training."""
  picture = np.full((SIZE, SIZE, 3), 255, np.uint8)
  picture[:16] = np.random.default_rng(5).integers(0, 256, (16, SIZE, 3))
  Image.fromarray(picture).save(tmp_path / "noise: above white.png")
  got, told, _ = draw(f"--grain=entropy-of:{tmp_path / 'noise: above white.png'}")
  want = np.repeat([[1], [1], [0], [0]], 4, axis=1)
  np.testing.assert_array_equal(got["grains"], np.broadcast_to(want, (4, 4, 4)))
  assert "outside" not in told
  taus = restored.load(workdir).meta["thresholds"]["taus"]
  np.testing.assert_array_equal(entropy.grain_map(entropy.region_entropy(picture, 8), taus), want)


def test_superres_doubles_what_is_drawn(draw, everything, superres_workdir):
  """The pictures of the run, through the stage of another workdir, trained by the real command."""
  got, _, grid = draw(f"--superres={superres_workdir}")
  stage, params = superres.restore(superres_workdir)
  plain = everything["arr_0"][::3]
  np.testing.assert_array_equal(got["arr_0"], Doubler(stage.enhance)(params, plain))
  assert got["arr_0"].shape == (4, 2 * SIZE, 2 * SIZE, 3)
  np.testing.assert_array_equal(grid[2 : 2 + 2 * SIZE, 2 : 2 + 2 * SIZE], got["arr_0"][0])
  back = got["arr_0"].reshape(4, SIZE, 2, SIZE, 2, 3).mean((2, 4))
  assert np.abs(back - plain).mean() < 20
  np.testing.assert_array_equal(draw("--nosuperres")[0]["arr_0"], plain)


def test_a_workdir_that_has_the_stage_doubles_what_it_draws(
  draw, everything, workdir, superres_workdir, tmp_path
):
  both = tmp_path / "both"
  both.mkdir()
  for name in ("config.json", "dvae", "dgt", "dct"):
    (both / name).symlink_to(workdir / name)
  (both / "superres").symlink_to(superres_workdir / "superres")
  got, _, _ = draw(f"--workdir={both}", "--superres", "--classes=gull")
  stage, params = superres.restore(superres_workdir)
  want = Doubler(stage.enhance)(params, everything["arr_0"][[3]])
  np.testing.assert_array_equal(got["arr_0"], want)


def sample_pictures(*words: str) -> None:
  cli.run(sample.main, sample.FLAGS, ["sample", *words])


def test_pictures_of_ones_own_are_doubled_by_the_stage_alone(superres_workdir, tmp_path, capsys):
  """Every readable picture of a folder, of any size; nothing is drawn, nothing else written."""
  draw, mine = np.random.default_rng(0), tmp_path / "mine"
  shapes = {"wide.png": (20, 70), "tall.bmp": (150, 33), "dot.png": (1, 1)}
  pictures = {
    name: draw.integers(0, 256, (*shape, 3)).astype(np.uint8) for name, shape in shapes.items()
  }
  mine.mkdir()
  for name, picture in pictures.items():
    Image.fromarray(picture).save(mine / name)
  (mine / "torn.jpg").write_bytes(b"no picture")
  (mine / "notes.txt").write_text("no picture either")
  stage, params = superres.restore(superres_workdir)
  double = Doubler(stage.enhance)
  sample_pictures(f"--superres={superres_workdir}", f"--images={mine}", f"--out={tmp_path / 'out'}")
  told = capsys.readouterr().err
  assert "skipped torn.jpg, which cannot be read (UnidentifiedImageError" in told
  assert f"3 of 4 pictures doubled: {tmp_path / 'out'}" in told
  want = {name.split(".")[0] + ".png" for name in pictures}
  assert {path.name for path in (tmp_path / "out").iterdir()} == want
  for name, picture in pictures.items():
    with Image.open(tmp_path / "out" / f"{name.split('.')[0]}.png") as large:
      np.testing.assert_array_equal(np.asarray(large), double(params, picture[None])[0])
  one, out = mine / "tall.bmp", tmp_path / "new" / "one.png"
  sample_pictures(f"--workdir={superres_workdir}", "--superres", f"--images={one}", f"--out={out}")
  assert out.read_bytes() == (tmp_path / "out" / "tall.png").read_bytes()


@pytest.mark.parametrize(
  ("words", "told"),
  [
    (["--workdir={superres}"], "has the stage superres alone, which draws nothing; double"),
    (["--workdir={superres}", "--superres"], "has the stage superres alone, which draws nothing"),
    (["--workdir={superres}", "--images={png}"], "add --superres, or leave it out"),
    (["--superres", "--images={png}"], "which has none; train configs/superres.py"),
    (
      ["--superres={superres}", "--images={png}", "--num=2", "--npz=a.npz"],
      "doubles pictures and draws none; leave out --num, --npz",
    ),
    (["--superres={superres}", "--images={png}", "--out="], "--out= must name a .png file"),
    (["--superres={superres}", "--images={png}/no"], "/no does not exist"),
    (["--superres=nowhere", "--images={png}"], "nowhere/superres; train first"),
    (["--superres={superres}", "--images={torn}"], "the picture torn.png cannot be read"),
    (
      ["--superres={superres}", "--images={png}", "--out={png}/a.png"],
      "cannot be written; name a file",
    ),
  ],
  ids=str,
)
def test_what_cannot_be_doubled_is_one_line(superres_workdir, tmp_path, capsys, words, told):
  places = dict(superres=superres_workdir, png=tmp_path / "a.png", torn=tmp_path / "torn.png")
  Image.new("RGB", (4, 4)).save(places["png"])
  places["torn"].write_bytes(places["png"].read_bytes()[:40])
  before = set(tmp_path.iterdir())
  with pytest.raises(SystemExit) as stop:
    sample_pictures(f"--out={tmp_path / 'large.png'}", *(word.format(**places) for word in words))
  err = capsys.readouterr().err
  assert (stop.value.code, err.count("\n"), set(tmp_path.iterdir())) == (2, 1, before)
  assert told in err


def test_the_default_picture_is_in_the_workdir(workdir, compiled_once):
  before = {p.name for p in workdir.iterdir()}
  cli.run(sample.main, sample.FLAGS, ["sample", f"--workdir={workdir}"])
  assert {p.name for p in workdir.iterdir()} == before | {"samples.png"}


@pytest.mark.parametrize(
  ("words", "told"),
  [
    (["--classes=gul"], "no class is named 'gul'; did you mean 'gull'?"),
    (["--classes=#4"], "class id '#4' is not one of this model's ids, #0 to #3"),
    (["--classes=birds"], "'birds' is a superclass; ask for its classes: 'finch', 'gull'"),
    (["--classes="], "has an empty name"),
    (["--step=3"], "no checkpoint of step 3"),
    (["--step=3"], "there are: 2, 4"),
    (["--steps=0"], "steps=0 must be at least 1"),
    (["--sampler=dpm"], "stepper='dpm' is unknown; choose one of"),
    (["--spacing=logsnr"], "log-SNR is infinite at t = 1, so wanted 'linspace'"),
    (["--guidance=nan"], "guidance=nan must be a number"),
    (["--grain=entropy-of:none.png"], "--grain=entropy-of:none.png cannot be read"),
    (["--superres"], "which has none; train configs/superres.py and give its folder"),
    (["--superres=nowhere"], "nowhere/superres; train first"),
  ],
  ids=str,
)
def test_what_the_run_does_not_have_is_one_line(workdir, tmp_path, capsys, words, told):
  where = (f"--workdir={workdir}", f"--out={tmp_path / 'grid.png'}")
  with pytest.raises(SystemExit) as stop:
    cli.run(sample.main, sample.FLAGS, ["sample", *where, *words])
  err = capsys.readouterr().err
  assert (stop.value.code, err.count("\n"), list(tmp_path.iterdir())) == (2, 1, [])
  assert told in err


def test_a_stage_that_is_not_trained_is_named(workdir, tmp_path, capsys):
  (tmp_path / "config.json").write_bytes((workdir / "config.json").read_bytes())
  for stage in ("dct", "dvae", "dgt"):
    with pytest.raises(SystemExit) as stop:
      cli.run(sample.main, sample.FLAGS, ["sample", f"--workdir={tmp_path}"])
    assert stop.value.code == 2
    assert f"no checkpoint in {tmp_path / stage}; train first" in capsys.readouterr().err
    (tmp_path / stage).symlink_to(workdir / stage)


def test_a_model_without_classes_draws_the_null_class():
  run = SimpleNamespace(num_classes=0)
  ids, names = sample._labels(run, "all")
  assert (ids.tolist(), names) == ([0], ["no class"])
  with pytest.raises(UserError, match="trained without classes"):
    sample._labels(run, "gull")


def test_another_dvae_than_the_stage_was_trained_on_is_refused(workdir, monkeypatch):
  real = restored.autoencoder.load
  other = lambda *args: (jax.tree.map(lambda x: x + 1e-3, real(*args)[0]), real(*args)[1])
  monkeypatch.setattr(restored.autoencoder, "load", other)
  with pytest.raises(UserError, match="is not the one that the stage dct was trained on"):
    restored.load(workdir)
