"""Pictures of pictures: grids, labelled blocks, grain maps drawn over images."""

import numpy as np
from einops import rearrange

from dit_jax.core import files
from dit_jax.core.typing import UInt8

MARGIN = 2


def grid(images: UInt8[np.ndarray, "n h w 3"], columns: int = 8) -> np.ndarray:
  """Images in raster order on white, `columns` a row, [H, W, 3] uint8."""
  images = np.asarray(images)
  pad = -len(images) % columns
  images = np.pad(images, ((0, pad), (0, 0), (0, 0), (0, 0)), constant_values=255)
  images = np.pad(images, ((0, 0), (MARGIN,) * 2, (MARGIN,) * 2, (0, 0)), constant_values=255)
  return rearrange(images, "(r c) h w d -> (r h) (c w) d", c=columns)


def blocks(titled: list[tuple[str, np.ndarray]], columns: int = 8) -> np.ndarray:
  """Grids one under the other, each under its title, [H, W, 3] uint8."""
  parts = []
  for title, images in titled:
    picture = grid(images, columns)
    parts += [_title(title, picture.shape[1]), picture]
  return np.concatenate(parts)


def overlay(
  images: UInt8[np.ndarray, "n h w 3"], grains: np.ndarray, num_grains: int
) -> np.ndarray:
  """Tints the fine regions red, the more the finer: what was coarse and what was fine."""
  cell = images.shape[1] // grains.shape[1]
  strength = np.repeat(np.repeat(grains, cell, 1), cell, 2)[..., None] / max(num_grains - 1, 1)
  red = np.asarray([255, 32, 32])
  return np.round(images + 0.4 * strength * (red - images.astype(float))).astype(np.uint8)


def save_png(path, image: np.ndarray) -> None:
  """Writes a picture in one move, so that a killed run leaves no half of one."""
  from PIL import Image

  with files.in_one_move(path) as temporary:
    Image.fromarray(image).save(temporary, format="PNG")


def _title(text: str, width: int) -> np.ndarray:
  from PIL import Image, ImageDraw

  strip = Image.new("RGB", (width, 16), "white")
  ImageDraw.Draw(strip).text((MARGIN, 2), text, fill="black")
  return np.asarray(strip)
