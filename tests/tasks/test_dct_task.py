"""Laws of the diffusion loss over multi-grained latents, on tiny models.

Everything runs inside few jitted functions: compiling single operations takes longest.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import numpy_dit as ref
import pytest
import tiny_cache

from dit_jax.core import buckets, rng, slots
from dit_jax.core.errors import UserError
from dit_jax.core.tiers import Drop, Tiers
from dit_jax.data import latents
from dit_jax.data.hierarchy import ClassTable
from dit_jax.diffusion import losses, process, schedules
from dit_jax.models.dct import DCT
from dit_jax.nn import grains as structure
from dit_jax.tasks import dct

FACTORS, REGIONS, GRID, NZ, CLASSES = (4, 8), (4, 4), (8, 8), 2, 5
CAPACITY = buckets.capacity_for(64, 16, FACTORS)
EPS = process.Process(schedules.LinearBeta(), "eps", learn_sigma=True)
FLOW = process.Process(schedules.RectifiedFlow(logit_normal=True), "flow")
MEAN, STD = np.float32([[0.5, -1.0], [0.0, 2.0]]), np.float32([[1.0, 0.7], [2.0, 1.5]])
META = {"factors": [4, 8], "grid": [8, 8], "z_channels": NZ, "classes": {"children": ["a"] * 5}}


def to_cells(grains):
  return grains.repeat(2, 1).repeat(2, 2)


def batch_of(b=4, seed=0, fine=None):
  """Random moments with the structure of random maps, or of maps with a share of fine regions."""
  draw = np.random.default_rng(seed)
  grains = draw.integers(0, 2, (b, *REGIONS))
  if fine is not None:
    grains = np.stack([draw.permutation(np.arange(16) < 16 * fine) for _ in range(b)])
  grains = grains.reshape(b, *REGIONS).astype(np.int32)
  moments = draw.normal(size=(b, *GRID, 2 * NZ)).astype(np.float32)
  copied = moments[:, ::2, ::2].repeat(2, 1).repeat(2, 2)
  return {
    "moments": np.where(to_cells(grains)[..., None] == 1, moments, copied),
    "grains": grains,
    "label": draw.integers(0, CLASSES, b).astype(np.int32),
    "index": draw.permutation(10_000)[:b].astype(np.int32),
    "tokens": buckets.token_index(grains, FACTORS, CAPACITY),
  }


def rows(batch, take):
  return jax.tree.map(lambda x: x[take], batch)


@functools.cache
def trained(which):
  """A model whose weights are all non-zero."""
  fields = dict(depth=1, refine_depth=1, width=16, num_heads=2, z_channels=NZ)
  model = DCT(
    **fields, num_classes=CLASSES, factors=FACTORS, grid=GRID, learn_sigma=which.learn_sigma
  )
  batch = jax.tree.map(jnp.asarray, batch_of(1))
  args = jnp.zeros((1, *GRID, NZ)), jnp.zeros(1), jnp.zeros(1, jnp.int32), batch["grains"]
  shapes = jax.eval_shape(model.init, jax.random.key(0), *args, batch["tokens"])
  return model, ref.random_params(shapes, scale=0.1)


def apply_of(which):
  model = trained(which)[0]

  def apply(params, z, t, label, batch, step=None):
    return model.apply(params, z, t, label, batch["grains"], batch["tokens"])

  return apply


def dropping(rate):
  return Drop(Tiers((CLASSES,)), p_null=rate)


def loss_of(apply, which=FLOW, mean=MEAN, std=STD, **fields):
  fixed = dict(apply=apply, process=which, factors=FACTORS, drop=dropping(0.1))
  return dct.DiffusionLoss(mean=jnp.asarray(mean), std=jnp.asarray(std), **fixed | fields)


def keys_of(batch, step=7):
  return rng.image_keys(3, step, batch["index"])


@functools.cache
def compiled(which):
  """(batch, norm) -> loss, metrics and gradient by kind, on the host.

  The three kinds share a forward pass, so that one program serves all.
  """

  @jax.jit
  def fn(params, batch, norm):
    def by_kind(params):
      out, parts = [], {}

      def apply(*args):
        out.append(out[0] if out else apply_of(which)(*args))
        return out[0]

      for kind in losses.KINDS:
        loss = loss_of(apply, which, kind=kind, grain_weights=(0.5, 2.0))
        parts[kind] = loss(params, {}, batch, keys_of(batch), norm, jnp.int32(7))
      return {kind: value for kind, (value, _) in parts.items()}, parts

    slopes, parts = jax.jacrev(by_kind, has_aux=True)(params)
    return {kind: (*parts[kind], slopes[kind]) for kind in parts}

  return lambda batch, norm: jax.device_get(fn(trained(which)[1], batch, norm))


@jax.jit
def norm_of(batch):
  return loss_of(None).normalizers(batch)


def largest(tree):
  return max(np.abs(x).max() for x in jax.tree.leaves(tree))


def assert_same(got, want):
  """Losses and metrics to 1e-6 of themselves, gradients to 1e-6 of the largest."""
  chex.assert_trees_all_close(got[:2], want[:2], rtol=1e-6)
  chex.assert_trees_all_close(got[2], want[2], rtol=0, atol=1e-6 * largest(want[2]))


@pytest.mark.parametrize("kind", losses.KINDS)
@pytest.mark.parametrize("which", [EPS, FLOW], ids=["eps", "flow"])
def test_micro_batches_add_up_to_the_whole_batch(which, kind):
  """Strided micro-batches of unequal fine shares, as train_step cuts them; norms of the whole."""
  batch = batch_of()
  norm = norm_of(batch)
  whole = compiled(which)(batch, norm)
  parts = [compiled(which)(rows(batch, slice(i, None, 2)), norm) for i in range(2)]
  assert parts[0][kind][0] != parts[1][kind][0]
  assert_same(jax.tree.map(np.add, *parts)[kind], whole[kind])


def test_an_image_counts_the_same_wherever_it_sits():
  batch = batch_of()
  norm = norm_of(batch)
  whole = compiled(FLOW)(batch, norm)
  order = np.random.default_rng(1).permutation(len(batch["index"]))
  permuted = compiled(FLOW)(rows(batch, order), norm)
  for kind in losses.KINDS:
    assert_same(permuted[kind], whole[kind])
  pair = rows(batch, np.array([0, 3]))
  loss = lambda b: compiled(FLOW)(b, norm)["unique"][0]
  swapped = rows(pair, slice(None, None, -1))
  assert loss(swapped) == pytest.approx(loss(pair), rel=1e-6)
  other = pair | {"index": pair["index"] + 1}
  assert loss(other) != pytest.approx(loss(pair), rel=1e-3)  # noise goes by the index


@pytest.mark.parametrize(("which", "groups"), [(EPS, 2), (FLOW, 1)], ids=["eps", "flow"])
def test_mixed_bucketed_and_padded_steps_agree(which, groups):
  """In slots of several capacities, image by image in its own, and all in the largest."""
  batch = batch_of(6)
  for grains, fine in zip(batch["grains"], (2, 16, 0, 8, 16, 8), strict=True):
    grains.ravel()[:] = np.random.default_rng(fine).permutation(np.arange(16) < fine)
  n = buckets.num_tokens(batch["grains"], FACTORS)
  shapes = slots.mixed(n, 6, 8, groups)
  assert shapes.capacities == (64, 32, 8)
  in_slots = rows(batch, np.argsort(-n, kind="stable")[shapes.order()])
  tables = lambda b, s: b | {"tokens": slots.tables(b["grains"], FACTORS, s)}
  norm = norm_of(batch)
  padded = compiled(which)(tables(batch, slots.one(64, 6)), norm)
  mixed = compiled(which)(tables(in_slots, shapes), norm)
  alone = []
  for i in range(6):
    capacity = 8 * int(buckets.edges_needed(n[i], 8))
    one = tables(rows(batch, slice(i, i + 1)), slots.one(capacity, 1))
    alone.append(compiled(which)(one, norm))
  bucketed = jax.tree.map(lambda *parts: np.sum(parts, axis=0), *alone)
  for kind in losses.KINDS:
    assert_same(mixed[kind], padded[kind])
    assert_same(bucketed[kind], padded[kind])


def test_without_fine_regions_the_refinement_gets_no_gradient():
  for fine in (0.0, 0.5):
    batch = batch_of(fine=fine)
    value, _, grads = compiled(FLOW)(batch, norm_of(batch))["unique"]
    assert np.isfinite(value)
    assert largest(grads["params"]["blocks"]) > 0
    assert (largest(grads["params"]["refine"]) == 0) == (fine == 0)


@functools.cache
def spied(which, speaks, fields):
  """The compiled part of `seen_by`."""
  params = trained(which)[1]  # made here: made inside, it would be a cached tracer

  @jax.jit
  def fn(batch, step):
    seen = {}

    def spy(params, z, t, label, batch, step):
      del step
      out = apply_of(which)(params, z, t, label, batch) if speaks else jnp.zeros_like(z)
      seen.update(z=z, t=t, label=label, out=out)
      return out

    loss, keys = loss_of(spy, which, **dict(fields)), keys_of(batch, step)
    value, _ = loss(params, {}, batch, keys, loss.normalizers(batch), step)
    noise = structure.structured_noise(rng.stream(keys, "noise"), batch["grains"], FACTORS, NZ)
    return seen | {"loss": value, "x0": loss.latents(batch, keys), "noise": noise}

  return fn


def seen_by(batch, which=FLOW, step=7, speaks=False, **fields):
  """What the loss hands to a model, and the loss with its answer (zeros if it does not speak)."""
  return jax.device_get(spied(which, speaks, tuple(fields.items()))(batch, step))


def constant_in_codes(x, grains):
  """Whether every code of a grid [b, h, w, c] has one value in all its cells, by numpy."""
  corner = x[:, ::2, ::2].repeat(2, 1).repeat(2, 2)
  return bool(((x == corner).all(-1) | (to_cells(grains) == 1)).all())


@pytest.mark.parametrize("which", [EPS, FLOW], ids=["eps", "flow"])
def test_what_the_model_sees_and_says_is_constant_inside_a_code(which):
  batch = batch_of()
  seen = [seen_by(batch, which, step, speaks=True) for step in (0, 1, 2)]
  times = np.concatenate([s["t"] for s in seen])
  assert len(np.unique(times)) == 12
  assert np.ptp(times) > 500
  for s in seen:
    assert constant_in_codes(s["z"], batch["grains"])
    assert constant_in_codes(s["out"], batch["grains"])
    assert not constant_in_codes(s["z"], 0 * batch["grains"])  # fine codes do differ
    assert not constant_in_codes(s["out"], 0 * batch["grains"])


def test_the_learned_variance_adds_its_bound_and_flow_has_none():
  batch = batch_of()
  value, metrics, _ = compiled(EPS)(batch, norm_of(batch))["unique"]
  assert set(metrics) == {"mse", "vlb_bits"}
  assert metrics["vlb_bits"] > 0
  assert value == pytest.approx(metrics["mse"] + metrics["vlb_bits"], rel=1e-6)
  value, metrics, _ = compiled(FLOW)(batch, norm_of(batch))["unique"]
  assert set(metrics) == {"mse"}
  assert value == metrics["mse"]


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3, 1.0])
def test_labels_are_dropped_at_their_rate(rate):
  batch = batch_of(4096)
  label = seen_by(batch, drop=dropping(rate))["label"]
  dropped = label == CLASSES
  np.testing.assert_array_equal(label[~dropped], batch["label"][~dropped])
  assert abs(dropped.mean() - rate) <= 3 * np.sqrt(rate * (1 - rate) / 4096)
  if 0 < rate < 1:  # of every class alike
    by_class = [dropped[batch["label"] == c].mean() for c in range(CLASSES)]
    assert max(by_class) - min(by_class) < 0.1


def test_grain_means_is_twice_copied_where_half_of_the_regions_are_fine():
  value = lambda kind, fine: seen_by(batch_of(fine=fine), kind=kind)["loss"]
  assert value("grain_means", 0.5) == pytest.approx(2 * value("copied", 0.5), rel=1e-6)
  assert value("grain_means", 0.25) != pytest.approx(2 * value("copied", 0.25), rel=1e-2)
  assert value("unique", 1.0) == pytest.approx(value("copied", 1.0), rel=1e-6)
  assert value("unique", 0.5) != pytest.approx(value("copied", 0.5), rel=1e-3)


def test_the_loss_of_a_known_error_is_the_mean_over_unique_codes():
  """A model that says 0: the error is the target, eps - x0, summed by numpy code by code."""
  batch = batch_of()
  seen = seen_by(batch, kind="unique")
  target = np.asarray(seen["noise"] - seen["x0"], np.float64)
  errors = []
  for b, i, j in np.ndindex(batch["grains"].shape):
    for p, q in np.ndindex(2, 2) if batch["grains"][b, i, j] else [(0, 0)]:
      errors.append(np.mean(target[b, 2 * i + p, 2 * j + q] ** 2))
  assert seen["loss"] == pytest.approx(np.mean(errors), rel=1e-6)


def test_images_and_steps_draw_their_own_times():
  batch = batch_of(512)
  seen = [seen_by(batch | {"index": np.arange(512) + shift}) for shift in (0, 512)]
  seen.append(seen_by(batch | {"index": np.arange(512)}, step=8))
  t = np.stack([s["t"] for s in seen]) / 1000
  assert len(np.unique(t)) > 0.99 * t.size
  logit = np.log(t / (1 - t))  # logit-normal: N(0, 1)
  assert abs(logit.mean()) < 3 / np.sqrt(t.size)
  assert abs(logit.std() - 1) < 3 / np.sqrt(2 * t.size)


def test_standardised_latents_of_a_cache_have_unit_deviation(tmp_path):
  batch = batch_of(256, seed=5)
  fine = to_cells(batch["grains"])
  scale = np.float32([3.0, 0.2]) * (1 + fine)[..., None]
  mean, log_var = np.split(batch["moments"], 2, -1)
  moments = np.concatenate([mean * scale + 4, 0.1 * log_var + 2 * np.log(scale) - 1], -1)
  names = ("grains", "label", "index")
  records = [
    {"moments": m, "flipped": 0, **{n: batch[n][i] for n in names}} for i, m in enumerate(moments)
  ]
  tiny_cache.write(tmp_path / "latents", {"classes": ClassTable().to_json()}, records)
  cache = latents.LatentSource(tmp_path / "latents")
  mean, std = latents.latent_stats(cache, FACTORS)
  loss = loss_of(None, mean=np.float32(mean), std=np.float32(std))
  z = np.asarray(jax.jit(lambda b: loss.latents(b, keys_of(b)))(cache.read(range(256))))
  assert moments[..., :NZ].std() > 1.5  # they had not, before
  for codes, inside in ((z[:, ::2, ::2], batch["grains"] == 0), (z, fine == 1)):
    np.testing.assert_allclose(codes[inside].std(0), 1, atol=0.05)
    np.testing.assert_allclose(codes[inside].mean(0), 0, atol=0.05)


def config_of(**model):
  diffusion = dict(schedule="flow", prediction="flow", learn_sigma=False, logit_normal=True)
  return ml_collections.ConfigDict({"dct": {"model": model, "diffusion": diffusion}})


def test_a_model_is_made_of_its_config_and_of_its_latents():
  assert (
    dct.make_model(config_of(depth=1, refine_depth=1, width=16, num_heads=2), META)
    == (trained(FLOW)[0])
  )
  preset = dct.make_model(config_of(variant="B", qk_norm=True), META)
  assert (preset.depth, preset.refine_depth, preset.width) == (10, 2, 768)
  assert preset.qk_norm


def test_latents_of_one_grain_are_refused():
  with pytest.raises(UserError, match=r"two grains or more.*\(8,\).*train the stage dit"):
    dct.make_model(config_of(variant="B"), META | {"factors": [8]})


def test_a_process_is_made_of_its_block():
  assert dct.make_process(config_of().dct.diffusion) == FLOW
