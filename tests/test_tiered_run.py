"""A tree of classes from folders to pictures: trained, stored, drawn by the name of any level."""

import pathlib

import numpy as np
import pytest
import tiny_images
from test_end_to_end import one_device  # noqa: F401

from dit_jax import sample, train
from dit_jax.core import cli
from dit_jax.core import config as configs
from dit_jax.core.errors import UserError
from dit_jax.tasks import restored

RECIPE = pathlib.Path(__file__).resolve().parents[1] / "configs" / "dit_xl.py"


def recipe(images, **labels):
  config = configs.load(RECIPE, "tiny")
  config.data.update(path=str(images), image_size=32, holdout=0, workers=0)
  config.dvae.model.encoder_mults = config.dvae.model.decoder_mults = (1, 1, 1)
  config.dvae.loss.disc_weight = 0.0  # which halves what compiles
  config.dit.model.depth = 1
  config.dit.labels.update(labels)
  for block in (config.dvae, config.dit):
    block.total_steps, block.every.preview = 2, 0
  return config


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  """finch, gull; fern, moss under birds and plants, under animals and greens."""
  root = tmp_path_factory.mktemp("images") / "set"
  tiny_images.write(root, per_class=2)
  for above, name in (("animals", "birds"), ("greens", "plants")):
    (root / above).mkdir()
    (root / name).rename(root / above / name)
  return root


@pytest.fixture(scope="module")
def workdir(images, tmp_path_factory):
  folder = tmp_path_factory.mktemp("run") / "run"
  train.train_and_evaluate(recipe(images, fusion="concat", p_drop=0.5), folder)
  return folder


def test_the_tree_is_stored_with_the_checkpoint(workdir):
  run = restored.load(workdir)
  assert run.classes.levels == (
    ("finch", "gull", "fern", "moss"), ("birds", "plants"), ("animals", "greens")
  )  # fmt: skip
  assert run.models.tiers.sizes == (4, 2, 2)
  assert run.models.tiers.parents == run.classes.maps == ((0, 0, 1, 1), (0, 1))
  assert not run.models.tiers.null
  assert set(run.params["content"]["params"]["label"]) == {"level_0", "level_1", "level_2", "fuse"}


def test_any_level_is_drawn_by_its_name(workdir, tmp_path):
  npz = tmp_path / "all.npz"
  where = (f"--workdir={workdir}", f"--out={tmp_path / 'grid.png'}", f"--npz={npz}")
  words = ("--classes=gull,birds,animals,greens/plants", "--num=2", "--steps=2", "--guidance=2")
  cli.run(sample.main, sample.FLAGS, ["sample", *where, *words, "--guidance_level=2"])
  with np.load(npz) as file:
    assert file["label"].tolist() == [1, 1, 4, 4, 6, 6, 5, 5]
    assert len(set(file["index"].tolist())) == 8
    assert len({picture.tobytes() for picture in file["arr_0"]}) == 8


@pytest.mark.parametrize(
  ("words", "told"),
  [
    (["--classes=brids"], "did you mean 'birds'"),
    (["--guidance_level=3"], "guidance_level=3: this model's labels have the levels 1 to 2"),
    (["--guidance_interval=1,x"], "--guidance_interval=1,x must be LOW,HIGH"),
  ],
)
def test_what_the_tree_does_not_have_is_one_line(workdir, tmp_path, capsys, words, told):
  with pytest.raises(SystemExit) as stop:
    cli.run(sample.main, sample.FLAGS, ["sample", f"--workdir={workdir}", *words])
  err = capsys.readouterr().err
  assert (stop.value.code, err.count("\n")) == (2, 1)
  assert told in err


def test_one_class_is_refused_before_anything_is_written(images, tmp_path):
  one = images / "animals" / "birds" / "gull"
  config = recipe(images, fusion="sum")
  config.data.path = str(tmp_path / "set")
  (tmp_path / "set" / "gull").mkdir(parents=True)
  for file in one.iterdir():
    (tmp_path / "set" / "gull" / file.name).write_bytes(file.read_bytes())
  with pytest.raises(UserError, match="the data has 1: gull"):
    train.train_and_evaluate(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()
