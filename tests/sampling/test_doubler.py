"""Doubling in tiles: a seam never shows, and a picture depends on nothing but itself."""

import itertools
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.models.superres import PictureEnhancer
from dit_jax.nn import fourier_pair
from dit_jax.sampling import generate, superres

MODEL = PictureEnhancer(depth=1, width=8)


def enhance(params, low):
  return MODEL.apply(params, low.astype(jnp.float32) / 127.5 - 1)


@pytest.fixture(scope="module")
def params():
  """Weights that change a picture by several levels everywhere."""
  shapes = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  draw = np.random.default_rng(0)
  return jax.tree.map(lambda s: jnp.asarray(draw.normal(0, 0.1, s.shape), s.dtype), shapes)


def pictures(n, h, w) -> np.ndarray:
  """Waves of all lengths, with edges and grain."""
  draw, (y, x) = np.random.default_rng(0), np.mgrid[:h, :w]
  k = draw.uniform(-1.2, 1.2, (n, 3, 2, 1, 1))
  image = 128 + 60 * np.sin(k[:, :, 0] * y + k[:, :, 1] * x) + draw.normal(0, 8, (n, 3, h, w))
  image[:, :, h // 2 :] += 50
  return np.clip(np.moveaxis(image, 1, -1), 0, 255).astype(np.uint8)


IMAGES = pictures(2, 100, 72)


@pytest.fixture(scope="module")
def doublers():
  """One whole picture a call, and tiles of 64."""
  one = jax.devices()[:1]
  return [superres.Doubler(enhance, tile, 2, one) for tile in (512, 64)]


def test_tiles_cover_and_share_enough():
  for size, tile in ((64, 64), (65, 64), (100, 64), (300, 128), (1000, 128)):
    starts = superres._starts(size, tile)
    assert (starts[0], starts[-1]) == (0, size - tile)
    assert all(0 < b - a <= tile - superres.OVERLAP for a, b in itertools.pairwise(starts))
    total = np.zeros(2 * size)
    for start, share in zip(starts, superres._shares(starts, tile), strict=True):
      assert ((share > 0) & (share <= 1)).all()
      total[2 * start : 2 * (start + tile)] += share
    np.testing.assert_allclose(total, 1, rtol=1e-6)


def test_tiled_equals_whole(params, doublers):
  """To 0.3 of 255 levels on average, in the worst pixel of these harsh pictures to 2.5.

  What alternates from pixel to pixel beyond a tile's 16 pixels of room is missed: the interpolant
  of a spectrum that ends sharply decays as one over the distance.
  """
  whole, tiled = (doubler.blended(params, IMAGES) for doubler in doublers)
  assert whole.shape == (2, 200, 144, 3)
  levels = 127.5 * np.abs(tiled - whole)
  assert levels[:, 16:-16, 16:-16].mean() < 0.3
  assert levels[:, 16:-16, 16:-16].max() < 2.5


def test_a_seam_without_room_and_blending_would_show(params, doublers):
  """The bound above is no property of the network: pieces simply joined break it."""
  whole = doublers[0].blended(params, IMAGES)
  halves = [doublers[0].blended(params, half) for half in (IMAGES[:, :50], IMAGES[:, 50:])]
  levels = 127.5 * np.abs(np.concatenate(halves, axis=1) - whole)
  assert levels[:, 98:102, 16:-16].max() > 10


def test_a_picture_depends_on_itself_alone(params, doublers):
  both = doublers[1](params, IMAGES)
  assert (both.dtype, both.shape) == (np.uint8, (2, 200, 144, 3))
  for i in range(2):
    np.testing.assert_array_equal(doublers[1](params, IMAGES[i : i + 1])[0], both[i])
  on_eight = superres.Doubler(enhance, 64, 2)
  np.testing.assert_array_equal(on_eight(params, IMAGES), both)


def test_bytes_are_the_blended_picture_rounded_as_everywhere(params, doublers):
  """To one level: the two fuse the product and the sum differently."""
  want = np.asarray(generate.to_uint8(doublers[1].blended(params, IMAGES)), int)
  got = doublers[1](params, IMAGES)
  assert np.abs(got - want).max() <= 1
  assert (got == want).mean() > 0.999


def test_memory_is_that_of_the_result_and_a_row_of_tiles():
  """Not of a second copy in float32, which is four times the result."""
  repeat = lambda params, low: jnp.repeat(jnp.repeat(low / 127.5 - 1, 2, 1), 2, 2)
  doubler = superres.Doubler(repeat, 64, 2, jax.devices()[:1])
  tall = pictures(1, 1500, 96)
  doubler({}, tall[:, :100])  # compiled
  tracemalloc.start()
  large = doubler({}, tall)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  np.testing.assert_array_equal(large, tall.repeat(2, 1).repeat(2, 2))
  assert peak < 3 * large.nbytes


def test_with_the_network_at_zero_it_is_the_padded_spectrum(params, doublers):
  zero = jax.tree.map(jnp.zeros_like, params)
  room = superres.PAD
  pad = ((0, 0), (room, room), (room, room), (0, 0))
  wide = jnp.asarray(np.pad(IMAGES, pad, mode="reflect"), jnp.float32) / 127.5 - 1
  want = jax.jit(lambda x: fourier_pair.up(x, centred=True))(wide)
  want = want[:, 2 * room : -2 * room, 2 * room : -2 * room]
  np.testing.assert_allclose(doublers[0].blended(zero, IMAGES), want, atol=1e-5)


@pytest.mark.parametrize(("h", "w"), [(6, 5), (1, 1), (1, 70)])
def test_flat_pictures_stay_flat_and_small_ones_are_padded_more_than_once(params, doublers, h, w):
  zero = jax.tree.map(jnp.zeros_like, params)
  small = np.full((1, h, w, 3), 200, np.uint8)
  np.testing.assert_array_equal(doublers[1](zero, small), np.full((1, 2 * h, 2 * w, 3), 200))
