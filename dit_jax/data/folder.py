"""Image folders: the files of a data set and the classes that their folders name.

Layouts: root/super/sub/* (two levels, or more in the same way), root/sub/* (one superclass, named
"all") and root/* (unconditional). Only images count, by extension; hidden files and folders and
what unpacking leaves behind (__MACOSX) do not. A symbolic link may lead anywhere inside the root;
one that leads back to a folder on the way to it is passed over.
"""

import os
from collections.abc import Iterator

from dit_jax.core.errors import UserError
from dit_jax.data.hierarchy import ALL, printable
from dit_jax.data.images import EXTENSIONS, ImageFile, order

_IGNORED = frozenset(("__MACOSX",))


def scan(root: str) -> tuple[list[ImageFile], list[str]]:
  """All images below a folder, sorted by their classes, coarsest first, and their names.

  Args:
    root: the folder.

  Returns:
    The images, and the names of folders where a class was expected and no image is.

  Raises:
    UserError: the folder is missing, unreadable or without images, or its layout is none of ours.
  """
  if not os.path.isdir(root):
    what = "is not a folder" if os.path.exists(root) else "does not exist"
    raise UserError(f"data.path {printable(root)!r} {what}; give the folder that holds the images.")
  entries = list(_walk(root, (os.path.realpath(root),), ""))
  names = [entry.name for entry in entries if isinstance(entry, ImageFile)]
  if not names:
    raise UserError(
      f"data.path {printable(root)!r} holds no image; expected root/super/sub/*, root/sub/* or "
      f"root/* with {', '.join(sorted(EXTENSIONS))}."
    )
  _refuse_mixed(root, names)
  files = [_labelled(entry) for entry in entries if isinstance(entry, ImageFile)]
  used = {name.rsplit("/", n)[0] for name in names for n in range(1, name.count("/") + 1)}
  empty = {entry for entry in entries if isinstance(entry, str)} - used
  return sorted(files, key=order), sorted(map(printable, empty))


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
    if entry.name.startswith(".") or entry.name in _IGNORED:
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
    elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
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


def _refuse_mixed(root: str, names: list[str]) -> None:
  by_depth = {}
  for name in sorted(names):
    by_depth.setdefault(name.count("/"), name)
  if len(by_depth) > 1:
    some = " and ".join(repr(printable(name)) for name in by_depth.values())
    raise UserError(
      f"images in {printable(root)!r} lie at different depths ({some}), so their classes are "
      "unclear; use one of root/super/sub/*, root/sub/*, root/*."
    )


def _labelled(file: ImageFile) -> ImageFile:
  folders = [printable(part) for part in file.name.split("/")[:-1]]
  if not folders:
    return file
  *above, superclass, child = folders if len(folders) > 1 else (ALL, folders[0])
  return file._replace(superclass=superclass, child=child, above=tuple(above))
