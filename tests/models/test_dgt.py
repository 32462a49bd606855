"""The grain transformer: masks with the right law, a loss that is the any-order bound."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_dit as ref
import pytest
from scipy import stats

from dit_jax.core import rng, tree
from dit_jax.core.errors import UserError
from dit_jax.models.dgt import DGT, mask_tokens, masked_cross_entropy

SMALL = dict(grid=(2, 3), num_grains=3, num_classes=4, depth=1, width=8, num_heads=2)


def test_matches_numpy():
  model = DGT(**SMALL)
  cells, label = jnp.array([[[0, 1, 2], [3, 3, 0]]]), jnp.array([4])
  params = ref.random_params(jax.eval_shape(model.init, jax.random.key(0), cells, label))
  p = ref.as_float64(params["params"])
  c = p["label"]["table"]["embedding"][4]
  x = p["grain"]["embedding"][np.asarray(cells[0]).ravel()] + p["position"]["table"]
  want = ref.final(p["final"], ref.blocks(p["blocks"], x, c, 2), c).reshape(2, 3, 3)
  np.testing.assert_allclose(jax.jit(model.apply)(params, cells, label)[0], want, atol=1e-3)


def test_default_size_is_dit_s_without_time_and_starts_uniform():
  shapes = jax.eval_shape(
    DGT(grid=(16, 16)).init, jax.random.key(0), jnp.zeros((1, 16, 16), int), jnp.zeros(1, int)
  )
  block, final = 18 * 384**2 + 15 * 384, 2 * 384**2 + 2 * 384 + 2 * 384 + 2
  assert tree.count(shapes) == 12 * block + final + (256 + 3 + 1) * 384
  model, cells, label = DGT(**SMALL), jnp.zeros((1, 2, 3), int), jnp.zeros(1, int)
  variables = jax.jit(model.init)(jax.random.key(0), cells, label)
  assert not model.apply(variables, cells, label).any()


def test_masks_have_a_uniform_count_and_a_uniform_subset():
  images, cells = 6000, 6
  grains = jnp.ones((images, 2, 3), jnp.int32)
  masked_cells, masked = jax.jit(lambda k: mask_tokens(k, grains, 3))(
    rng.sample_keys(0, jnp.arange(images))
  )
  np.testing.assert_array_equal(masked_cells, np.where(masked, 3, 1))
  count = np.asarray(masked).sum((1, 2))
  assert stats.chisquare(np.bincount(count, minlength=cells + 1)[1:]).pvalue > 1e-3
  pairs = [p for i, p in enumerate(np.asarray(masked).reshape(images, -1)) if count[i] == 2]
  seen = np.unique(np.stack(pairs), axis=0, return_counts=True)[1]
  assert len(seen) == 15
  assert stats.chisquare(seen).pvalue > 1e-3


def test_a_mask_depends_on_its_own_key_alone():
  grains = jnp.asarray(np.random.default_rng(0).integers(0, 2, (5, 4, 4)), jnp.int32)
  keys = rng.sample_keys(3, jnp.arange(5))
  together, alone = mask_tokens(keys, grains, 2), mask_tokens(keys[3:], grains[3:], 2)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[3:], b), together, alone)


def test_loss_with_perfect_conditionals_averages_to_the_log_probability():
  """Over all subsets of a 2 x 2 map: E[(1/n) sum of CE] = -log p(map) / R, exactly."""
  joint = np.random.default_rng(0).dirichlet(np.ones(16)).reshape(2, 2, 2, 2)
  truth = np.array([1, 0, 0, 1])
  by_count = {n: [] for n in range(1, 5)}
  for masked in itertools.product([False, True], repeat=4):
    if not any(masked):
      continue
    seen = joint[tuple(slice(None) if m else slice(v, v + 1) for m, v in zip(masked, truth))]  # noqa: B905
    log_p = np.full((4, 2), -7.0)
    for cell in np.flatnonzero(masked):
      marginal = seen.sum(tuple(a for a in range(4) if a != cell))
      log_p[cell] = np.log(marginal / marginal.sum()) + 2.5  # logits need no normalisation
    per_image = masked_cross_entropy(
      jnp.asarray(log_p.reshape(1, 2, 2, 2), jnp.float32),
      jnp.asarray(truth.reshape(1, 2, 2)),
      jnp.asarray(np.reshape(masked, (1, 2, 2))),
    )
    by_count[sum(masked)].append(float(per_image[0]))
  bound = np.mean([np.mean(values) for values in by_count.values()])
  np.testing.assert_allclose(bound, -np.log(joint[tuple(truth)]) / 4, rtol=1e-5)


def test_cells_that_are_not_masked_give_no_gradient():
  grains = jnp.asarray(np.random.default_rng(0).integers(0, 2, (3, 2, 3)), jnp.int32)
  masked = jnp.asarray(np.random.default_rng(1).random((3, 2, 3)) < 0.5).at[0].set(False)
  logits = jax.random.normal(jax.random.key(0), (3, 2, 3, 2))
  grad = jax.grad(lambda x: masked_cross_entropy(x, grains, masked).sum())(logits)
  np.testing.assert_array_equal(np.asarray(grad != 0).any(-1), masked)
  assert masked_cross_entropy(logits, grains, masked)[0] == 0, "nothing masked: 0, not NaN"


def test_wrong_fields_are_refused_at_construction():
  with pytest.raises(UserError, match="num_grains=1"):
    DGT(**{**SMALL, "num_grains": 1})
  with pytest.raises(UserError, match=r"width=8 .*num_heads=3"):
    DGT(**{**SMALL, "num_heads": 3})
