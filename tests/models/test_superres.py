"""The enhancements: what they must keep, where they start, what they see, how large they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.core import tree as trees
from dit_jax.core.errors import UserError
from dit_jax.models.superres import FourierBlock, LatentEnhancer, PictureEnhancer
from dit_jax.nn import fourier_pair as pair


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def filled(model, *args, scale=0.1):
  """Parameters with no zero among them."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), *args)
  draw = np.random.default_rng(0)
  return jax.tree.map(lambda s: jnp.asarray(draw.normal(0, scale, s.shape), s.dtype), shapes)


@pytest.fixture(scope="module")
def latent():
  """(apply, params, inputs) of a small E on latents; nothing in it is zero."""
  model = LatentEnhancer(depth=2, width=8)
  args = normal(1, 2, 4, 6, 4), normal(2, 2, 8, 12, 4), jnp.asarray([3.0, 200.0])
  return jax.jit(model.apply), filled(model, *args), args


@pytest.fixture(scope="module")
def picture():
  model = PictureEnhancer(depth=1, width=8)
  y = normal(3, 2, 8, 10, 3)
  return jax.jit(model.apply), filled(model, y), y


def test_the_low_band_of_a_latent_is_kept_whatever_the_network_is(latent):
  apply, params, (y, z, t) = latent
  x = apply(params, y, z, t)
  assert x.shape == z.shape
  assert np.abs(x - pair.up(y)).max() > 0.1
  np.testing.assert_allclose(pair.down(x), y, atol=1e-5)


def test_enhancements_start_as_the_zero_padded_spectrum(picture):
  model = LatentEnhancer(depth=1, width=8)
  args = normal(1, 1, 4, 4, 4), normal(2, 1, 8, 8, 4), jnp.ones(1)
  x = jax.jit(lambda *args: model.apply(model.init(jax.random.key(0), *args), *args))(*args)
  np.testing.assert_allclose(x, pair.up(args[0]), atol=1e-6)
  apply, params, y = picture
  params = jax.jit(PictureEnhancer(depth=1, width=8).init)(jax.random.key(0), y)
  np.testing.assert_allclose(apply(params, y), pair.up(y, centred=True), atol=1e-6)


def test_a_latent_s_enhancement_depends_on_all_that_it_is_given(latent):
  apply, params, (y, z, t) = latent
  x = apply(params, y, z, t)
  for other in ((y + 0.1, z, t), (y, z.at[:, 0, 0].add(1.0), t), (y, z, t + 50)):
    assert np.abs(apply(params, *other) - x).max() > 1e-3
  row = apply(params, y.at[0].set(0.0), z.at[0].set(1.0), t)[1]  # and on nothing of its neighbours
  np.testing.assert_allclose(row, x[1], atol=1e-5)


def test_a_fourier_block_reaches_across_the_grid():
  """Cell (0, 0) moves the opposite cell through the spectrum, and through nothing else."""
  block, c = FourierBlock(), normal(1, 1, 64)
  x = normal(2, 1, 16, 16, 4)
  params = filled(block, x, c, scale=0.5)
  moved = jax.jit(lambda p: block.apply(p, x.at[:, 0, 0].add(1.0), c) - block.apply(p, x, c))
  assert np.abs(moved(params)[0, 8, 8]).max() > 1e-3
  blind = {"params": params["params"] | {"spectral": {"kernel": jnp.zeros((8, 8))}}}
  assert np.abs(moved(blind)[0, 8, 8]).max() < 1e-6


@pytest.mark.parametrize(("depth", "millions"), [(2, 0.13), (3, 0.19), (4, 0.25)])
def test_the_latent_s_network_is_small(depth, millions):
  model = LatentEnhancer(depth=depth)
  args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, 16, 16, 4), (1, 32, 32, 4), (1,))]
  count = trees.count(jax.eval_shape(model.init, jax.random.key(0), *args))
  assert round(count / 1e6, 2) == millions


def test_an_odd_latent_grid_is_refused():
  model, z = LatentEnhancer(), normal(0, 1, 7, 8, 4)
  with pytest.raises(UserError, match="down by r=2 from n=7"):
    model.init(jax.random.key(0), pair.down(z), z, jnp.ones(1))


def test_only_the_correction_of_the_small_picture_moves_its_low_band(picture):
  apply, params, y = picture
  x = apply(params, y)
  assert x.shape == (2, 16, 20, 3)
  low = jax.tree_util.tree_map_with_path(
    lambda path, v: 0 * v if "low" in trees.path_name(path) else v, params
  )
  kept = apply(low, y)
  np.testing.assert_allclose(pair.down(kept, centred=True), y, atol=1e-4)
  assert np.abs(pair.high_pass(kept, centred=True)).max() > 0.01
  assert np.abs(pair.down(x, centred=True) - y).max() > 0.01
  high = lambda x: pair.high_pass(x, centred=True)
  np.testing.assert_allclose(high(x), high(kept), atol=1e-3)


def test_a_bfloat16_trunk_keeps_the_pair_exact(picture):
  _, params, y = picture
  model = PictureEnhancer(depth=1, width=8, dtype=jnp.bfloat16)
  zero = jax.tree.map(jnp.zeros_like, params)
  np.testing.assert_allclose(jax.jit(model.apply)(zero, y), pair.up(y, centred=True), atol=1e-6)
  assert jax.eval_shape(model.apply, params, y).dtype == jnp.float32
