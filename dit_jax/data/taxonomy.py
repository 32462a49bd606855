"""Superclasses for a flat folder of classes: from a table of names, or from the folders' own names.

A table is a CSV file with a header, or JSON lines: in its first column the class folder, then its
superclasses by named columns, finest first. A name that occurs under two parents is two classes.
"""

import csv
import json
import os
from collections import Counter

from dit_jax.core.errors import UserError
from dit_jax.data import inat
from dit_jax.data.hierarchy import ALL, did_you_mean, printable, unique_names
from dit_jax.data.images import ImageFile

SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}  # of tables that are no CSV
INAT = "inat2021"  # the taxonomy that is written in the names of the folders


def apply(files: list[ImageFile], taxonomy: str, levels: tuple[str, ...]) -> list[ImageFile]:
  """The files under their superclasses, in the same order, so that children keep their ids.

  Args:
    files: of a flat folder, root/class/*.
    taxonomy: a path that ends in .csv or .jsonl, or INAT; "" leaves the files as they are.
    levels: the columns that become levels, finest first; () takes all.

  Raises:
    UserError: the table cannot be read, is no tree, or does not name every folder.
  """
  if not taxonomy:
    if levels:
      raise UserError(
        f"data.levels={levels} names columns of data.taxonomy, which is empty; set it."
      )
    return files
  children = list(dict.fromkeys(file.child for file in files))
  if {file.superclass for file in files} != {ALL} or any(file.above for file in files):
    raise UserError(
      "data.taxonomy gives the superclasses of a flat folder, root/class/*; this set has other "
      "folders, so unset data.taxonomy."
    )
  if len(children) < 2:
    raise UserError(f"the set has one class alone, {children[0]!r}; a taxonomy needs two or more.")
  names = {child: child for child in children}
  if taxonomy == INAT:
    columns, lineages, names = inat.lineages(children, levels)
  else:
    columns, lineages = read(taxonomy)
  for child in children:
    if child not in lineages:
      raise UserError(
        f"the class {child!r} has no row in data.taxonomy {taxonomy!r}, which needs one a folder"
        f"{did_you_mean(child, lineages) or '.'}"
      )
  lineages = {child: lineages[child] for child in children}
  paths = _paths(lineages, [columns.index(level) for level in _chosen(columns, levels)])
  return [_under(file, (*paths[file.child], names[file.child])) for file in files]


def _under(file: ImageFile, path: tuple[str, ...]) -> ImageFile:
  *above, superclass, child = path
  return file._replace(above=tuple(above), superclass=superclass, child=child)


def _chosen(columns: tuple[str, ...], levels: tuple[str, ...]) -> tuple[str, ...]:
  """The wanted columns, if they are there and in order."""
  for level in levels:
    if level not in columns:
      hint = did_you_mean(level, columns) or f"; it has {', '.join(columns)}."
      raise UserError(f"data.levels names {level!r}, no column of data.taxonomy{hint}")
  if list(levels) != sorted(set(levels), key=columns.index):
    raise UserError(
      f"data.levels={levels} must name columns once, finest first, in the order "
      f"{', '.join(columns)}."
    )
  return levels or columns


def _paths(lineages: dict[str, tuple[str, ...]], chosen: list[int]) -> dict[str, tuple[str, ...]]:
  """The names of every child's superclasses at the chosen columns, coarsest first.

  Names are made unique before the other columns are left out: those may tell two namesakes apart.
  """
  by_column = {}
  for column in chosen:
    paths = sorted({tuple(reversed(lineage[column:])) for lineage in lineages.values()})
    by_column[column] = dict(zip(paths, unique_names(paths), strict=True))
  return {
    child: tuple(by_column[c][tuple(reversed(lineage[c:]))] for c in reversed(chosen))
    for child, lineage in lineages.items()
  }


def read(path: str) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
  """The columns of a table but its first, and their values by class.

  Raises:
    UserError: the file cannot be read, a class without parent or with two, or a name with "/".
  """
  rows = _csv if path.endswith(".csv") else _jsonl if path.endswith(".jsonl") else None
  if rows is None:
    raise UserError(
      f"data.taxonomy={path!r} must end in .csv or .jsonl, or be {INAT!r} for folders named as in "
      "iNaturalist 2021."
    )
  try:
    with open(os.path.expanduser(path), encoding="utf-8-sig", newline="") as f:
      header, *table = rows(f)
  except (OSError, ValueError, RecursionError, csv.Error) as e:
    raise UserError(f"data.taxonomy {path!r} cannot be read ({e}); mend the file.") from e
  if len(header) < 2 or len(set(header)) < len(header) or not table:
    raise UserError(
      f"data.taxonomy {path!r} needs named columns, the class first and then its superclasses, and "
      f"a row a class; it has the columns {', '.join(header) or 'none'} and {len(table)} rows"
      f"{_other_separator(header)}."
    )
  lineages = {}
  for number, row in enumerate(table, 1):
    _check_row(path, number, header, row)
    child, *lineage = row
    if lineages.setdefault(child, tuple(lineage)) != tuple(lineage):
      raise UserError(
        f"data.taxonomy {path!r} puts {child!r} under {' / '.join(lineages[child])} and, in row "
        f"{number}, under {' / '.join(lineage)}; a class has one parent."
      )
  return tuple(header[1:]), lineages


def _other_separator(header: list[str]) -> str:
  """What to say of a header that is one name because other signs than commas part it."""
  found = [name for sign, name in SEPARATORS.items() if len(header) == 1 and sign in header[0]]
  return f"; its names are parted by {found[0]}, write commas" if found else ""


def _check_row(path: str, number: int, header: list[str], row: list[str]) -> None:
  where = f"row {number} of data.taxonomy {path!r}"
  if len(row) != len(header):
    raise UserError(f"{where} has {len(row)} values for {len(header)} columns; mend the row.")
  for column, value in zip(header, row, strict=True):
    if not value:
      raise UserError(f"{where} ({row[0]!r}) leaves {column!r} empty; every class needs a parent.")
    if "/" in value:
      raise UserError(f"{where} has the name {value!r}; '/' parts the levels of a path, rename it.")


def _csv(lines) -> list[list[str]]:
  rows = [[_clean(value) for value in row] for row in csv.reader(lines, strict=True)]
  return [row for row in rows if row] or [[]]


def _jsonl(lines) -> list[list[str]]:
  """The keys of the first object, then the values of every one."""
  objects = [json.loads(line, object_pairs_hook=_object) for line in lines if line.strip()]
  if not all(isinstance(o, dict) and all(isinstance(v, str) for v in o.values()) for o in objects):
    raise ValueError("every line must be an object of strings")
  header = list(objects[0]) if objects else []
  if any(set(o) != set(header) for o in objects):
    raise ValueError(f"every line must have the keys {', '.join(header)}")
  return [list(map(_clean, header)), *([_clean(o[key]) for key in header] for o in objects)]


def _object(pairs: list[tuple]) -> dict:
  if twice := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
    raise ValueError(f"the key {twice[0]!r} is twice in a line")
  return dict(pairs)


def _clean(value: str) -> str:
  return printable(value.strip())
