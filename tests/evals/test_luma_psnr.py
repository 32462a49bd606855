"""Luma and its PSNR, against the standard's corners and by hand."""

import numpy as np

from dit_jax.evals import superres


def flat(*rgb):
  return np.broadcast_to(np.uint8(rgb), (1, 4, 5, 3))


def test_luma_has_the_range_and_the_weights_of_the_standard():
  for rgb, want in (((0, 0, 0), 16), ((255, 255, 255), 235), ((0, 255, 0), 16 + 128.553)):
    got = superres.luma(flat(*rgb))
    assert got.shape == (1, 4, 5, 1)
    np.testing.assert_allclose(got, want, atol=1e-9)


def test_psnr_is_of_luma_alone():
  white, grey = flat(255, 255, 255), flat(245, 245, 245)
  error = 10 * 219 / 255
  np.testing.assert_allclose(superres.luma_psnr(white, grey), 20 * np.log10(255 / error), rtol=1e-9)
  green, blue = flat(0, 10, 0), flat(0, 0, 10)
  black = flat(0, 0, 0)
  assert superres.luma_psnr(green, black) < superres.luma_psnr(blue, black) - 10
