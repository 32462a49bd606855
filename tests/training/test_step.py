"""Laws of the train step: micro-batches add up, a bad update changes nothing, the mesh neither."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from dit_jax.core import rng
from dit_jax.training import sharding, state, step

TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))
WIDTH = 4


def init(key):
  params = {"block_0": {"kernel": jax.random.normal(key, (WIDTH, WIDTH)), "bias": jnp.zeros(WIDTH)}}
  return state.create(params, TX, frozen={"scale": jnp.full((WIDTH,), 2.0)})


def normalizers(batch):
  return {"rows": jnp.maximum(jnp.sum(batch["weight"]), 1.0)}


def loss_fn(params, frozen, batch, keys, norm, now):
  """A weighted regression on noise; sums over rows, divided by the weight of the whole batch."""
  noise = rng.normal(rng.stream(keys, "noise"), (WIDTH,))
  out = (batch["x"] + noise) @ params["block_0"]["kernel"] * frozen["scale"]
  each = jnp.sum((out + params["block_0"]["bias"] - noise + 0.0 * now) ** 2, axis=-1)
  loss = jnp.sum(batch["weight"] * each) / norm["rows"]
  return loss, {"plain": jnp.sum(each) / 1000.0}


def batch_of(seed=0, rows=8):
  draw = np.random.default_rng(seed)
  return {
    "x": draw.normal(size=(rows, WIDTH)).astype(np.float32),
    "weight": draw.uniform(0.5, 2.0, rows).astype(np.float32),
    "index": draw.permutation(100)[:rows].astype(np.int32),
  }


def maker(**changes):
  kwargs = dict(loss_fn=loss_fn, normalizers=normalizers, tx=TX, ema_decay=0.9999, seed=0)
  return step.make_step(**kwargs | changes)


@pytest.fixture(scope="module")
def jitted():
  return maker()


def test_micro_batches_add_up_to_one_batch(jitted):
  want, want_metrics = jitted(init(jax.random.key(0)), batch_of())
  for accum in (2, 4):
    got, metrics = maker(accum=accum)(init(jax.random.key(0)), batch_of())
    chex.assert_trees_all_close(got, want, rtol=1e-6, atol=1e-6)
    chex.assert_trees_all_close(metrics, want_metrics, rtol=1e-5)


def test_the_order_of_rows_changes_nothing(jitted):
  batch = batch_of()
  order = np.random.default_rng(1).permutation(8)
  shuffled = {name: rows[order] for name, rows in batch.items()}
  a, b = (jitted(init(jax.random.key(0)), rows)[0] for rows in (batch, shuffled))
  chex.assert_trees_all_close(a, b, rtol=1e-6, atol=1e-6)


def test_steps_draw_anew(jitted):
  first, m1 = jitted(init(jax.random.key(0)), batch_of())
  again = init(jax.random.key(0)).replace(step=first.step)
  _, m2 = jitted(again, batch_of())
  assert float(m1["loss"]) != float(m2["loss"])


def test_a_bad_batch_changes_only_the_counters(jitted):
  s, _ = jitted(init(jax.random.key(0)), batch_of())
  before = jax.device_get(s)
  bad = batch_of()
  bad["x"][3, 1] = np.nan
  s, metrics = jitted(s, bad)
  after = jax.device_get(s)
  for name in ("params", "opt", "ema", "frozen"):
    chex.assert_trees_all_equal(getattr(after, name), getattr(before, name))
  assert (after.step, after.bad_streak, after.skipped) == (2, 1, 1)
  assert not np.isfinite(metrics["loss"])
  s, metrics = jitted(s, batch_of())
  assert (int(s.step), int(s.bad_streak), int(s.skipped)) == (3, 0, 1)
  assert np.isfinite(metrics["loss"])


def test_an_infinite_gradient_of_a_finite_loss_is_skipped():
  @jax.custom_jvp
  def trap(x):
    return x

  trap.defjvp(lambda primals, tangents: (primals[0], tangents[0] * jnp.inf))

  def trapped(params, frozen, batch, keys, norm, now):
    return trap(jnp.sum(params["block_0"]["kernel"])) / norm["rows"], {}

  s, metrics = maker(loss_fn=trapped)(init(jax.random.key(0)), batch_of())
  assert np.isfinite(metrics["loss"])
  assert int(s.skipped) == 1


def test_ten_bad_updates_in_a_row_stop_by_name(jitted):
  bad = batch_of()
  bad["x"][:] = np.inf
  s = init(jax.random.key(0))
  for now in range(1, 10):
    s, metrics = jitted(s, bad)
    step.check_finite(jax.device_get(metrics), "dct", now)
  s, metrics = jitted(s, bad)
  with pytest.raises(FloatingPointError, match=r"stage dct: loss=.* at step 10"):
    step.check_finite(jax.device_get(metrics), "dct", 10)


def test_ema_warms_up_to_its_decay():
  got = [float(step.ema_decay_at(jnp.int32(t), 0.999)) for t in (0, 1, 90, 10**6)]
  np.testing.assert_allclose(got, [1 / 10, 2 / 11, 91 / 100, 0.999], rtol=1e-6)


def test_ema_follows_its_formula(jitted):
  start = init(jax.random.key(0))
  old = jax.device_get(start.ema)
  s, _ = jitted(start, batch_of())
  want = jax.tree.map(lambda p, e: 0.9 * p + 0.1 * e, jax.device_get(s.params), old)
  chex.assert_trees_all_close(s.ema, want, rtol=1e-6)


def test_metrics_are_those_of_the_update(jitted):
  s, metrics = jitted(init(jax.random.key(0)), batch_of())
  assert set(metrics) == {"loss", "plain", "grad_norm", "param_norm", "skipped", "bad_streak"}
  squares = [np.sum(np.square(x)) for x in jax.tree.leaves(jax.device_get(s.params))]
  assert float(metrics["param_norm"]) == pytest.approx(np.sqrt(np.sum(squares)), rel=1e-6)


@pytest.mark.parametrize("accum", [1, 2])
def test_a_mesh_changes_placement_not_numbers(jitted, accum):
  mesh = sharding.make_mesh({"data": 2, "fsdp": 2}, jax.devices()[:4])
  shapes = jax.eval_shape(init, jax.random.key(0))
  places = sharding.infer(shapes, mesh, [(".*kernel", ("fsdp",))])
  sharded = jax.jit(init, out_shardings=places)(jax.random.key(0))
  fn = maker(mesh=mesh, state_shardings=places, accum=accum)
  got, _ = fn(sharded, sharding.put_batch(batch_of(), mesh))
  want, _ = jitted(init(jax.random.key(0)), batch_of())
  chex.assert_trees_all_close(jax.device_get(got), jax.device_get(want), rtol=1e-6, atol=1e-6)
  assert got.params["block_0"]["kernel"].sharding.spec == P("fsdp")
