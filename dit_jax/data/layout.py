"""Layouts of names: the classes and splits that the folders of a tree of images name.

root/super/sub/* (two levels, or more in the same way), root/sub/* (one superclass, named "all") and
root/* (unconditional), on a disk or in an archive. Under top folders that are all named as splits
are (data.splits), the layout begins one folder deeper; those that only look so are refused.
"""

import os
import re
from collections.abc import Iterable

from dit_jax.core.errors import UserError
from dit_jax.data import splits
from dit_jax.data.hierarchy import ALL, printable
from dit_jax.data.images import EXTENSIONS, ImageFile, order

_IGNORED = frozenset(("__MACOSX",))
_LIKE_SPLIT = re.compile("train|val|test", re.I)


def is_stray(part: str) -> bool:
  """Whether a file or folder of this name does not count: hidden, or left by unpacking."""
  return part.startswith(".") or part in _IGNORED


def is_image(name: str) -> bool:
  """By its extension, in any case."""
  return os.path.splitext(name)[1].lower() in EXTENSIONS


def arrange(
  where: str, entries: Iterable[ImageFile | str], split: str = "", below: str = ""
) -> tuple[list[ImageFile], list[str]]:
  """The images of a tree under their classes, sorted by those, coarsest first, and their names.

  Args:
    where: the tree, for messages.
    entries: its images, and the names of its folders.
    split: data.split.
    below: what every name begins with and no class is made of, as "birds/".

  Returns:
    The images, and the names of folders where a class was expected and no image is.

  Raises:
    UserError: there is no image, or the layout is none of ours.
  """
  entries = list(entries)
  files = [entry for entry in entries if isinstance(entry, ImageFile)]
  if not files:
    raise UserError(
      f"data.path {where!r} holds no image; expected root/super/sub/*, root/sub/* or "
      f"root/* with {', '.join(sorted(EXTENSIONS))}."
    )
  parts = {file.name: tuple(file.name.removeprefix(below).split("/")) for file in files}
  roles = _roles(where, list(parts.values()), split)
  if roles is not None:
    tops = {name: _top(way) for name, way in parts.items()}
    files = [f._replace(split=roles[tops[f.name]]) for f in files if tops[f.name] in roles]
    parts = {file.name: parts[file.name][1:] for file in files}
  _refuse_mixed(where, parts)
  names = [file.name for file in files]
  used = {name.rsplit("/", n)[0] for name in names for n in range(1, name.count("/") + 1)}
  folders = {entry for entry in entries if isinstance(entry, str)} - used
  if roles is not None:
    folders = {name for name in folders if name.removeprefix(below).split("/")[0] in roles}
  files = [_labelled(file, parts[file.name][:-1]) for file in files]
  return sorted(files, key=order), sorted(map(printable, folders))


def _top(way: tuple[str, ...]) -> str:
  return way[0] if len(way) > 1 else ""


def _roles(where: str, ways: list[tuple[str, ...]], split: str) -> dict[str, str] | None:
  """The top folders that are splits, with their parts in training; None: they are classes."""
  tops = set(map(_top, ways))
  if split or tops <= splits.NAMES:
    return splits.choose(tops - {""}, split, repr(where))
  if splits.TRAIN in tops and (held := tops.intersection(splits.HELD)):
    other = printable(min(tops - splits.NAMES)) or "images without a folder"
    raise UserError(
      f"{where!r} has the splits {splits.TRAIN!r} and {min(held)!r} beside {other!r}, so what is a "
      "class is unclear; choose one by data.split, or move the rest away."
    )
  if len(tops) > 1 and all(_LIKE_SPLIT.match(top) for top in tops):
    named = " and ".join(repr(printable(top)) for top in sorted(tops))
    raise UserError(
      f"{where!r} has the top folders {named}, which look like splits and are no names of such; "
      f"rename them {splits.TRAIN!r} and 'val' or 'test', or choose one by data.split."
    )
  return None


def _refuse_mixed(where: str, parts: dict[str, tuple[str, ...]]) -> None:
  by_depth = {}
  for name in sorted(parts):
    by_depth.setdefault(len(parts[name]), name)
  if len(by_depth) > 1:
    some = " and ".join(repr(printable(name)) for name in by_depth.values())
    raise UserError(
      f"images in {where!r} lie at different depths ({some}), so their classes are "
      "unclear; use one of root/super/sub/*, root/sub/*, root/*."
    )


def _labelled(file: ImageFile, folders: tuple[str, ...]) -> ImageFile:
  if not folders:
    return file
  return under(file, tuple(map(printable, folders)))


def under(file: ImageFile, path: tuple[str, ...]) -> ImageFile:
  """The file in a class, given by its names, coarsest first; one alone lies under "all"."""
  *above, superclass, child = path if len(path) > 1 else (ALL, *path)
  return file._replace(superclass=superclass, child=child, above=tuple(above))
