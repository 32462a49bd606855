"""Sets as the tools of StyleGAN and EDM write them: images in a zip or a folder, and dataset.json.

{"labels": [["00000/img00000000.png", 6], ...]}, or null for a set without classes. The folders mean
nothing; a class is a number, and reads as that number with leading zeros.
"""

import json
import os

from dit_jax.core.errors import UserError
from dit_jax.data import columns, layout
from dit_jax.data.hierarchy import printable
from dit_jax.data.images import ImageFile, order

NAME = "dataset.json"


def text_in(folder: str) -> str | None:
  """The dataset.json of a folder, None where there is none.

  Raises:
    UserError: it cannot be read.
  """
  path = os.path.join(folder, NAME)
  if not os.path.isfile(path):
    return None
  try:
    with open(path, encoding="utf-8-sig") as f:
      return f.read()
  except (OSError, ValueError) as e:
    raise UserError(f"{printable(path)!r} cannot be read ({e}); mend the file.") from e


def labelled(
  text: str | None, sizes: dict[str, int], where: str, below: str = ""
) -> list[ImageFile] | None:
  """The images of a set under the classes of its dataset.json, sorted.

  Args:
    text: the file, None where there is none.
    sizes: bytes of every image that is there.
    where: the set, for messages.
    below: what the names of its images begin with and those in the file do not, as "set/".

  Returns:
    None where there is no such file, or one of another kind. An image that it names and the set
    lacks has no bytes, and is skipped by its name when it is read.

  Raises:
    UserError: the file is damaged, an image has no label or two, or a label is no number.
  """
  try:
    content = json.loads(text) if text is not None else None
  except (ValueError, RecursionError) as e:  # without it, folders that mean nothing were classes
    raise UserError(f"{NAME} in {where!r} cannot be read ({e}); make it anew.") from e
  if not isinstance(content, dict) or "labels" not in content:
    return None
  what, labels = f"{NAME} in {where!r}", content["labels"]
  if labels is None:
    return sorted((ImageFile(*item) for item in sizes.items()), key=order)
  if not isinstance(labels, list) or not all(map(_is_pair, labels)):
    raise UserError(
      f"{what} must have labels as [[file, number], ...] or null; others, as vectors, cannot be "
      "used."
    )
  numbers = {below + name.removeprefix("./"): label for name, label in labels}
  if len(numbers) < len(labels) or any(".." in name.split("/") for name in numbers):
    raise UserError(f"{what} names one file twice, or one outside; make it anew.")
  if absent := sizes.keys() - numbers.keys():
    raise UserError(
      f"{what} has no label for {printable(min(absent))!r} and {len(absent) - 1} more; make it "
      "anew."
    )
  names = columns.by_number(numbers.values(), (), what)
  files = (
    layout.under(ImageFile(name, sizes.get(name, 0)), (names[label],))
    for name, label in numbers.items()
  )
  return sorted(files, key=order)


def _is_pair(item) -> bool:
  return (
    isinstance(item, list)
    and [type(part) for part in item] == [str, int]
    and not item[0].startswith("/")
    and "\0" not in item[0]
  )
