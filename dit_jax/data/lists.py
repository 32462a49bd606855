"""Lists of images: a table of paths, classes and superclasses in a .csv, .tsv or .jsonl file.

The columns are found by their names (data.columns). Paths are relative to the folder of the list
and lead nowhere outside of it. A file that is missing is a broken image, skipped by its name.
"""

import csv
import itertools
import json
import os
import posixpath
from collections.abc import Iterator
from typing import NamedTuple

from dit_jax.core.errors import UserError
from dit_jax.data import columns, layout, splits
from dit_jax.data.folder import Folder, holds
from dit_jax.data.hierarchy import printable
from dit_jax.data.images import ImageFile, order

ENDINGS = (".csv", ".tsv", ".jsonl")
METADATA = ("metadata.csv", "metadata.jsonl")  # of an image folder of Hugging Face

Row = dict[str, str]


def scan(path: str, data) -> tuple[Folder, list[ImageFile], list[str]]:
  """The images of a list.

  Args:
    path: of the list.
    data: `split`, `label_key` and `super_key` of a config, where it has them.

  Raises:
    UserError: the list cannot be read, has no column of paths, names a file outside of its folder
      or one file twice, or leaves a class empty.
  """
  root = os.path.dirname(path) or "."
  files, split = _labelled([_read(path, "", data)]), splits.chosen(data)
  roles = splits.choose({file.split for file in files}, split, repr(printable(path)))
  return Folder(root), _in_split(files, roles), []


def metadata(root: str, data) -> tuple[Folder, list[ImageFile], list[str]] | None:
  """The images of a folder whose metadata.csv or .jsonl, or one a split, has their classes.

  Returns:
    None for a folder without such a file, or whose file names no image or no class.
  """
  found = {"": _metadata_of(root, data)}
  if not found[""]:
    found = {name: _metadata_of(os.path.join(root, name), data) for name in sorted(splits.NAMES)}
  found = {name: path for name, path in found.items() if path}
  if not found:
    return None
  wanted = splits.chosen(data)
  roles = splits.choose(found, wanted, repr(printable(root))) if "" not in found else {"": ""}
  parts = []
  for name in roles:
    part = _read(found[name], f"{name}/" if name else "", data)
    if name:
      part = part._replace(files=[file._replace(split=name) for file in part.files])
    parts.append(part)
    if part.keys != parts[0].keys:
      both = " and ".join(", ".join(map(printable, p.keys)) for p in (parts[0], part))
      raise UserError(
        f"the lists of the splits in {printable(root)!r} have other columns of classes, {both}; "
        "name them alike, or choose one by data.split."
      )
  files = _labelled(parts)
  if "" in found:
    roles = splits.choose({file.split for file in files}, wanted, repr(printable(root)))
  return Folder(root), _in_split(files, roles), []


def _in_split(files: list[ImageFile], roles: dict[str, str]) -> list[ImageFile]:
  return sorted((f._replace(split=roles[f.split]) for f in files if f.split in roles), key=order)


def _metadata_of(folder: str, data) -> str:
  for name in METADATA:
    path = os.path.join(folder, name)
    if os.path.isfile(path):
      head = set(next(_rows(path), {}))
      if "file_name" in head and columns.levels(head, data, repr(printable(path))):
        return path
  return ""


class _Part(NamedTuple):
  """The images of a list, the columns of their classes, and these, a row an image."""

  files: list[ImageFile]
  keys: tuple[str, ...]
  classes: list[tuple[str, ...]]


def _labelled(parts: list[_Part]) -> list[ImageFile]:
  """The images of lists under classes that are named over all of them."""
  files, classes = ([item for part in parts for item in part[i]] for i in (0, 2))
  names = [columns.by_text(level) for level in zip(*classes, strict=True)]
  paths = [tuple(n[text] for n, text in zip(names, path, strict=True)) for path in classes]
  return [layout.under(f, p) if p else f for f, p in zip(files, paths, strict=True)]


