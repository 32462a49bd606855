"""A folder of small pictures, two superclasses of two classes, for the tests of the commands."""

import pathlib

import numpy as np
from PIL import Image

CLASSES = ("finch", "gull", "fern", "moss")  # by id: birds first, then plants
PARENTS = {"birds": CLASSES[:2], "plants": CLASSES[2:]}


def write(root: pathlib.Path, per_class: int = 3, size: int = 40) -> pathlib.Path:
  """Noise on flat colour, so that some regions are fine and others coarse; returns the folder."""
  rng = np.random.default_rng(0)
  for parent, children in PARENTS.items():
    for child in children:
      folder = root / parent / child
      folder.mkdir(parents=True)
      for i in range(per_class):
        image = np.full((size, size, 3), rng.integers(0, 256, 3), np.uint8)
        image[: size // 2] = rng.integers(0, 256, (size // 2, size, 3))
        Image.fromarray(image).save(folder / f"{i}.png")
  return root
