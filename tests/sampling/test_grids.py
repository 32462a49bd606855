"""Every image is found in the grid where it belongs, untouched."""

import numpy as np
from PIL import Image

from dit_jax.sampling import grids


def some_images(n, size=8):
  return np.random.default_rng(0).integers(0, 256, (n, size, size, 3)).astype(np.uint8)


def test_images_stand_in_raster_order_on_white():
  images = some_images(5)
  picture = grids.grid(images, columns=3)
  side = 8 + 2 * grids.MARGIN
  assert picture.shape == (2 * side, 3 * side, 3)
  for i, image in enumerate(images):
    r, c = divmod(i, 3)
    y, x = r * side + grids.MARGIN, c * side + grids.MARGIN
    np.testing.assert_array_equal(picture[y : y + 8, x : x + 8], image)
  assert (picture[side:, 2 * side :] == 255).all()


def test_blocks_keep_width_and_show_titles():
  picture = grids.blocks([("real", some_images(4)), ("samples", some_images(2))], columns=4)
  one = grids.grid(some_images(4), columns=4)
  assert picture.shape[1] == one.shape[1]
  assert picture.shape[0] == 2 * (16 + one.shape[0])
  assert (picture[:16] < 128).any(), "no title was drawn"


def test_overlay_leaves_coarse_regions_and_reddens_fine_ones():
  images = some_images(1)
  grains = np.asarray([[[0, 1], [0, 0]]])
  shown = grids.overlay(images, grains, 2)
  np.testing.assert_array_equal(shown[0, 4:], images[0, 4:])
  np.testing.assert_array_equal(shown[0, :4, :4], images[0, :4, :4])
  fine, was = shown[0, :4, 4:].astype(int), images[0, :4, 4:].astype(int)
  assert (abs(fine - [255, 32, 32]) <= abs(was - [255, 32, 32])).all()


def test_save_png_round_trip(tmp_path):
  image = some_images(1)[0]
  grids.save_png(tmp_path / "a" / "b.png", image)
  np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a" / "b.png")), image)
  assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.png"]
