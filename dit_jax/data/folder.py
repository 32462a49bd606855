"""Image folders: the files of a data set, whose classes their folders name (data.layout).

Only images count, by extension; hidden files and folders and what unpacking leaves behind
(__MACOSX) do not. A symbolic link may lead anywhere inside the root; one that leads back to a
folder on the way to it is passed over.
"""

import os
from collections.abc import Iterator

from dit_jax.core.errors import UserError
from dit_jax.data import layout
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
    if os.path.commonpath((os.path.realpath(path), self._top)) != self._top:
      raise BrokenImage("it leads out of the folder")
    return path


def walk(root: str) -> list[ImageFile | str]:
  """Images below a folder, without classes, and the names of the folders on the way, in any order.

  Raises:
    UserError: the folder is missing or unreadable, or a link leads out of it.
  """
  if not os.path.isdir(root):
    what = "is not a folder" if os.path.exists(root) else "does not exist"
    raise UserError(f"data.path {printable(root)!r} {what}; give the folder that holds the images.")
  return list(_walk(root, (os.path.realpath(root),), ""))


def _walk(folder: str, way: tuple[str, ...], prefix: str) -> Iterator[ImageFile | str]:
  """Images below `folder` with names below the root, and the names of the folders on the way.

  `way` has the real paths of the folders from the root down to this one.
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
    if entry.is_dir():
      real = os.path.join(way[-1], entry.name)
      if entry.is_symlink():
        real = os.path.realpath(entry.path)
        if real in way:
          continue  # a loop would never end
        _refuse_outside(entry, way[0])
      yield name
      yield from _walk(entry.path, (*way, real), f"{name}/")
    elif layout.is_image(entry.name):
      if entry.is_file():
        if entry.is_symlink():
          _refuse_outside(entry, way[0])
        yield ImageFile(name, entry.stat().st_size)
      elif entry.is_symlink():
        yield ImageFile(name, 0)  # leads nowhere: counted with the broken images, by name


def _refuse_outside(entry: os.DirEntry, top: str) -> None:
  target = os.path.realpath(entry.path)
  if os.path.commonpath((target, top)) != top:
    raise UserError(
      f"the link {printable(entry.path)!r} leads out of the image folder, to "
      f"{printable(target)!r}; copy the images in, or give the folder they lie in."
    )
