"""One row a class and one for "no class"; nodes of a class tree in three fusions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from dit_jax.core.errors import UserError
from dit_jax.core.tiers import Tiers
from dit_jax.nn.label import FUSIONS, LabelEmbedder, TieredEmbedder


@pytest.mark.parametrize("num_classes", [0, 1, 10])
def test_the_null_row_is_always_there(num_classes):
  model = LabelEmbedder(num_classes, 6)
  null = jnp.array([num_classes])
  params = model.init(jax.random.key(0), null)
  table = params["params"]["table"]["embedding"]
  assert table.shape == (num_classes + 1, 6)
  np.testing.assert_array_equal(model.apply(params, null)[0], table[-1])


def test_rows_start_small_and_only_the_asked_ones_learn():
  model = LabelEmbedder(200, 64)
  label = jnp.array([3, 200, 3])
  params = model.init(jax.random.key(1), label)
  table = params["params"]["table"]["embedding"]
  assert abs(float(table.std()) - 0.02) < 0.001
  grad = jax.grad(lambda p: model.apply(p, label).sum())(params)["params"]["table"]["embedding"]
  assert set(np.flatnonzero(grad.any(1))) == {3, 200}
  np.testing.assert_array_equal(grad[3], np.full(64, 2.0))


TREE = Tiers((5, 3, 2), ((0, 0, 1, 2, 2), (0, 1, 1)))  # nodes: 5, then 3, then 2, then no class
BARE = Tiers(TREE.sizes, TREE.parents, null=False)
NODES = jnp.arange(TREE.num_nodes)


def embedded(fusion, tiers=TREE, width=6, seed=None):
  """(params, rows of all nodes); random parameters where a seed is given."""
  model = TieredEmbedder(tiers, fusion, width)
  nodes = jnp.arange(tiers.num_nodes)
  params = model.init(jax.random.key(0), nodes)["params"]
  if seed is not None:
    draw = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: jnp.asarray(draw.normal(size=x.shape), x.dtype), params)
  return params, model.apply({"params": params}, nodes)


def shapes(params):
  return {"/".join(map(str, path)): x.shape for path, x in flatten_dict(params).items()}


def test_swap_is_one_row_a_node_and_has_no_null_row_of_its_own():
  params, got = embedded("swap", Tiers((10, 3), ((0, 0, 0, 0, 1, 1, 1, 2, 2, 2),), null=False), 4)
  assert shapes(params) == {"table/embedding": (13, 4)}
  np.testing.assert_array_equal(got, params["table"]["embedding"])


def test_swap_has_the_table_of_finediffusion():
  """Its published count of trained weights has (10000 + 11) x 1152 of them in the table."""
  parents = tuple(i % 11 for i in range(10_000))
  model = TieredEmbedder(Tiers((10_000, 11), (parents,), null=False), "swap", 1152)
  params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(1, jnp.int32))
  assert sum(x.size for x in jax.tree.leaves(params)) == 12_153_632 - 489_632 - 131_328


@pytest.mark.parametrize("fusion", ["sum", "concat"])
def test_a_node_is_the_rows_of_the_levels_that_hold_it(fusion):
  params, got = embedded(fusion, seed=0)
  tables = [params[f"level_{i}"]["embedding"] for i in range(3)]
  assert [t.shape for t in tables] == [(5, 6), (3, 6), (2, 6)]
  kernel = params["fuse"]["kernel"] if fusion == "concat" else jnp.tile(jnp.eye(6), (3, 1))
  for node, row in enumerate(TREE.rows()[:-1]):
    parts = [t[i] if i >= 0 else np.zeros(6) for t, i in zip(tables, row, strict=True)]
    np.testing.assert_allclose(got[node], np.concatenate(parts) @ kernel, atol=1e-5)
  np.testing.assert_array_equal(got[-1], params["null"]["embedding"][0])


def test_concat_starts_as_the_sum():
  params, got = embedded("concat")
  np.testing.assert_array_equal(params["fuse"]["kernel"], np.tile(np.eye(6), (3, 1)))
  tables = {k: v for k, v in params.items() if k != "fuse"}
  want = TieredEmbedder(TREE, "sum", 6).apply({"params": tables}, NODES)
  np.testing.assert_allclose(got, want, atol=1e-7)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_null_is_a_row_more_and_nothing_else(fusion):
  without, with_null = embedded(fusion, BARE)[0], embedded(fusion, TREE)[0]
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  assert count(with_null) - count(without) == 6


@pytest.mark.parametrize("fusion", FUSIONS)
def test_tables_start_small(fusion):
  wide = Tiers((200, 100), (tuple(i // 2 for i in range(200)),))
  params = embedded(fusion, wide, width=64)[0]
  for name in {"swap": ["table"], "sum": ["level_0", "level_1"]}.get(fusion, ["level_0"]):
    assert abs(float(params[name]["embedding"].std()) - 0.02) < 0.001


@pytest.mark.parametrize("fusion", ["sum", "concat"])
def test_a_dropped_level_learns_nothing(fusion):
  model = TieredEmbedder(TREE, fusion, 6)
  params, _ = embedded(fusion)
  grad = jax.grad(lambda p: model.apply({"params": p}, jnp.array([6, 10])).sum())(params)
  learnt = {
    k: set(np.flatnonzero(np.any(v["embedding"], 1))) for k, v in grad.items() if k != "fuse"
  }
  assert learnt == {"level_0": set(), "level_1": {1}, "level_2": {1}, "null": {0}}


def test_an_unknown_fusion_is_refused():
  with pytest.raises(UserError, match="choose one of swap, sum, concat"):
    TieredEmbedder(TREE, "add", 6)
