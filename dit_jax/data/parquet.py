"""Parquet tables of images, as Hugging Face's datasets write them.

A column `image` of {bytes, path} (or of plain bytes), and classes as text or as numbers whose names
stand in the file's own metadata. One row is read with its row group, and the last groups stay in
memory: tables with groups of a hundred rows or fewer are read well, one group of all rows is not.
"""

import bisect
import collections
import itertools
import json
import os
import re
import threading

from dit_jax.core.errors import UserError
from dit_jax.data import columns, layout, splits
from dit_jax.data.folder import holds
from dit_jax.data.hierarchy import printable
from dit_jax.data.images import BrokenImage, ImageFile, order

ENDING = ".parquet"
KEPT_BYTES = 2**28  # of row groups in memory; one more is there while it is read
MAX_GROUP_BYTES = 2**30
_DAMAGE = (OSError, ValueError, NotImplementedError)  # what pyarrow raises
_SHARD = re.compile(r"(\w+?)-\d{5}-of-\d{5}\.parquet", re.I)
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})(?:-\w+)?\.parquet", re.I)  # a hash may follow


class Parquet:
  """A store over the rows of tables; a name is "FILE/ROW"."""

  def __init__(self, root: str, tables: dict[str, "_Table"]):
    self.where = printable(root)
    self._root, self._tables = root, tables
    self._lock, self._groups, self._bytes = threading.Lock(), collections.OrderedDict(), 0

  def read(self, name: str) -> bytes:
    """The bytes of an image.

    Raises:
      BrokenImage: the row has none, or the table cannot be read there.
    """
    path, _, row = name.rpartition("/")
    table = self._tables[path]
    group = bisect.bisect_right(table.starts, int(row)) - 1
    try:
      value = self._group(path, group)[int(row) - table.starts[group]].as_py()
    except (*_DAMAGE, IndexError) as e:
      raise BrokenImage(f"the row cannot be read ({e})") from e
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
      raise BrokenImage("the row has no bytes of an image")
    return data

  def _group(self, path: str, group: int):
    """The column of images of one row group."""
    with self._lock:
      if (path, group) in self._groups:
        self._groups.move_to_end((path, group))
        return self._groups[path, group]
    rows = self._tables[path].group(os.path.join(self._root, path), group)
    with self._lock:
      if (path, group) not in self._groups:
        self._groups[path, group] = rows
        self._bytes += rows.nbytes
      while self._bytes > KEPT_BYTES and len(self._groups) > 1:
        self._bytes -= self._groups.popitem(last=False)[1].nbytes
    return rows


