"""A folded model is a plain DiT that computes what the tuned one does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from dit_jax.core import tree as trees
from dit_jax.models.dit import DiT
from dit_jax.weights.fold import fold

FIELDS = dict(depth=2, width=32, num_heads=2, patch=2, grid=(8, 8), num_classes=3)


def drawn(r, **added):
  """(model, random leaves of about their own size) with the fields of a fine-tune."""
  model = DiT(**FIELDS, **added)
  args = jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
  shapes = trees.flatten(jax.eval_shape(model.init, jax.random.key(0), *args)["params"])
  return model, {n: r.normal(size=x.shape, scale=0.3).astype("f") for n, x in shapes.items()}


@pytest.mark.parametrize(
  "added", [{"affine": True}, {"gamma": True}, {"affine": True, "gamma": True}]
)
def test_the_folded_model_computes_what_the_tuned_one_does(added):
  r = np.random.default_rng(0)
  tuned, leaves = drawn(r, **added)
  plain, folded = DiT(**FIELDS), fold(leaves)
  z, t = jnp.asarray(r.normal(size=(4, 8, 8, 4)), "f"), jnp.asarray([0.0, 37.0, 700.0, 999.0])
  nested = lambda x: jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(x, sep="/"))
  run = lambda model, x: model.apply({"params": nested(x)}, z, t, jnp.arange(4))
  want = run(tuned, leaves)
  np.testing.assert_allclose(run(plain, folded), want, atol=1e-5 * float(want.std()))
  kept = {n: x for n, x in leaves.items() if n in folded}  # what was added does act
  assert np.abs(run(plain, kept) - want).max() > 0.1 * float(want.std())


def test_a_plain_model_is_left_as_it_is():
  _, leaves = drawn(np.random.default_rng(0))
  folded = fold(leaves)
  assert list(folded) == list(leaves)
  assert all(np.array_equal(folded[n], x) for n, x in leaves.items())
