"""Laws of the state: no two leaves share a buffer, and a donated step may take all of them."""

import chex
import jax
import jax.numpy as jnp
import optax

from dit_jax.training import sharding, state

TX = optax.adam(1e-2)


def params():
  return {"a": jnp.arange(4.0), "b": {"c": jnp.ones((2, 2))}}


def pointers(tree):
  return [x.unsafe_buffer_pointer() for x in jax.tree.leaves(tree)]


def test_ema_starts_equal_and_not_aliased():
  for make in (state.create, jax.jit(state.create, static_argnums=1)):
    s = make(params(), TX)
    chex.assert_trees_all_equal(s.ema, s.params)
    assert len(set(pointers(s))) == len(pointers(s))


def test_a_donated_step_leaves_ema_alone():
  s = state.create(params(), TX)
  move = jax.jit(
    lambda s: s.replace(params=jax.tree.map(lambda x: x + 1, s.params)), donate_argnums=0
  )
  s = move(move(s))
  chex.assert_trees_all_equal(s.ema, params())
  chex.assert_trees_all_equal(s.params, jax.tree.map(lambda x: x + 2, params()))


def test_counters_start_at_zero_and_frozen_is_kept():
  frozen = {"vgg": jnp.ones(3)}
  s = state.create(params(), TX, frozen)
  assert (int(s.step), int(s.bad_streak), int(s.skipped)) == (0, 0, 0)
  chex.assert_trees_all_equal(s.frozen, frozen)
  assert state.create(params(), TX).frozen == {}


def test_a_state_is_born_from_shapes_alone():
  shapes = jax.eval_shape(lambda: state.create(params(), TX))
  chex.assert_trees_all_equal_shapes_and_dtypes(shapes, state.create(params(), TX))


def test_abstract_is_what_is_born_and_where():
  mesh = sharding.make_mesh({"data": -1, "fsdp": 2})
  init = lambda key: {"a": jax.random.normal(key, (256, 512)), "b": jnp.zeros(3)}
  frozen = {"f": jnp.ones((512, 256))}
  born, shapes = state.abstract(init, TX, frozen, mesh)
  places = jax.tree.map(lambda s: s.sharding, shapes)
  got = jax.jit(born, out_shardings=places)(jax.random.key(0), frozen)
  chex.assert_trees_all_equal_shapes_and_dtypes(got, shapes)
  chex.assert_trees_all_equal(got.params, got.ema)
  assert shapes.params["a"].sharding.shard_shape((256, 512)) == (256, 256)
  assert shapes.frozen["f"].sharding.shard_shape((512, 256)) == (256, 256)
  _, ruled = state.abstract(init, TX, frozen, mesh, [("params/a", ())])
  assert ruled.params["a"].sharding.shard_shape((256, 512)) == (256, 512)