class _Table:
  """One file: its columns, and where its row groups start; the last start is the end."""

  def __init__(self, path: str):
    import pyarrow.parquet  # with all that reads tables: a quarter of a second

    with pyarrow.parquet.ParquetFile(path) as f:
      self.metadata, schema = f.metadata, f.schema_arrow
    self.schema = schema
    groups = [self.metadata.row_group(i) for i in range(self.metadata.num_row_groups)]
    self.starts = list(itertools.accumulate((g.num_rows for g in groups), initial=0))
    images = [field.name for field in schema if _holds_bytes(field.type)]
    self.image = columns.find(images, columns.IMAGES) or (images[0] if len(images) == 1 else "")
    self.group_bytes = [self._image_bytes(g) for g in groups]
    try:
      features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
      self.names = {k: v["names"] for k, v in features.items() if v.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, ValueError, AttributeError):
      self.names = {}  # written by another tool

  def _image_bytes(self, group) -> int:
    """Unpacked bytes of the images of a row group."""
    chunks = (group.column(i) for i in range(group.num_columns))
    own = (c for c in chunks if c.path_in_schema.split(".")[0] == self.image)
    return sum(chunk.total_uncompressed_size for chunk in own)

  def group(self, path: str, group: int):
    """The images of a row group; a file of its own a call, as threads may not share one."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path, metadata=self.metadata) as f:
      return f.read_row_group(group, columns=[self.image], use_threads=False).column(0)

  def column(self, path: str, name: str, where: str) -> list[str]:
    """The classes of all rows in one column, as text."""
    import pyarrow.parquet

    where = f"the column {name!r} of {where}"
    try:
      with pyarrow.parquet.ParquetFile(path, metadata=self.metadata) as f:
        values = f.read(columns=[name]).column(0).to_pylist()
    except _DAMAGE as e:
      raise UserError(f"{where} cannot be read ({e}); get the table anew.") from e
    if all(isinstance(value, str) for value in values):
      if bad := [value for value in values if not value.strip() or "/" in value]:
        raise UserError(f"{where} has {bad[0]!r}; every image needs a class without '/'.")
      return [printable(value.strip()) for value in values]
    if not all(type(value) is int for value in values):
      raise UserError(f"{where} must be text or whole numbers in every row; choose another.")
    names = self.names.get(name)
    if not names:
      return list(map(str, values))  # by_text orders them, over all files
    text = columns.by_number(values, names, where)
    return [text[value] for value in values]


def _holds_bytes(kind) -> bool:
  import pyarrow

  if pyarrow.types.is_struct(kind):
    return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
  return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def find(root: str) -> list[str]:
  """The tables in a folder and in the folders of it, by their paths below it, sorted.

  Raises:
    UserError: a folder cannot be read.
  """
  found = []
  try:
    folders = sorted(e.name for e in os.scandir(root) if e.is_dir() and not layout.is_stray(e.name))
    for folder in ("", *folders):
      entries = os.listdir(os.path.join(root, folder))
      found += [os.path.join(folder, name) for name in entries if name.lower().endswith(ENDING)]
  except OSError as e:
    raise UserError(
      f"the folder {printable(e.filename)!r} cannot be read ({e.strerror}); check its permissions."
    ) from e
  return sorted(name for name in found if not any(map(layout.is_stray, name.split("/"))))


def scan(root: str, names: list[str], data) -> tuple[Parquet, list[ImageFile], list[str]]:
  """The images of tables.

  Args:
    root: the folder that they lie in.
    names: the tables, by their paths below it.
    data: `split`, `label_key` and `super_key` of a config, where it has them.

  Raises:
    UserError: a table cannot be read, leads out of the folder, or has no column of images or not
      that of the classes.
  """
  wanted = splits.chosen(data)
  parts = {name: _split(name) if len(names) > 1 else "" for name in names}
  if len(names) == 1 and wanted:
    parts = {name: _split(name) for name in names}
  roles = splits.choose(parts.values(), wanted, repr(printable(root)))
  names = [name for name in names if parts[name] in roles]
  _refuse_missing(names)
  tables, files, classes = {}, [], []
  for name in names:
    where = repr(printable(os.path.join(root, name)))
    table = tables[name] = _open(root, name, where)
    keys = columns.levels((f.name for f in table.schema if f.name != table.image), data, where)
    path = os.path.join(root, name)
    values = [table.column(path, key, where) for key in keys]
    classes += zip(*values, strict=True) if keys else [()] * table.starts[-1]
    files += [
      ImageFile(f"{name}/{row:09}", table.group_bytes[group], split=roles[parts[name]])
      for group, rows in enumerate(itertools.pairwise(table.starts))
      for row in range(*rows)
    ]
  if len({len(way) for way in classes}) != 1:
    what = "not all of them have classes" if classes else "they have no row"
    raise UserError(f"the tables of {printable(root)!r} cannot be one set: {what}.")
  texts = [columns.by_text(level) for level in zip(*classes, strict=True)]
  ways = (tuple(t[text] for t, text in zip(texts, way, strict=True)) for way in classes)
  files = [layout.under(f, way) if way else f for f, way in zip(files, ways, strict=True)]
  return Parquet(root, tables), sorted(files, key=order), []


def _open(root: str, name: str, where: str) -> _Table:
  path, top = os.path.realpath(os.path.join(root, name)), os.path.realpath(root)
  if not holds(top, path):
    raise UserError(f"the link {where} leads out of its folder; copy the table in.")
  try:
    table = _Table(path)
  except (OSError, ValueError) as e:
    raise UserError(f"{where} cannot be read as a parquet table ({e}); get it anew.") from e
  if not table.image:
    kinds = ", ".join(printable(field.name) for field in table.schema)
    raise UserError(f"{where} has the columns {kinds}; one, 'image', must hold bytes of images.")
  if (largest := max(table.group_bytes, default=0)) > MAX_GROUP_BYTES:
    raise UserError(
      f"{where} has {largest:,} bytes of images in one row group, which is read for every image; "
      "write it anew with row_group_size=100."
    )
  return table


def _split(name: str) -> str:
  """What the name of a table, or of its folder, says: train-00000-of-00002, train.parquet."""
  folder, base = os.path.split(name)
  shard = _SHARD.fullmatch(base)
  words = [shard[1]] if shard else re.split(r"[-_.]", base)  # "train_mini-00000-of-00001" is one
  told = sorted(splits.NAMES.intersection(word.lower() for word in (*words, folder)))
  if len(told) > 1:
    raise UserError(
      f"the table {printable(name)!r} names the splits {' and '.join(told)}; rename it, so that it "
      "names one."
    )
  return told[0] if told else shard[1] if shard else ""


def _refuse_missing(names: list[str]) -> None:
  """Raises UserError where fewer tables are there than their names say."""
  found = collections.defaultdict(set)
  for name in names:
    if part := _PART.fullmatch(name):
      found[part[1], int(part[3])].add(part[2])
  for (stem, total), numbers in found.items():
    if len(numbers) < total:
      raise UserError(
        f"only {len(numbers)} of the {total} tables {printable(stem)}-*-of-{total:05} are there; "
        "get the others, or rename those that are there to use them alone."
      )
