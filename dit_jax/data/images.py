"""One image file: where it lies, and how it becomes plain RGB whatever the file holds."""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from dit_jax.data.hierarchy import printable

EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"))
MAX_PIXELS = 80_000_000  # a few kilobytes can claim gigabytes; below the size Pillow warns at
WHITE = "#ffffff"
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")  # no decoder runs that we did not ask for


class BrokenImage(Exception):
  """An image that cannot be read; says why."""


class ImageFile(NamedTuple):
  """An image of a set.

  Attributes:
    name: path below the root of the set, as the file system spells it; what a store reads by.
    num_bytes: size of the file, or of what it is stored in; 0 where it cannot be told.
    superclass: printable name, "" in an unconditional set.
    child: printable name, likewise.
    above: names of the levels over the superclass, coarsest first; most sets have none.
    split: the part of a set that says itself which images it holds out: "train", "heldout", or "".
  """

  name: str
  num_bytes: int
  superclass: str = ""
  child: str = ""
  above: tuple[str, ...] = ()
  split: str = ""


def order(file: ImageFile) -> tuple[str, ...]:
  """The sort key of a set: the same list on every file system."""
  return *file.above, file.superclass, file.child, printable(file.name), file.name


def decode(data: str | bytes, background: str = WHITE) -> Image.Image:
  """The first frame of an image as RGB: upright by its EXIF tag, transparency over a colour.

  Args:
    data: the path of a file, or its bytes.
    background: the colour, "#rrggbb".

  Raises:
    BrokenImage: the file is unreadable, truncated, no image, or claims more than MAX_PIXELS.
  """
  try:
    with Image.open(_readable(data), formats=_FORMATS) as image:
      if image.width * image.height > MAX_PIXELS:
        raise BrokenImage(f"{image.width} x {image.height} is more than {MAX_PIXELS:,} pixels")
      return _to_rgb(ImageOps.exif_transpose(image), background)
  except BrokenImage:
    raise
  except Exception as e:  # a decoder meets arbitrary bytes, and answers with arbitrary exceptions
    raise BrokenImage(f"{type(e).__name__}: {e}") from e


def short_side(data: str | bytes) -> int:
  """Pixels of the short side, from the header alone; 0 where there is none."""
  try:
    with Image.open(_readable(data), formats=_FORMATS) as image:
      return min(image.size)
  except Exception:  # as in `decode`, which says what is wrong
    return 0


def _readable(data: str | bytes):
  return io.BytesIO(data) if isinstance(data, bytes) else data


def _to_rgb(image: Image.Image, background: str) -> Image.Image:
  if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
  if image.has_transparency_data:
    below = Image.new("RGBA", image.size, background)
    image = Image.alpha_composite(below, image.convert("RGBA"))
  return image.convert("RGB")
