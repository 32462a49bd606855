"""Laws of stored trees: names round trip, and a difference is told before anything is read."""

import chex
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest

from dit_jax.core.errors import UserError
from dit_jax.training import state, stored


def make():
  return state.create({"a": {"kernel": jnp.ones((2, 3))}, "b": jnp.zeros(2)}, optax.adam(0.1))


def test_nested_names_round_trip():
  s = make()
  nested = stored.nested(s)
  assert nested["opt"]["0"]["mu"]["a"]["kernel"].shape == (2, 3)
  back = stored.like(s, nested)
  assert jax.tree.structure(back) == jax.tree.structure(s)
  chex.assert_trees_all_equal(back, s)


def test_what_is_on_disk_has_the_shapes_and_values_of_what_was_saved(tmp_path):
  nested = stored.nested(make())
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "x", nested)
  shapes = stored.shapes(tmp_path / "x")
  chex.assert_trees_all_equal_shapes_and_dtypes(shapes, nested)
  stored.refuse_difference(shapes, nested, tmp_path)
  got = stored.read(tmp_path / "x", shapes)
  chex.assert_trees_all_equal(got, nested)
  everywhere = jax.sharding.NamedSharding(jax.make_mesh((2,), ("x",)), jax.P())
  got = stored.read(tmp_path / "x", shapes, everywhere)
  assert {x.sharding for x in jax.tree.leaves(got)} == {everywhere}


@pytest.mark.parametrize(
  ("change", "told"),
  [
    (lambda t: t | {"b": jnp.zeros(3)}, r"b: float32\[2\] -> float32\[3\]"),
    (lambda t: t | {"b": jnp.zeros(2, jnp.int32)}, r"b: float32\[2\] -> int32\[2\]"),
    (lambda t: t | {"c": jnp.zeros(2)}, r"c: absent -> float32\[2\]"),
    (lambda t: {"a": t["a"]}, r"b: float32\[2\] -> absent"),
  ],
)
def test_a_difference_is_refused_by_name(change, told):
  tree = make().params
  with pytest.raises(UserError, match=told):
    stored.refuse_difference(tree, change(tree), "here")
