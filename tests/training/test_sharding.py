"""Laws of placement: meshes cover all devices, the first rule wins, nothing splits unevenly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from dit_jax.core import tree as trees
from dit_jax.core.errors import UserError
from dit_jax.training import sharding


def mesh(**sizes):
  return sharding.make_mesh(sizes, jax.devices()[:8])


@pytest.mark.parametrize(
  ("sizes", "shape"),
  [
    ({}, None),
    ({"data": 8}, (8, 1, 1)),
    ({"data": -1}, (8, 1, 1)),
    ({"data": 2, "fsdp": -1}, (2, 4, 1)),
    ({"data": 2, "fsdp": 2, "tensor": 2}, (2, 2, 2)),
    ({"data": 3}, None),
    ({"data": -1, "fsdp": 3}, None),
    ({"data": -1, "fsdp": -1}, None),
    ({"data": 0, "fsdp": 8}, None),
    ({"model": 8}, None),
  ],
  ids=str,
)
def test_make_mesh_covers_all_devices_or_refuses(sizes, shape):
  if shape is None:
    with pytest.raises(UserError, match="mesh"):
      mesh(**sizes)
  else:
    m = mesh(**sizes)
    assert m.devices.shape == shape
    assert set(m.devices.flat) == set(jax.devices()[:8])
    assert set(m.axis_types) == {AxisType.Auto}


def specs(shapes, m, rules=()):
  return {name: s.spec for name, s in trees.flatten(sharding.infer(shapes, m, rules)).items()}


def array(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_big_leaves_are_split_over_fsdp_by_their_largest_divisible_dimension():
  tree = {"a": array(256, 1024), "b": array(1023, 512), "c": array(3, 3), "d": array(333, 333)}
  assert specs(tree, mesh(data=2, fsdp=4)) == {
    "a": P(None, "fsdp"),
    "b": P(None, "fsdp"),
    "c": P(),  # small
    "d": P(),  # nothing divides
  }


def test_without_fsdp_everything_is_everywhere():
  assert specs({"a": array(1024, 1024)}, mesh(data=8)) == {"a": P()}


def test_the_first_rule_wins_and_must_match_the_whole_path():
  rules = [(r".*mlp/in/kernel", (None, "tensor")), (r".*mlp/.*", ()), (r"kernel", ("data",))]
  tree = {"mlp": {"in": {"kernel": array(4, 8)}, "out": {"kernel": array(512, 512)}}}
  tree["kernel"] = array(8)
  got = specs({"params": tree}, mesh(data=2, fsdp=2, tensor=2), rules)
  assert got["params/mlp/in/kernel"] == P(None, "tensor")
  assert got["params/mlp/out/kernel"] == P()
  assert got["params/kernel"] == P()


@pytest.mark.parametrize(
  ("spec", "told"),
  [(("model",), "unknown axis"), (("fsdp", None), "dimensions"), (("fsdp",), "not a multiple")],
)
def test_a_rule_that_does_not_fit_is_refused(spec, told):
  with pytest.raises(UserError, match=told):
    sharding.infer({"bias": array(6)}, mesh(data=2, fsdp=4), [("bias", spec)])


def test_every_decision_has_a_line():
  tree = {"a": array(256, 1024), "b": array(3)}
  lines = sharding.describe(tree, sharding.infer(tree, mesh(data=2, fsdp=4)))
  assert lines == ["a [256, 1024] split over (None, 'fsdp')", "b [3] on every device"]


@pytest.mark.parametrize(("batch", "accum", "nearest"), [(12, 1, 16), (8, 2, 16), (3, 1, 8)])
def test_an_uneven_batch_is_refused_with_the_nearest(batch, accum, nearest):
  with pytest.raises(UserError, match=f"nearest is {nearest}"):
    sharding.check_batch(batch, accum, mesh(data=2, fsdp=4))
  sharding.check_batch(nearest, accum, mesh(data=2, fsdp=4))


@pytest.mark.parametrize(("batch", "accum"), [(0, 1), (8, 0), (-8, 1)])
def test_an_empty_batch_is_refused(batch, accum):
  with pytest.raises(UserError, match="batch_size"):
    sharding.check_batch(batch, accum, mesh(data=8))


def test_put_batch_keeps_values_and_splits_rows():
  m = mesh(data=2, fsdp=4)
  rows = {"x": np.arange(48.0, dtype=np.float32).reshape(16, 3), "index": np.arange(16)}
  got = sharding.put_batch(rows, m)
  np.testing.assert_array_equal(got["x"], rows["x"])
  assert got["x"].sharding == sharding.batch_sharding(m)
  assert {s.data.shape for s in got["x"].addressable_shards} == {(2, 3)}
