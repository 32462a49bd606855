"""HRIG beside a transformer: its loss is added, its strength measured, stored and sampled with."""

import dataclasses
import json
import pathlib

import chex
import for_tpu
import jax
import jax.numpy as jnp
import numpy as np
import numpy_dit as ref
import pytest
import tiny_images
from jax.sharding import NamedSharding, PartitionSpec
from test_end_to_end import machine_of

from dit_jax.core import config as configs
from dit_jax.core import rng
from dit_jax.core.errors import UserError
from dit_jax.diffusion import hrig as rule
from dit_jax.nn import fourier_pair
from dit_jax.nn import grains as structure
from dit_jax.nn.attention import AttentionSettings
from dit_jax.sampling import generate, parallel
from dit_jax.tasks import dct, dit, hrig, latent_stage, restored
from dit_jax.train import train_and_evaluate

RECIPE = pathlib.Path(__file__).resolve().parents[2] / "configs" / "dit_xl.py"
META = {
  "factors": [4],
  "grid": [8, 8],
  "regions": [8, 8],
  "z_channels": 4,
  "classes": {"children": ["a", "b"]},
}
STATISTICS = {"mean": np.zeros((1, 4)), "std": np.ones((1, 4))}


def recipe(**fields):
  config = configs.load(RECIPE, "tiny")
  config.dit.model.depth = 1
  config.dit.hrig.update(fields)
  return config


def content_of(config):
  return dct.make_content(config, "dit", META, STATISTICS, dit.make_model, dit.content_fn)


def test_without_it_nothing_changes():
  config = recipe()
  assert not config.dit.hrig.enabled
  assert content_of(config).loss.hrig is None
  del config.dit.hrig  # as in a checkpoint from before
  assert content_of(config).loss.hrig is None


def test_its_parameters_stand_beside_the_transformer_s_which_start_as_they_did():
  plain, extended = (content_of(recipe(enabled=e)).init for e in (False, True))
  both = jax.jit(lambda key: (plain(key), extended(key)))
  want, got = both(jax.random.key(0))
  assert set(got) == {"params", "hrig"}
  chex.assert_trees_all_equal(got["params"], want["params"])
  assert set(got["hrig"]) == {"in", "out", "fourier_0", "fourier_1"}


def test_its_loss_is_added_to_the_transformer_s():
  plain, content = (content_of(recipe(enabled=e)).loss for e in (False, True))
  draw = np.random.default_rng(0)
  batch = {
    "moments": jnp.asarray(draw.normal(size=(4, 8, 8, 8)), jnp.float32),
    "grains": jnp.zeros((4, 8, 8), jnp.int32),
    "label": jnp.asarray([0, 1, 1, 0], jnp.int32),
    "index": jnp.arange(4, dtype=jnp.int32),
  }
  shapes = jax.eval_shape(content_of(recipe(enabled=True)).init, jax.random.key(0))
  params = ref.random_params(shapes, scale=0.1)

  @jax.jit
  def losses(params):
    keys, norm = rng.image_keys(0, 5, batch["index"]), content.normalizers(batch)
    t = content.process.schedule.sample_times(rng.stream(keys, "timestep"))
    without = plain(params, {}, batch, keys, norm, 0)[0]
    grad_fn = jax.value_and_grad(content, has_aux=True)
    return without, grad_fn(params, {}, batch, keys, norm, 0), content.hrig.rule.inside(t).sum()

  without, ((loss, metrics), grads), inside = losses(params)
  assert 0 < inside < 4
  want = 0.1 * (metrics["hrig"] + 0.1 * metrics["hrig_frequency"])
  assert want > 0.01
  np.testing.assert_allclose(loss - without, want, rtol=1e-4)
  assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads["hrig"]))


def test_the_correction_of_a_checkpoint():
  block, process = recipe(enabled=True).dit, dct.make_process(recipe().dit.diffusion)
  for meta in (META, META | {"hrig": {"strength": 0.0}}):
    assert hrig.correction(block, process, meta) is None
  assert hrig.correction(recipe().dit, process, META | {"hrig": {"strength": 0.5}}) is None
  meta = META | {"hrig": {"strength": 0.5}, "factors": [4, 8, 16]}
  attached = hrig.attach(block, process, meta)
  shapes = jax.eval_shape(attached.extend(lambda key: {}), jax.random.key(0))
  params = {"content": ref.random_params(shapes, scale=0.1)}
  draw = np.random.default_rng(0)
  grains = jnp.asarray(draw.integers(0, 3, (2, 2, 2)), jnp.int32)
  x0, z = (jnp.asarray(draw.normal(size=(2, 8, 8, 4)), jnp.float32) for _ in range(2))

  @jax.jit
  def corrected(x0):
    x0 = structure.project(x0, grains, (4, 8, 16))
    t = jnp.full(2, 0.1)
    got = hrig.correction(block, process, meta)(params, x0, z, t, grains)
    one = hrig.correction(block, process, meta | {"factors": [4]})(params, x0, z, t, grains)
    return x0, got, one, structure.project(got, grains, (4, 8, 16)), fourier_pair.down(one - x0)

  x0, got, one, projected, low = corrected(x0)
  coarse = np.asarray(structure.cell_grains(grains, (4, 8, 16)) == 0)
  np.testing.assert_array_equal(np.asarray(got)[coarse], np.asarray(x0)[coarse])
  np.testing.assert_allclose(projected, got, atol=1e-5)
  assert np.abs(got - x0).max() > 0.01
  np.testing.assert_allclose(low, 0, atol=1e-5)
  assert np.abs(one - x0).max() > 0.01


