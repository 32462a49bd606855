"""The super-resolution stage: its loss, its batches, what it refuses, and one run to the end."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_images
from PIL import Image

from dit_jax.core import config as configs
from dit_jax.core.errors import UserError
from dit_jax.data import degrade, sources
from dit_jax.sampling.superres import Doubler
from dit_jax.tasks import superres
from dit_jax.train import check_recipe, train_and_evaluate

RECIPE = pathlib.Path(__file__).resolve().parents[2] / "configs" / "superres.py"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  return tiny_images.write(tmp_path_factory.mktemp("images") / "set", per_class=5)


@pytest.fixture
def recipe(images):
  config = configs.load(RECIPE, "tiny")
  config.data.update(path=str(images), workers=0)
  config.superres.update(batch_size=8)
  config.superres.every = dict(log=1, save=4, preview=4)
  return config


def filled(task, scale=0.1):
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  draw = np.random.default_rng(0)
  return jax.tree.map(lambda s: jnp.asarray(draw.normal(0, scale, s.shape), s.dtype), shapes)


def test_the_loss_is_the_mean_absolute_error_inside_the_margin(recipe):
  task = superres.build(recipe, "nowhere", None)
  stage = superres.SuperresTask(recipe.superres, recipe.data.image_size)
  batch, params = next(task.batches(0)), filled(task)

  @jax.jit
  def fn(params, batch, norm):
    loss, metrics = task.phases[0][1](params, {}, batch, None, norm, 0)
    return loss, metrics["l1"], stage.enhance(params, batch["low"])

  norm = task.normalizers(batch)
  loss, l1, got = fn(params, batch, norm)
  want = np.abs(np.asarray(got, np.float64) - (batch["high"] / 127.5 - 1))[:, 4:-4, 4:-4].mean()
  np.testing.assert_allclose(loss, want, rtol=1e-5)
  assert l1 == loss
  moved = {**batch, "high": batch["high"].copy()}
  moved["high"][:, :4] = 255
  assert fn(params, moved, norm)[0] == loss
  moved["high"][:, 4:8] = 255
  assert fn(params, moved, norm)[0] != loss
  halves = [fn(params, {k: v[i::2] for k, v in batch.items()}, norm)[0] for i in range(2)]
  np.testing.assert_allclose(sum(halves), loss, rtol=1e-5)


def test_batches_are_a_function_of_the_step_and_meet_no_held_out_image(recipe):
  task = superres.build(recipe, "nowhere", None)
  steps = task.batches(0)
  some = [next(steps) for _ in range(4)]
  assert {k: v.shape for k, v in some[0].items()} == {
    "high": (8, 32, 32, 3),
    "low": (8, 16, 16, 3),
    "index": (8,),
  }
  for name, value in next(task.batches(3)).items():
    np.testing.assert_array_equal(value, some[3][name])
  held = sources.open_source(recipe.data, "heldout")
  trained = np.concatenate([batch["index"] for batch in some])
  assert len(held) == 4
  assert set(trained) == set(range(20)) - set(held.indices)
  twice = [batch["low"][batch["index"] == 0] for batch in some]
  twice = np.concatenate(twice)
  assert len({x.tobytes() for x in twice}) == len(twice) > 1  # drawn anew at every step


def test_a_finished_run_doubles_pictures(recipe, tmp_path):
  train_and_evaluate(recipe, tmp_path / "run")
  assert (tmp_path / "run" / "superres" / "previews" / "step_00000004.png").exists()
  stage, params = superres.restore(tmp_path / "run")
  small = np.stack([degrade.clean(sources.open_source(recipe.data, "heldout")[0]["image"])])
  large = Doubler(stage.enhance)(params, small)
  assert large.shape == (1, 32, 32, 3)
  with pytest.raises(UserError, match="no checkpoint in"):
    superres.restore(tmp_path)


@pytest.mark.parametrize(
  ("holdout", "shown"), [(5, [4, 9, 14, 19]), (0, range(6)), (6, range(6))], ids=str
)
def test_previews_show_held_out_images_where_there_are_any(recipe, holdout, shown):
  """No class has the six images of which one would be held out."""
  recipe.data.holdout = holdout
  source = sources.open_source(recipe.data, "train")
  items = superres._shown(recipe.data, source)
  assert [int(item["index"]) for item in items] == list(shown)


def test_images_that_are_scaled_up_are_told(recipe, tmp_path):
  images = tiny_images.write(tmp_path / "set", per_class=5)
  recipe.data.path = str(images)
  told = lambda: superres.scaled_up(sources.open_source(recipe.data, "train"))
  assert told() == ""  # they have 40 pixels
  recipe.data.image_size = 41
  assert told().startswith(
    "[superres] 16 of 16 images looked at are scaled up to data.image_size=41"
  )
  assert "at most 40 pixels: set data.image_size" in told()
  Image.new("RGB", (50, 41)).save(images / "birds" / "finch" / "0.png")
  (images / "birds" / "gull" / "0.png").write_bytes(b"torn")
  assert "14 of 15 images" in told()


def test_the_stage_may_follow_those_that_draw(recipe):
  both = configs.load(RECIPE.with_name("demo.py"), "tiny")
  with both.unlocked():
    both.superres, both.stages = recipe.superres, (*both.stages, "superres")
  assert check_recipe(both)[0] == ("dvae", "dgt", "dct", "superres")


@pytest.mark.parametrize(
  ("fields", "told"),
  [
    (dict(crop=31), "superres.crop=31 must be even"),
    (dict(crop=64), "at most data.image_size=32"),
    (dict(margin=8), "superres.margin=8 must leave"),
  ],
)
def test_sizes_that_do_not_fit_are_refused(recipe, fields, told):
  recipe.superres.update(fields)
  with pytest.raises(UserError, match=told):
    superres.SuperresTask(recipe.superres, recipe.data.image_size)


def test_ranges_of_the_degradation_are_checked(recipe):
  recipe.superres.degradation.jpeg = (0, 50)
  with pytest.raises(UserError, match="jpeg="):
    superres.SuperresTask(recipe.superres, recipe.data.image_size)
