"""Laws of the grain transformer's loss: nats per cell, image by image."""

import functools

import chex
import for_tpu
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import numpy_dit as ref
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dit_jax.core import rng
from dit_jax.core.tiers import Drop, Tiers
from dit_jax.tasks import dgt

REGIONS, CLASSES = (3, 4), 5
CONFIG = ml_collections.ConfigDict(
  {"dgt": {"model": dict(depth=1, width=16, num_heads=2, qk_norm=False), "label_drop": 0.1}}
)


def dropping(rate):
  return Drop(Tiers((CLASSES,)), p_null=rate)


def batch_of(k=2, b=6, seed=0):
  draw = np.random.default_rng(seed)
  return {
    "grains": draw.integers(0, k, (b, *REGIONS)).astype(np.int32),
    "label": draw.integers(0, CLASSES, b).astype(np.int32),
    "index": draw.permutation(10_000)[:b].astype(np.int32),
  }


def rows(batch, take):
  return {name: x[take] for name, x in batch.items()}


def keys_of(batch, step=7):
  return rng.image_keys(3, step, batch["index"])


@functools.cache
def made(k):
  """The model of k grains, its initial weights, and others that are nowhere zero."""
  meta = {"regions": list(REGIONS), "factors": [2**i for i in range(k)]}
  model = dgt.make_model(CONFIG, meta | {"classes": {"children": ["a"] * CLASSES}})
  init = jax.jit(lambda key: model.init(key, jnp.zeros((1, *REGIONS), int), jnp.zeros(1, int)))
  params = init(jax.random.key(0))
  return model, params, ref.random_params(params)


@functools.cache
def compiled(k):
  """(params, batch, norm) -> (loss, metrics), gradient, on the host."""
  loss = dgt.make_loss(made(k)[0], dropping(CONFIG.dgt.label_drop))

  @jax.jit
  def fn(params, batch, norm):
    value = lambda p: loss(p, {}, batch, keys_of(batch), norm, jnp.int32(7))
    return jax.value_and_grad(value, has_aux=True)(params)

  return lambda *args: jax.device_get(fn(*args))


def assert_same(got, want):
  chex.assert_trees_all_close(got[0], want[0], rtol=1e-6)
  largest = max(np.abs(x).max() for x in jax.tree.leaves(want[1]))
  chex.assert_trees_all_close(got[1], want[1], rtol=0, atol=1e-6 * largest)


def test_a_model_is_made_of_its_config_and_of_its_latents():
  model = made(3)[0]
  assert (model.grid, model.num_grains, model.num_classes) == (REGIONS, 3, CLASSES)
  assert (model.depth, model.width) == (1, 16)


@pytest.mark.parametrize("k", [2, 3])
def test_a_model_that_knows_nothing_pays_ln_k_a_cell(k):
  """Zero-init logits are uniform: every masked cell costs ln k, whatever the mask."""
  batch = batch_of(k)
  (loss, metrics), _ = compiled(k)(made(k)[1], batch, dgt.normalizers(batch))
  assert loss == pytest.approx(np.log(k), rel=1e-6)
  assert metrics == {"nats_per_cell": loss}


def test_micro_batches_add_up_to_the_whole_batch():
  batch, fn, params = batch_of(), compiled(2), made(2)[2]
  norm = dgt.normalizers(batch)
  parts = [fn(params, rows(batch, slice(i, None, 2)), norm) for i in range(2)]
  assert parts[0][0][0] != parts[1][0][0]
  assert_same(jax.tree.map(np.add, *parts), fn(params, batch, norm))


def test_an_image_counts_the_same_wherever_it_sits():
  batch, fn, params = batch_of(), compiled(2), made(2)[2]
  norm = dgt.normalizers(batch)
  whole = fn(params, batch, norm)
  assert_same(fn(params, rows(batch, np.random.default_rng(1).permutation(6)), norm), whole)
  (other, _), _ = fn(params, batch | {"index": batch["index"] + 1}, norm)
  assert other != pytest.approx(whole[0][0], rel=1e-3)  # masks go by the index


class Spy:
  """A model that answers a fixed table, and keeps what it was asked."""

  num_grains, num_classes = 3, CLASSES

  def apply(self, params, cells, label, rngs):
    self.cells, self.label = cells, label
    return jnp.broadcast_to(params, (*cells.shape, 3))


def test_only_masked_cells_cost_and_each_by_its_own_grain():
  """Against numpy, for logits that are the same in every cell."""
  batch, spy, logits = batch_of(3, b=64), Spy(), np.array([0.3, -1.0, 2.0])
  loss, _ = dgt.make_loss(spy, dropping(0.0))(
    jnp.asarray(logits), {}, jax.tree.map(jnp.asarray, batch), keys_of(batch), {"images": 64.0}, 0
  )
  masked = np.asarray(spy.cells) == 3
  np.testing.assert_array_equal(np.asarray(spy.cells)[~masked], batch["grains"][~masked])
  counts = masked.sum((1, 2))
  assert counts.min() == 1
  assert counts.max() == 12
  nats = np.log(np.exp(logits).sum()) - logits[batch["grains"]]
  want = np.mean([nats[i][masked[i]].mean() for i in range(64)])
  assert float(loss) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("rate", [0.0, 0.1, 1.0])
def test_labels_are_dropped_at_their_rate(rate):
  batch, spy = batch_of(3, b=2048), Spy()
  args = jnp.zeros(3), {}, jax.tree.map(jnp.asarray, batch), keys_of(batch), {"images": 1.0}, 0
  dgt.make_loss(spy, dropping(rate))(*args)
  dropped = np.asarray(spy.label) == CLASSES
  np.testing.assert_array_equal(np.asarray(spy.label)[~dropped], batch["label"][~dropped])
  assert abs(dropped.mean() - rate) <= 3 * np.sqrt(rate * (1 - rate) / 2048)


def test_the_mask_and_the_label_drop_are_separate_draws():
  """A dropped label says nothing about how much of the map is masked."""
  batch, spy = batch_of(3, b=2048), Spy()
  args = jnp.zeros(3), {}, jax.tree.map(jnp.asarray, batch), keys_of(batch), {"images": 1.0}, 0
  dgt.make_loss(spy, dropping(0.5))(*args)
  counts = (np.asarray(spy.cells) == 3).sum((1, 2))
  dropped = np.asarray(spy.label) == CLASSES
  gap = counts[dropped].mean() - counts[~dropped].mean()
  assert abs(gap) < 4 * counts.std() * np.sqrt(4 / 2048)


def test_the_norm_is_the_number_of_images():
  assert dgt.normalizers(batch_of(b=6)) == {"images": 6.0}


def test_the_preview_is_drawn_on_several_tpus(monkeypatch):
  """From weights on all of them; a kernel is not split by the compiler."""
  texts = for_tpu.lower_rows(monkeypatch)
  model, params, _ = made(2)
  mesh = jax.make_mesh((jax.device_count(),), ("data",))
  params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
  config = CONFIG.copy_and_resolve_references()
  config.seed, config.sampling = 0, dict(map_steps=2)
  meta = {"classes": {"children": ["a"] * CLASSES}}
  picture = dgt.map_preview(config, model, meta, batch_of())(params, {})
  assert picture.dtype == np.uint8
  assert "tpu_custom_call" in texts[0]
