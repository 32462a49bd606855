"""Nodes of a class tree: numbered by level, held by their ancestors, dropped as often as said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.core import rng
from dit_jax.core.errors import UserError
from dit_jax.core.tiers import Drop, Tiers

# children 0..4, genera 5..7, families 8..9, no class 10
TREE = Tiers((5, 3, 2), ((0, 0, 1, 2, 2), (0, 1, 1)))
FLAT = Tiers((4,))
N = 20_000


def keys(n, seed=0):
  return rng.stream(rng.image_keys(seed, 3, jnp.arange(n)), "label_drop")


def test_rows_of_a_node_are_those_of_all_that_holds_it():
  np.testing.assert_array_equal(
    TREE.rows(),
    [
      [0, 0, 0], [1, 0, 0], [2, 1, 1], [3, 2, 1], [4, 2, 1],
      [-1, 0, 0], [-1, 1, 1], [-1, 2, 1],
      [-1, -1, 0], [-1, -1, 1],
      [-1, -1, -1],
    ],
  )  # fmt: skip
  assert (TREE.num_levels, TREE.num_named, TREE.num_nodes) == (3, 10, 11)
  assert Tiers(TREE.sizes, TREE.parents, null=False).num_nodes == 10


def test_ancestors():
  np.testing.assert_array_equal(TREE.ancestors(1), [5, 5, 6, 7, 7, 5, 6, 7, 8, 9, 10])
  np.testing.assert_array_equal(TREE.ancestors(2), [8, 8, 9, 9, 9, 8, 9, 9, 8, 9, 10])
  np.testing.assert_array_equal(TREE.ancestors(3), [10] * 11)
  np.testing.assert_array_equal(FLAT.ancestors(1), [4] * 5)
  np.testing.assert_array_equal(Tiers((0,)).ancestors(1), [0])


@pytest.mark.parametrize(
  ("tree", "level", "message"),
  [
    (TREE, 0, r"1 to 3 \(\"no class\"\)"),
    (TREE, 4, "guidance_level=4"),
    (Tiers(TREE.sizes, TREE.parents, null=False), 3, "1 to 2, its coarsest"),
    (FLAT, 2, r"1 to 1 \(\"no class\"\)"),
  ],
)
def test_a_level_that_is_not_there_is_refused(tree, level, message):
  with pytest.raises(UserError, match=message):
    tree.ancestors(level)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_two_levels_drop_as_often_as_said(p):
  tree = Tiers((5, 3), (TREE.parents[0],), null=False)
  label = jnp.arange(N) % 5
  drawn = np.asarray(Drop(tree, p_drop=p)(keys(N), label))
  dropped = drawn != label
  np.testing.assert_array_equal(drawn[dropped], tree.ancestors(1)[np.asarray(label)[dropped]])
  assert abs(dropped.mean() - p) <= 3 * (p * (1 - p) / N) ** 0.5


def test_more_levels_share_the_drops_and_null_comes_first():
  label = jnp.full(N, 3)
  drawn = np.asarray(Drop(TREE, p_drop=0.2, p_null=0.25)(keys(N), label))
  for node, p in {10: 0.25, 7: 0.75 * 0.1, 9: 0.75 * 0.1, 3: 0.75 * 0.8}.items():
    assert abs((drawn == node).mean() - p) <= 3 * (p * (1 - p) / N) ** 0.5


def test_a_draw_is_its_keys_alone():
  label = jnp.arange(64) % 5
  drop = Drop(TREE, p_drop=0.5, p_null=0.2)
  drawn = drop(keys(64), label)
  take = np.random.default_rng(0).permutation(64)[:20]
  np.testing.assert_array_equal(drop(keys(64)[take], label[take]), drawn[take])
  assert (drop(keys(64, seed=1), label) != drawn).any()


@pytest.mark.parametrize("p", [0.1, 0.37])
def test_without_tiers_a_label_drops_where_its_uniform_is_below_the_rate(p):
  label = jnp.arange(2000) % 4
  want = jnp.where(rng.uniform(keys(2000)) < p, 4, label)
  np.testing.assert_array_equal(jax.jit(Drop(FLAT, p_null=p))(keys(2000), label), want)
