"""Rows of one label table are what a model's own embedder gives every node of its tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.core.tiers import Tiers
from dit_jax.models.dit import DiT
from dit_jax.nn.label import FUSIONS, label_embedder
from dit_jax.tasks import export

SIZES, PARENTS = (5, 3, 2), ((0, 0, 1, 2, 2), (0, 1, 1))


@pytest.mark.parametrize("null", [True, False])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_named_node_has_its_row_and_the_null_is_the_last(fusion, null):
  model = DiT(1, 8, 2, 2, (4, 4), tiers=Tiers(SIZES, PARENTS, null), fusion=fusion)
  embed, nodes = label_embedder(model.clone(parent=None)), jnp.arange(sum(SIZES) + null)
  shapes = embed.init(jax.random.key(0), nodes)["params"]
  r = np.random.default_rng(0)
  params = jax.tree.map(lambda x: r.normal(size=x.shape).astype("f"), shapes)
  rows, want = export.label_rows(model, params), embed.apply({"params": params}, nodes)
  assert rows.shape == (sum(SIZES) + 1, 8)
  np.testing.assert_allclose(rows[: len(want)], want, atol=1e-6)
  if not null:
    assert not rows[-1].any()


def test_a_table_of_classes_is_taken_as_it_is():
  table = np.random.default_rng(0).normal(size=(4, 8)).astype("f")
  model = DiT(1, 8, 2, 2, (4, 4), num_classes=3)
  assert np.array_equal(export.label_rows(model, {"table": {"embedding": table}}), table)
