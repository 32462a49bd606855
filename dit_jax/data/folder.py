"""Image folders: the files of a data set, whose classes their folders name (data.layout).

Only images count, by extension; hidden files and folders and what unpacking leaves behind
(__MACOSX) do not. A symbolic link may lead anywhere inside the root but from one split to another;
one that leads back to a folder on the way to it is passed over.
"""

import os
from collections.abc import Iterator

from dit_jax.core.errors import UserError
from dit_jax.data import layout, splits
from dit_jax.data.hierarchy import printable
from dit_jax.data.images import BrokenImage, ImageFile


class Folder:
  """A folder as a store: what it reads is the path of a file, for the decoder to open."""

  def __init__(self, root: str):
    self.where = printable(root)
    self._root, self._top = root, os.path.realpath(root)

  def read(self, name: str) -> str:
    """The path of a file.

    Raises:
      BrokenImage: it is none, or lies outside; a list may name what the folder's own walk passes.
    """
    path = os.path.join(self._root, name)
    if not os.path.isfile(path):  # a pipe would be waited for
      raise BrokenImage("it is not there, or is no file")
    if not holds(self._top, os.path.realpath(path)):
      raise BrokenImage("it leads out of the folder")
    return path


def walk(root: str) -> list[ImageFile | str]:
  """Images below a folder, without classes, and the names of the folders on the way, in any order.

  Raises:
    UserError: the folder is missing or unreadable, or a link leads out of it or to another split.
  """
  if not os.path.isdir(root):
    what = "is not a folder" if os.path.exists(root) else "does not exist"
    raise UserError(f"data.path {printable(root)!r} {what}; give the folder that holds the images.")
  tops = {name: os.path.join(root, name) for name in splits.NAMES}
  tops = {name: os.path.realpath(path) for name, path in tops.items() if os.path.isdir(path)}
  return list(_walk(root, (os.path.realpath(root),), "", tops))


def _walk(
  folder: str, way: tuple[str, ...], prefix: str, tops: dict[str, str]
) -> Iterator[ImageFile | str]:
  """Images below `folder` with names below the root, and the names of the folders on the way.

  `way` has the real paths of the folders from the root down to this one, `tops` those of the top
  folders that are named as splits.
  """
  try:
    entries = list(os.scandir(folder))
  except OSError as e:
    raise UserError(
      f"the folder {printable(folder)!r} cannot be read ({e.strerror}); check its permissions."
    ) from e
  for entry in entries:
    name = prefix + entry.name
    if layout.is_stray(entry.name):
      continue
    try:
      is_dir, is_file = entry.is_dir(), entry.is_file()
    except OSError:  # a link to itself, or into a folder without permission
      is_dir = is_file = False
    if is_dir:
      real = os.path.join(way[-1], entry.name)
      if entry.is_symlink():
        real = os.path.realpath(entry.path)
        if real in way:
          continue  # a loop would never end
        _refuse_link(entry, way[0], name, tops)
      yield name
      yield from _walk(entry.path, (*way, real), f"{name}/", tops)
    elif layout.is_image(entry.name):
      if is_file:
        if entry.is_symlink():
          _refuse_link(entry, way[0], name, tops)
        yield ImageFile(name, entry.stat().st_size)
      elif entry.is_symlink():
        yield ImageFile(name, 0)  # leads nowhere: counted with the broken images, by name


def _refuse_link(entry: os.DirEntry, root: str, name: str, tops: dict[str, str]) -> None:
  target = os.path.realpath(entry.path)
  if not holds(root, target):
    raise UserError(
      f"the link {printable(entry.path)!r} leads out of the image folder, to "
      f"{printable(target)!r}; copy the images in, or give the folder they lie in."
    )
  own = name.split("/")[0]
  for top in sorted(tops.keys() - {own}) if own in tops else ():
    if holds(tops[top], target):
      raise UserError(
        f"the link {printable(entry.path)!r} leads to images of the split {top!r}, which would be "
        "trained on and held out; remove it."
      )


def holds(folder: str, path: str) -> bool:
  """Whether a real path is that of a folder or lies below it."""
  return os.path.commonpath((folder, path)) == folder
