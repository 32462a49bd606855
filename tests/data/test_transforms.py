"""The centre crop: identity where nothing is to do, constants kept, any size and aspect."""

import numpy as np
import pytest
from PIL import Image

from dit_jax.data.transforms import center_crop


def noise(width, height, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, 3), np.uint8)


def test_a_square_of_the_right_size_is_unchanged():
  image = noise(32, 32)
  np.testing.assert_array_equal(center_crop(Image.fromarray(image), 32), image)


@pytest.mark.parametrize(("width", "height"), [(48, 32), (32, 51), (33, 32), (32, 500)])
def test_a_strip_of_the_right_short_side_is_only_cut(width, height):
  image = noise(width, height)
  left, top = (width - 32) // 2, (height - 32) // 2
  want = image[top : top + 32, left : left + 32]
  np.testing.assert_array_equal(center_crop(Image.fromarray(image), 32), want)


@pytest.mark.parametrize(
  "size", [(1, 1), (1, 3000), (3000, 1), (31, 33), (64, 64), (200, 97), (97, 640), (513, 130)]
)
def test_constants_are_kept_at_any_size_and_aspect(size):
  got = center_crop(Image.new("RGB", size, (7, 128, 255)), 32)
  assert got.dtype == np.uint8
  np.testing.assert_array_equal(got, np.broadcast_to([7, 128, 255], (32, 32, 3)))


def test_powers_of_two_are_box_averages():
  image = noise(128, 128)
  want = image.reshape(64, 2, 64, 2, 3).mean((1, 3))
  got = center_crop(Image.fromarray(image), 64)
  np.testing.assert_allclose(got, want, atol=1.0)  # rounded after each axis


@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 300), (90, 41)])
def test_mirroring_commutes_with_cropping(width, height):
  """Even margins: nothing prefers a side."""
  yy, xx = np.mgrid[:height, :width]
  image = np.stack([xx % 256, yy % 256, (xx + yy) % 256], -1).astype(np.uint8)
  got = center_crop(Image.fromarray(image), 32).astype(int)
  mirrored = center_crop(Image.fromarray(image[:, ::-1]), 32)[:, ::-1].astype(int)
  if (round(width * 32 / min(width, height)) - 32) % 2 == 0:
    assert np.abs(got - mirrored).max() <= 1
  else:  # the odd pixel goes to one side: the same picture, one pixel over
    assert np.abs(got[:, 1:] - mirrored[:, :-1]).max() <= 1


def test_the_centre_is_what_is_kept():
  image = np.zeros((50, 150, 3), np.uint8)
  image[:, 50:100] = 255
  assert center_crop(Image.fromarray(image), 25)[:, 1:-1].min() > 250


def test_other_modes_are_our_own_mistake():
  with pytest.raises(AssertionError, match="RGB"):
    center_crop(Image.new("L", (4, 4)), 4)
