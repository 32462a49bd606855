"""The plain transformer's stage: one grain, so no maps, no tokens, and all kinds of loss agree."""

import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy_dit as ref
import pytest
import tiny_cache

from dit_jax.core import config as configs
from dit_jax.core import rng
from dit_jax.core.errors import UserError
from dit_jax.data import latents
from dit_jax.data.hierarchy import ClassTable
from dit_jax.models.dit import DiT
from dit_jax.tasks import autoencoder, dit, latent_stage

RECIPE = pathlib.Path(__file__).resolve().parents[2] / "configs" / "dit_xl.py"
CLASSES = ClassTable.from_pairs([("owl", "barn"), ("tit", "blue"), ("tit", "great")])
META = {
  "factors": [4],
  "regions": [8, 8],
  "grid": [8, 8],
  "z_channels": 4,
  "vae": "0123456789abcdef",
  "image_size": 32,
  "classes": CLASSES.to_json(),
  "thresholds": {"taus": [], "fractions": [1.0]},
}


def recipe(**diffusion):
  config = configs.load(RECIPE, "tiny")
  config.data.image_size, config.data.workers = 32, 0
  config.dit.model.depth = 1
  config.dit.batch_size = 4
  config.dit.diffusion.update(diffusion)
  return config


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  draw = np.random.default_rng(0)
  folder = tmp_path_factory.mktemp("dit") / "latents"
  records = (
    {
      "moments": draw.normal(size=(8, 8, 8)).astype(np.float32),
      "grains": np.zeros((8, 8), np.uint8),
      "label": i % 3,
      "index": i,
      "flipped": 0,
    }
    for i in range(9)
  )
  tiny_cache.write(folder, META, records)
  return latents.LatentSource(folder)


@pytest.fixture
def build(cache, monkeypatch):
  """config -> the stage on the cache, without a DVAE behind it."""
  monkeypatch.setattr(latent_stage, "ensure", lambda *_: cache)
  monkeypatch.setattr(autoencoder, "load", lambda *_: ({"decoder": np.zeros(2)}, {}))
  return lambda config: dit.build(config, "nowhere", None)


def value_and_grad(task):
  """(params, batch, norm) -> loss and gradient, on the host; a shape compiles once."""

  @jax.jit
  def fn(params, batch, norm):
    keys = rng.image_keys(0, 7, batch["index"])
    value = lambda p: task.phases[0][1](p, {}, batch, keys, norm, jnp.int32(7))
    return jax.value_and_grad(value, has_aux=True)(params)

  return lambda *args: jax.device_get(fn(*args))


def test_the_stage_on_latents_of_one_grain(build, cache):
  task = build(recipe())
  assert (task.name, task.num_images, task.fingerprint) == ("dit", 9, cache.fingerprint)
  assert list(task.frozen) == ["dvae"]
  assert task.meta["factors"] == [4]
  assert np.shape(task.meta["latent_stats"]["mean"]) == (1, 4)
  batches = task.batches(0)
  batch = next(batches)
  batches.close()
  assert set(batch) == {"moments", "grains", "label", "index"}  # no token tables
  assert not batch["grains"].any()
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  z = jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
  model = DiT(depth=1, width=32, num_heads=2, patch=2, grid=(8, 8), num_classes=3)
  want = jax.eval_shape(model.init, jax.random.key(0), *z)
  chex.assert_trees_all_equal_shapes_and_dtypes(shapes, want)


def test_with_one_grain_all_kinds_of_loss_agree(build):
  """Every cell is a code of its own: unique, copied and grain_means count the same."""
  batch, values = None, []
  for kind in ("unique", "copied", "grain_means"):
    task = build(recipe(loss=kind, grain_weights=(1.0,)))
    if batch is None:
      batch = next(task.batches(0))
      params = ref.random_params(jax.eval_shape(task.init, jax.random.key(0)), scale=0.1)
    norm = jax.device_get(jax.jit(task.normalizers)(batch))
    assert (norm["codes"], norm["cells"], list(norm["per_grain"])) == (256, 256, [256])
    values.append(value_and_grad(task)(params, batch, norm))
  (loss, metrics), grads = values[0]
  assert loss > 0
  assert set(metrics) == {"mse", "vlb_bits"}
  largest = max(np.abs(x).max() for x in jax.tree.leaves(grads))
  assert largest > 0
  for other in values[1:]:
    chex.assert_trees_all_close(other[0], (loss, metrics), rtol=1e-6)
    chex.assert_trees_all_close(other[1], grads, rtol=0, atol=1e-6 * largest)


def test_micro_batches_add_up_to_the_whole_batch(build):
  task = build(recipe(learn_sigma=False))
  batch = next(task.batches(3))
  norm = jax.device_get(jax.jit(task.normalizers)(batch))
  params = ref.random_params(jax.eval_shape(task.init, jax.random.key(0)), scale=0.1)
  of = value_and_grad(task)
  whole = of(params, batch, norm)
  halves = [{k: x[i::2] for k, x in batch.items()} for i in range(2)]
  parts = [of(params, half, norm) for half in halves]
  total, grads = jax.tree.map(np.add, *parts)
  chex.assert_trees_all_close(total, whole[0], rtol=1e-6)
  largest = max(np.abs(x).max() for x in jax.tree.leaves(whole[1]))
  chex.assert_trees_all_close(grads, whole[1], rtol=0, atol=1e-6 * largest)
  assert set(total[1]) == {"mse"}


def test_latents_of_several_grains_are_refused():
  with pytest.raises(UserError, match=r"one grain, these have factors \(8, 16\).*dgt and dct"):
    dit.make_model(recipe(), META | {"factors": [8, 16]})


def test_a_variant_is_a_preset_that_fields_override():
  config = recipe()
  config.dit.model = dict(variant="B/4", qk_norm=True)
  model = dit.make_model(config, META)
  assert (model.depth, model.width, model.patch, model.qk_norm) == (12, 768, 4, True)
  assert (model.num_classes, model.grid) == (3, (8, 8))


def test_the_content_function_ignores_maps_and_tokens():
  model = DiT(depth=1, width=16, num_heads=2, patch=4, grid=(8, 8), num_classes=3)
  args = jax.random.normal(jax.random.key(1), (2, 8, 8, 4)), jnp.ones(2), jnp.zeros(2, jnp.int32)
  params = ref.random_params(jax.eval_shape(model.init, jax.random.key(0), *args))
  content = jax.jit(dit.content_fn(model), static_argnums=(4, 5))
  want = jax.jit(model.apply)(params, *args)
  np.testing.assert_array_equal(content(params, *args, None, "no tokens"), want)
