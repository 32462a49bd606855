"""Where the bytes of a set's images come from: what a config names, opened by its kind.

A store reads one image by its name; beside it stand the images of the set, with their classes, in
sorted order, and the names of what was expected to hold images and holds none.
"""

import functools
import os
from typing import Protocol, runtime_checkable

from dit_jax.core.errors import UserError
from dit_jax.data import archives, edm, folder, layout, lists, parquet, prepared, splits, twemoji
from dit_jax.data.hierarchy import printable
from dit_jax.data.images import ImageFile
from dit_jax.data.tars import Tar
from dit_jax.data.zips import Zip


@runtime_checkable
class Store(Protocol):
  """The bytes of images by name; safe to read from threads."""

  where: str  # printable, for messages

  def read(self, name: str) -> str | bytes:
    """The bytes of an image, or the path of a file of them.

    Raises:
      BrokenImage: it cannot be read.
    """


ENDINGS = (".zip", ".tar", *lists.ENDINGS, parquet.ENDING)
Opened = tuple[Store, list[ImageFile], list[str]]


def open_store(data) -> Opened:
  """The set that a config describes; `sources.open_source` explains the fields."""
  if data.source.startswith(prepared.SOURCE):
    return prepared.scan(prepared.folder_of(data.source, data.path), data)
  if data.path or data.source == "folder":
    if not data.path:
      raise UserError("data.source is 'folder' and data.path is empty; set data.path to a folder.")
    return open_path(os.path.expanduser(data.path), data)
  if data.source == "twemoji":
    _refuse(data, "the set of Twemoji", "split", "label_key", "super_key")
    root, files = twemoji.scan()
    return folder.Folder(root), files, []
  raise UserError(
    f"data.source={data.source!r} is unknown; use 'folder' with data.path, 'twemoji', or "
    "'tfds:NAME'."
  )


def open_path(path: str, data) -> Opened:
  """What data.path leads to.

  Raises:
    UserError: it is missing, or none of the kinds that can be read.
  """
  if not os.path.isfile(path):
    return _open_folder(path, data)
  archives.refuse_compressed(path)
  ending = os.path.splitext(path)[1].lower()
  if ending in (".zip", ".tar"):
    return _open_archive(_listed(Zip if ending == ".zip" else Tar, path, _stamp(path)), path, data)
  if ending in lists.ENDINGS:
    return lists.scan(path, data)
  if ending == parquet.ENDING:
    return parquet.scan(os.path.dirname(path) or ".", [os.path.basename(path)], data)
  raise UserError(
    f"data.path {printable(path)!r} is a file of no kind that holds images; give a folder, or a "
    f"file that ends in {', '.join(ENDINGS)}."
  )


def _open_archive(store: Zip | Tar, path: str, data) -> Opened:
  """Images under their folders, or in a zip under the labels of its dataset.json."""
  below = archives.wrapper(path, store.sizes)
  readable = isinstance(store, Zip)
  archives.refuse_told(store.where, store.told, below, known=edm.NAME if readable else "")
  for prefix in dict.fromkeys(("", below)) if readable else ():
    text = store.text(prefix + edm.NAME)
    if files := edm.labelled(text, store.sizes, store.where, prefix):
      _refuse(data, repr(store.where), "split", "label_key", "super_key")
      return store, files, []
  return _by_folders(store, archives.arrange, (path, store.sizes), data)


@functools.lru_cache(maxsize=4)
def _listed(kind, path: str, stamp: tuple) -> Zip | Tar:
  """An archive, listed once: a run opens its data anew in every stage."""
  del stamp  # tells the archive from another under the same name
  return kind(path)


def _stamp(path: str) -> tuple:
  status = os.stat(path)
  return status.st_ino, status.st_size, status.st_mtime_ns


def _open_folder(path: str, data) -> Opened:
  """An image folder, or one of the kinds that a file in it announces."""
  if prepared.is_prepared(path):
    return prepared.scan(path, data)
  if os.path.isdir(path) and (found := lists.metadata(path, data)):
    return found
  store, entries = folder.Folder(path), folder.walk(path)
  sizes = {file.name: file.num_bytes for file in entries if isinstance(file, ImageFile)}
  if files := edm.labelled(edm.text_in(path), sizes, store.where):
    _refuse(data, repr(store.where), "split", "label_key", "super_key")
    return store, files, []
  if not sizes and (tables := parquet.find(path)):
    return parquet.scan(path, tables, data)
  return _by_folders(store, layout.arrange, (store.where, entries), data)


def _by_folders(store: Store, arrange, args: tuple, data) -> Opened:
  """A set whose folders name its classes."""
  _refuse(data, repr(store.where), "label_key", "super_key")
  return store, *arrange(*args, splits.chosen(data))


def _refuse(data, where: str, *fields: str) -> None:
  for field in fields:
    if value := getattr(data, field, ""):
      raise UserError(
        f"data.{field}={value!r} asks for what {where} does not have: "
        f"{'splits' if field == 'split' else 'columns'}; unset it (docs/data.md)."
      )
