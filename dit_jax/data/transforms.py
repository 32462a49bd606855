"""From a picture of any size and shape to a square of ours."""

import numpy as np
from PIL import Image

_MAX_ASPECT = 16  # longer strips are cut first: scaled up whole, one would fill the memory


def center_crop(image: Image.Image, size: int) -> np.ndarray:
  """The centre square, scaled so that the short side is `size`.

  Halved by box filter while at least twice too large, then bicubic: the crop of guided diffusion
  (ADM), which DiT and its successors evaluate against. A square of the right size is unchanged.

  Args:
    image: mode RGB.
    size: side of the result in pixels.

  Returns:
    uint8 [size, size, 3].
  """
  assert image.mode == "RGB", f"convert the image to RGB first, not {image.mode}"
  image = _cut(image, tuple(min(side, _MAX_ASPECT * min(image.size)) for side in image.size))
  while min(image.size) >= 2 * size:
    image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
  scale = size / min(image.size)
  scaled = (round(image.width * scale), round(image.height * scale))
  if scaled != image.size:
    image = image.resize(scaled, Image.Resampling.BICUBIC)
  return np.asarray(_cut(image, (size, size)))


def _cut(image: Image.Image, size: tuple[int, int]) -> Image.Image:
  """The centre of `size` (width, height)."""
  if image.size == size:
    return image
  left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
  return image.crop((left, top, left + size[0], top + size[1]))