GRAINS = {"one": [4], "two": [4, 8]}


def planted(factors, rows=17):
  """(config, meta, loss, content, rows) where the error vanishes at strength 0.4.

  Every image is flat, of its own value, but for a high band u where codes are fine; content
  predicts the flat image, E answers with 2.5 u. Each says nonsense where the time, the noise or the
  tokens that it is given are not the row's.
  """
  config, side = recipe(enabled=True), 8 * 4 // factors[-1]
  config.sampling.microbatch = 2
  meta = META | {"factors": factors, "regions": [side, side]}
  draw = np.random.default_rng(0)
  u = np.asarray(fourier_pair.high_pass(jnp.asarray(draw.normal(size=(1, 8, 8, 4)), jnp.float32)))
  flat = draw.normal(size=(rows, 1, 1, 4)).astype(np.float32)
  grains = draw.integers(0, len(factors), (rows, side, side)).astype(np.int32)
  fine = grains.repeat(8 // side, 1).repeat(8 // side, 2)[..., None] == len(factors) - 1
  mean, std = np.full((len(factors), 4), 0.3), np.full((len(factors), 4), 2.0)
  latents = 2 * (flat + fine * u) + 0.3
  held = {
    "moments": np.concatenate([latents, np.full_like(latents, -60)], -1),
    "grains": grains,
    "label": np.arange(rows),
    "index": draw.permutation(rows),
  }
  process = dct.make_process(config.dit.diffusion)
  attached = hrig.attach(config.dit, process, meta)
  answers = lambda params, y, z, t: fourier_pair.up(y) + 2.5 * u
  attached = dataclasses.replace(attached, rule=dataclasses.replace(attached.rule, enhance=answers))
  stage = dct.make_content(
    config, "dit", META, {"mean": mean, "std": std}, dit.make_model, dit.content_fn
  )
  loss = dataclasses.replace(stage.loss, factors=tuple(factors), hrig=attached)

  def content(params, z, model_time, label, grains, tokens):
    t = (model_time[:, None, None, None] + 1) / 1000
    eps = (z - process.schedule.alpha(t) * jnp.asarray(flat)[label]) / process.schedule.sigma(t)
    if len(factors) > 1:
      eps += 1e3 * (tokens.length != 4 * grains.sum((1, 2)))[:, None, None, None]
    return jnp.concatenate([eps, 0 * eps], -1)

  return config, loss, content, held


@pytest.mark.parametrize("factors", GRAINS.values(), ids=GRAINS)
def test_the_strength_measured_is_the_one_with_the_least_error(factors, monkeypatch):
  config, loss, content, held = planted(factors)
  monkeypatch.setattr(hrig, "held_out", lambda *_: dict(held))
  chosen = hrig.measured(config, "", "dit", loss, content)({"hrig": {}}, {})["hrig"]
  assert chosen["strength"] == 0.4
  assert chosen["error"] < 1e-4 < 0.1 < chosen["error_plain"]


def test_the_strength_measured_does_not_depend_on_the_devices(monkeypatch):
  config, loss, content, held = planted([4], rows=5)
  monkeypatch.setattr(hrig, "held_out", lambda *_: dict(held))
  many = hrig.measured(config, "", "dit", loss, content)({"hrig": {}}, {})
  monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
  assert hrig.measured(config, "", "dit", loss, content)({"hrig": {}}, {}) == many


def test_the_strength_is_measured_on_several_tpus(monkeypatch):
  """With weights on all of them; a kernel is not split by the compiler."""
  texts = for_tpu.lower_rows(monkeypatch)
  config, _, _, held = planted([4], rows=3)
  monkeypatch.setattr(hrig, "held_out", lambda *_: dict(held))
  stage = content_of(config)
  shapes = jax.eval_shape(stage.init, jax.random.key(0))
  mesh = jax.make_mesh((jax.device_count(),), ("data",))
  params = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
  hrig.measured(config, "", "dit", stage.loss, dit.content_fn(stage.model))(params, {})
  assert "tpu_custom_call" in texts[0]


@dataclasses.dataclass(frozen=True)
class Transformer:
  """What the gate asks of a model."""

  attention: AttentionSettings
  clone = dataclasses.replace


def test_the_strength_is_measured_of_what_is_sampled(monkeypatch):
  """Dense attention at the times, row by row, at which sampling is dense."""
  config = recipe(enabled=True)
  stage = content_of(config)
  attention = AttentionSettings(kind="pro", dense_snr=4.0)
  stage = dataclasses.replace(stage, model=Transformer(attention))
  given = []
  monkeypatch.setattr(hrig, "measured", lambda *args: given.append(args[-1]))
  for module, name in ((dct.autoencoder, "load"), (latent_stage, "picture_preview")):
    monkeypatch.setattr(module, name, lambda *_: [None])
  monkeypatch.setattr(latent_stage, "task", lambda *_, **__: None)
  shows = lambda model: lambda params, z, *_: jnp.full_like(z, model.attention.kind == "full")
  dct.content_task(config, "", None, "dit", stage, shows)
  schedule = stage.loss.process.schedule
  t = jnp.asarray(rule.window_times(schedule, 1.0, 9))
  clear = schedule.alpha(t) ** 2 >= 4 * schedule.sigma(t) ** 2
  assert 0 < clear.sum() < 9
  got = given[0]({}, jnp.zeros((9, 8, 8, 4)), schedule.model_time(t), None, None, None)
  np.testing.assert_array_equal(got[:, 0, 0, 0], clear)


def test_held_out_images_of_all_classes_get_times_of_all_kinds(monkeypatch):
  """Times ascend and the split goes by class, so the images are shuffled, by the seed."""
  images = [
    {"image": np.full((4, 4, 3), i, np.uint8), "label": np.int32(i // 10), "index": np.int32(i)}
    for i in range(40)
  ]
  places = parallel.Rows(2)
  encode = places.jit(lambda params, rows: rows["image"].mean((1, 2, 3)))
  plain = lambda config, maps, rows: rows | {"grains": np.zeros((len(rows["image"]), 1, 1), int)}
  monkeypatch.setattr(hrig.sources, "open_source", lambda *_: images)
  monkeypatch.setattr(hrig.autoencoder, "load", lambda *_: ({}, None))
  monkeypatch.setattr(hrig.grain_maps.GrainMaps, "from_record", lambda _: None)
  monkeypatch.setattr(latent_stage, "with_grains", plain)
  monkeypatch.setattr(latent_stage, "encoder", lambda _: (places, encode))
  rows = hrig.held_out(recipe(), "", 20)
  assert len(rows["index"]) == len(set(rows["index"].tolist())) == 20
  np.testing.assert_array_equal(rows["moments"], rows["index"])
  np.testing.assert_array_equal(rows["label"], rows["index"] // 10)
  assert set(rows["label"][:10].tolist()) == set(rows["label"][10:].tolist()) == set(range(4))
  np.testing.assert_array_equal(hrig.held_out(recipe(), "", 20)["index"], rows["index"])


def test_numbers_out_of_range_are_refused():
  with pytest.raises(UserError, match="snr=-1"):
    content_of(recipe(enabled=True, snr=-1.0))


def test_a_run_measures_stores_and_samples_with_its_strength(tmp_path, capsys, monkeypatch):
  machine_of(1, monkeypatch)
  config = recipe(enabled=True)
  images = tiny_images.write(tmp_path / "images", per_class=5, size=32)
  config.data.update(path=str(images), image_size=32, workers=0, holdout=5)
  config.dvae.model.update(encoder_mults=(1, 1, 1), decoder_mults=(1, 1, 1))
  config.dvae.loss.disc_weight = 0.0  # which halves what compiles
  for stage in ("dvae", "dit"):
    config[stage].update(batch_size=8, total_steps=2)
    config[stage].every = dict(log=2, save=2, preview=0)
  train_and_evaluate(config, tmp_path / "run")
  told = capsys.readouterr().out
  run = restored.load(tmp_path / "run")
  chosen = run.meta["hrig"]
  assert chosen["strength"] in rule.STRENGTHS
  assert chosen["error"] <= chosen["error_plain"]
  assert f"[dit] hrig: strength {chosen['strength']}" in told
  assert told.count("of 4 held-out latents") == 2  # before the first step, and in the save
  assert (run.models.correct_x0 is None) == (chosen["strength"] == 0)
  json.dumps(chosen)

  filled = ref.random_params(jax.eval_shape(lambda: run.params["content"]["hrig"]), scale=0.3)
  params = run.params | {"content": run.params["content"] | {"hrig": filled}}

  def draw(strength):
    meta = run.meta | {"hrig": {"strength": strength}}
    correct_x0 = hrig.correction(run.config.dit, run.models.process, meta)
    models = dataclasses.replace(run.models, correct_x0=correct_x0)
    generator = generate.Generator(models, run.settings(steps=4, guidance=1.0), jax.devices()[:1])
    zeros, index = np.zeros(2, np.int32), np.arange(2, dtype=np.int32)
    maps = generator.grain_maps(params, zeros, index, 0)
    return generator.images(params, zeros, index, maps, 0)

  assert (draw(1.0) != draw(0.0)).any()