def _read(path: str, prefix: str, data) -> _Part:
  """The rows of a list, each with the split that it names; `prefix` leads to its folder."""
  where = repr(printable(path))
  rows = _rows(path)
  first = next(rows, None)
  if first is None:
    raise UserError(f"data.path {where} has no row; it needs a header and a row an image.")
  path_key = columns.find(first, columns.PATHS)
  if not path_key:
    raise UserError(
      f"data.path {where} has the columns {', '.join(map(printable, first)) or 'none'}; one must "
      f"be the file of the image, named {' or '.join(columns.PATHS)}."
    )
  keys, split_key = columns.levels(first, data, where), columns.find(first, columns.SPLITS)
  files, classes, inside = {}, [], _Inside(os.path.dirname(path) or ".")
  for number, row in enumerate(itertools.chain([first], rows), 1):
    name, row_is = posixpath.normpath(row[path_key] or "."), f"row {number} of {where}"
    size = inside.size(name)
    if size is None:
      raise UserError(
        f"{row_is} names {printable(row[path_key])!r}, which is no path below the list's own "
        "folder; move the list to the folder that holds the images."
      )
    if name in files:
      raise UserError(f"{row_is} names {printable(name)!r} again; one row an image.")
    files[name] = ImageFile(prefix + name, size, split=row[split_key].strip() if split_key else "")
    classes.append(tuple(_class(row[key], key, row_is) for key in keys))
  return _Part(list(files.values()), keys, classes)


def _class(text: str, key: str, row_is: str) -> str:
  clean = printable(text.strip())
  if not clean or "/" in clean:
    raise UserError(
      f"{row_is} has {text!r} in {key!r}; every image needs a class, and '/' parts the levels of a "
      "path."
    )
  return clean


class _Inside:
  """Sizes of files below a folder, links followed."""

  def __init__(self, root: str):
    self._root, self._top = root, os.path.realpath(root)
    self._folders = {}

  def size(self, name: str) -> int | None:
    """Bytes of a file by its normal path, 0 where there is none; None for what lies outside."""
    if name == "." or posixpath.isabs(name) or name.split("/")[0] == ".." or "\0" in name:
      return None
    try:
      os.fsencode(name)
    except UnicodeEncodeError:  # no file can have half of a surrogate pair in its name
      return 0
    path = os.path.join(self._root, name)
    folder = os.path.dirname(path)
    if folder not in self._folders:
      self._folders[folder] = self._holds(folder)
    if not self._folders[folder] or (os.path.islink(path) and not self._holds(path)):
      return None
    try:
      return os.path.getsize(path) if os.path.isfile(path) else 0
    except OSError:
      return 0

  def _holds(self, path: str) -> bool:
    return holds(self._top, os.path.realpath(path))


def _rows(path: str) -> Iterator[Row]:
  """The rows of a list, all with the columns of the first."""
  try:
    with open(path, encoding="utf-8-sig", newline="") as f:
      yield from _jsonl(f) if path.lower().endswith(".jsonl") else _separated(f, path)
  except (OSError, ValueError, RecursionError, csv.Error) as e:
    raise UserError(f"{printable(path)!r} cannot be read ({e}); mend the file.") from e


def _separated(lines, path: str) -> Iterator[Row]:
  rows = csv.reader(lines, delimiter="\t" if path.lower().endswith(".tsv") else ",", strict=True)
  head = [name.strip() for name in next(rows, [])]
  if len(set(head)) < len(head):
    raise ValueError(f"its header {', '.join(head)} names a column twice")
  for row in filter(None, rows):
    if len(row) != len(head):
      raise ValueError(f"line {rows.line_num} has {len(row)} values for {len(head)} columns")
    yield dict(zip(head, row, strict=True))


def _jsonl(lines) -> Iterator[Row]:
  head = None
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    row = json.loads(line)
    if not isinstance(row, dict):
      raise ValueError(f"line {number} is no object")
    head = head or set(row)
    if set(row) != head:
      raise ValueError(f"line {number} has not the keys of the first")
    yield {key: _text(value) for key, value in row.items()}


def _text(value) -> str:
  """A value that may be a path or a class; what neither can be is none."""
  return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
