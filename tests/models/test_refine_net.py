"""RefineNet: padding is nothing, empty images are safe, coarse maps are untouched."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_dit as ref
import pytest

from dit_jax.core import buckets, slots
from dit_jax.models.refine_net import RefineNet, move_rows, take_rows

FACTORS, ROWS, COLS, WIDTH = (8, 16), 3, 2, 8
FINEST = ROWS * COLS * 4
GRAINS = np.array([[[0, 1], [1, 0], [0, 0]], [[0, 0], [0, 0], [0, 0]], [[1, 1]] * 3], np.int32)
MODEL = RefineNet(1, WIDTH, 2, FACTORS, 4)


def tokens_of(grains, capacity=FINEST + 8):
  return jax.tree.map(jnp.asarray, buckets.token_index(grains, FACTORS, capacity))


def inputs(b=3):
  keys = jax.random.split(jax.random.key(0), 3)
  h = jax.random.normal(keys[0], (b, ROWS * COLS, WIDTH))
  c = jax.random.normal(keys[1], (b, WIDTH))
  return h, c, jax.random.normal(keys[2], (b, 2 * ROWS, 2 * COLS, 4))


@functools.cache
def params():
  shapes = jax.eval_shape(MODEL.init, jax.random.key(0), *inputs(), tokens_of(GRAINS))
  return ref.random_params(shapes)


def loss(params, h, c, z, tokens):
  out = MODEL.apply(params, h, c, z, tokens)
  return jnp.sum(jnp.sin(out)), out


value_and_grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))


def test_what_padding_contains_changes_no_bit_of_value_or_gradient():
  tokens = tokens_of(GRAINS)
  rng = np.random.default_rng(0)
  pad = np.arange(tokens.source.shape[1]) >= np.asarray(tokens.length)[:, None]
  junk = tokens._replace(source=jnp.where(pad, rng.integers(0, FINEST, pad.shape), tokens.source))
  assert not np.array_equal(junk.source, tokens.source)
  a, b = (value_and_grads(params(), *inputs(), t) for t in (tokens, junk))
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_empty_and_full_images_are_finite_and_right():
  (_, out), grads = value_and_grads(params(), *inputs(), tokens_of(GRAINS))
  assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves((out, grads)))
  assert not out[1].any(), "no fine region, no correction"
  assert not any(bool(g[1].any()) for g in grads[1:]), "and no gradient to its inputs"
  assert bool((out[2] != 0).all())

  exact = tokens_of(GRAINS, capacity=FINEST)  # image 2 fills it: n = capacity
  (_, same), same_grads = value_and_grads(params(), *inputs(), exact)
  np.testing.assert_allclose(same, out, atol=2e-5)
  for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(same_grads), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5 * max(1, float(jnp.abs(b).max())))


def test_an_empty_batch_gives_no_gradient_at_all():
  (_, out), grads = value_and_grads(params(), *inputs(), tokens_of(np.zeros_like(GRAINS)))
  assert not any(bool(x.any()) for x in jax.tree.leaves((out, grads)))


def test_only_fine_regions_are_corrected():
  _, out = jax.jit(loss)(params(), *inputs(), tokens_of(GRAINS))
  fine = GRAINS.repeat(2, 1).repeat(2, 2).astype(bool)
  np.testing.assert_array_equal(np.asarray(out != 0).any(-1), fine)


def test_tokens_see_only_their_own_image():
  h, c, z = inputs()
  grads = jax.jit(jax.grad(lambda z: loss(params(), h, c, z, tokens_of(GRAINS))[1][0].sum()))(z)
  fine = GRAINS[0].repeat(2, 0).repeat(2, 1).astype(bool)
  np.testing.assert_array_equal(np.asarray(grads[0] != 0).any(-1), fine)
  assert not grads[1:].any()


def test_starts_at_zero():
  variables = jax.jit(MODEL.init)(jax.random.key(0), *inputs(), tokens_of(GRAINS))
  assert not MODEL.apply(variables, *inputs(), tokens_of(GRAINS)).any()


@pytest.mark.parametrize("bad", [3, 100])
def test_take_rows_gives_zeros_out_of_range(bad):
  x, index = jnp.ones((1, 3, 2)), jnp.array([[2, bad, 0]])
  np.testing.assert_array_equal(take_rows(x, index)[0].any(-1), [True, False, True])


def test_the_gradient_of_moved_rows_is_that_of_a_gather():
  """Both ways, against what jax derives by itself for the same tables."""
  draw = np.random.default_rng(0)
  grains = draw.integers(0, 3, (2, 2, 3)).astype(np.int32)
  tokens = jax.tree.map(jnp.asarray, buckets.token_index(grains, (4, 8, 16), 60))
  value = lambda x, take, *tables: jnp.sum(jnp.sin(take(x, *tables)))
  for index, inverse in ((tokens.source, tokens.slot), (tokens.slot, tokens.source)):
    x = jnp.asarray(draw.normal(size=(2, inverse.shape[1], 3)), jnp.float32)
    got = jax.value_and_grad(value)(x, move_rows, index, inverse)
    want = jax.value_and_grad(value)(x, take_rows, index)
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("groups", [1, 2])
def test_sub_batches_come_back_in_the_order_of_the_rows(groups):
  """Every row of a mixed batch gets what it gets alone, whatever stands beside it."""
  draw = np.random.default_rng(1)
  grains = (draw.random((8, ROWS, COLS)) < np.linspace(0, 1, 8)[:, None, None]).astype(np.int32)
  n = buckets.num_tokens(grains, FACTORS)
  shapes = slots.mixed(n, 8, 4, groups)
  grains = grains[np.argsort(-n, kind="stable")][shapes.order()]
  h, c, z = inputs(8)
  tables = jax.tree.map(jnp.asarray, slots.tables(grains, FACTORS, shapes))
  refine = jax.jit(MODEL.apply)
  got, want = (refine(params(), h, c, z, tokens) for tokens in (tables, tokens_of(grains)))
  assert len(tables) > 1
  np.testing.assert_allclose(got, want, atol=2e-5)
  np.testing.assert_array_equal(got != 0, want != 0)


@pytest.mark.parametrize("window", [1, 2, 3])
def test_a_window_is_all_that_a_token_sees(window):
  """The gradient of a cell's correction reaches the latents of its own window and no others."""
  model = MODEL.clone(window=window)
  tokens = tokens_of(np.ones_like(GRAINS))
  h, c, z = inputs()

  @jax.jit
  def reached(z):
    said = lambda z: model.apply(params(), h, c, z, tokens)[0, 0, 0].sum()
    return jax.grad(said)(z)[0].any(-1)

  want = np.zeros((2 * ROWS, 2 * COLS), bool)
  want[: 2 * window, : 2 * window] = True
  np.testing.assert_array_equal(reached(z), want)


def test_a_window_as_large_as_the_image_is_none():
  args = (params(), *inputs(), tokens_of(GRAINS))
  whole = jax.jit(MODEL.apply)(*args)
  np.testing.assert_allclose(jax.jit(MODEL.clone(window=3).apply)(*args), whole, atol=1e-6)
  assert np.abs(jax.jit(MODEL.clone(window=1).apply)(*args) - whole).max() > 1e-3
