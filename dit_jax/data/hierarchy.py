"""The class tree: children (what the model is conditioned on) under levels of superclasses.

Ids depend on names alone: the children of a folder tree are ordered by their paths, those of a flat
folder by their names whatever superclasses a taxonomy gives them, the classes of every coarser
level by their paths. The table travels with every checkpoint.
"""

import csv
import dataclasses
import difflib
import itertools
import re
import reprlib
import unicodedata
from collections import Counter
from collections.abc import Iterable

from dit_jax.core.errors import UserError

_HALVES = re.compile(r"[\ud800-\udc7f\udd00-\udfff]")  # not those that stand for bytes
ALL = "all"  # the word that asks for every class, and the superclass of a flat set


def printable(name: str) -> str:
  """A file system's name as text: composed Unicode, bytes that are no UTF-8 written as \\xNN.

  Half of a surrogate pair, which JSON can write and no file has, becomes U+FFFD.
  """
  raw = _HALVES.sub("\ufffd", name).encode("utf-8", "surrogateescape")
  return unicodedata.normalize("NFC", raw.decode("utf-8", "backslashreplace"))


def unique_names(paths: list[tuple[str, ...]]) -> list[str]:
  """The last name of every path (coarsest first), or the path where two end alike: "a/b/c"."""
  count = Counter(path[-1] for path in set(paths))
  return [path[-1] if count[path[-1]] == 1 else "/".join(path) for path in paths]


@dataclasses.dataclass(frozen=True)
class ClassTable:
  """Names of the classes, by level and id, and the class above each.

  Attributes:
    children: names, unique; a name that occurs under two superclasses reads "super/sub".
    superclasses: the next coarser level's names, unique likewise.
    parents: id of every child's superclass. No children at all: an unconditional set, label 0.
    coarser: for every level above, finest first: its names, and the id in it of every class of the
      level below. Most tables have none; the attributes before it describe them whole.
  """

  children: tuple[str, ...] = ()
  superclasses: tuple[str, ...] = ()
  parents: tuple[int, ...] = ()
  # Not in the repr, which the fingerprints of data sets hash: tables of two levels keep theirs.
  coarser: tuple[tuple[tuple[str, ...], tuple[int, ...]], ...] = dataclasses.field(
    default=(), repr=False
  )

  def __post_init__(self):
    for field in ("children", "superclasses", "parents"):  # lists come back from JSON
      object.__setattr__(self, field, tuple(getattr(self, field)))
    coarser = tuple((tuple(names), tuple(ids)) for names, ids in self.coarser)
    object.__setattr__(self, "coarser", coarser)
    for names, ids, above in zip(self.levels, self.maps, self.levels[1:], strict=False):
      _check_level(names, ids, above)
    _check_unique(self.levels[-1])

  @classmethod
  def from_paths(cls, paths: Iterable[tuple[str, ...]]) -> "ClassTable":
    """The table of classes given by their paths, coarsest name first, all equally long.

    Children get their ids in the order of their paths' first occurrence, the others by their paths.
    """
    paths = list(dict.fromkeys(map(tuple, paths)))
    if not paths:
      return cls()
    assert len({len(path) for path in paths}) == 1 < len(paths[0]), "paths of two names or more"
    levels = [paths]
    for depth in range(len(paths[0]) - 1, 0, -1):
      levels.append(sorted({path[:depth] for path in paths}))
    number = [{path: i for i, path in enumerate(level)} for level in levels]
    maps = [
      [ids[path[:-1]] for path in level] for level, ids in zip(levels, number[1:], strict=False)
    ]
    names = list(map(unique_names, levels))
    return cls(names[0], names[1], maps[0], tuple(zip(names[2:], maps[1:], strict=True)))

  @classmethod
  def from_pairs(cls, pairs: Iterable[tuple[str, str]]) -> "ClassTable":
    """The table of all (superclass, child) pairs that occur, in any order and number."""
    return cls.from_paths(sorted(set(pairs)))

  @classmethod
  def of_sizes(cls, sizes: tuple[int, ...]) -> "ClassTable":
    """A stand-in with so many classes a level, finest first, and parents in equal shares.

    Raises:
      UserError: a level that is larger than the one below it, or fewer than two levels.
    """
    sizes = tuple(sizes)
    if not any(sizes):
      return cls()
    if len(sizes) < 2 or min(sizes) < 1 or list(sizes) != sorted(sizes, reverse=True):
      raise UserError(
        f"data.classes={sizes} must give the classes of every level, finest first, as (100, 10)."
      )
    names = [tuple(map(str, range(size))) for size in sizes]
    maps = [[i * b // a for i in range(a)] for a, b in itertools.pairwise(sizes)]
    return cls(names[0], names[1], maps[0], tuple(zip(names[2:], maps[1:], strict=True)))

  @property
  def levels(self) -> tuple[tuple[str, ...], ...]:
    """Names of every level, the children first."""
    return self.children, self.superclasses, *(names for names, _ in self.coarser)

  @property
  def maps(self) -> tuple[tuple[int, ...], ...]:
    """For every level but the coarsest, the ids of its classes' parents."""
    return self.parents, *(ids for _, ids in self.coarser)

  @property
  def sizes(self) -> tuple[int, ...]:
    """Classes of every level."""
    return tuple(map(len, self.levels))

  @property
  def nodes(self) -> tuple[str, ...]:
    """Names by node, numbered as in core.tiers: the children, then level by level."""
    return tuple(itertools.chain(*self.levels))

  @property
  def num_classes(self) -> int:
    """Number of children: the model's classes; the null class has this id."""
    return len(self.children)

  def full_name(self, child: int) -> str:
    """A child as "super/sub", with as many parts as there are levels."""
    return self._full_names(0)[child]

  def _full_names(self, level: int) -> list[str]:
    names = self.levels[level]
    if level + 1 == len(self.levels):
      return list(names)
    above = self._full_names(level + 1)
    parents = (above[i] for i in self.maps[level])
    return [
      name if name.startswith(f"{parent}/") else f"{parent}/{name}"
      for name, parent in zip(names, parents, strict=True)
    ]

  def to_json(self) -> dict[str, list]:
    """The table as JSON-ready values; `from_json` gives it back."""
    values = {field: list(getattr(self, field)) for field in _TWO_LEVELS}
    if self.coarser:
      values["coarser"] = [[list(names), list(ids)] for names, ids in self.coarser]
    return values

  @classmethod
  def from_json(cls, values: dict) -> "ClassTable":
    """The inverse of `to_json`."""
    if not isinstance(values, dict) or set(values) - {"coarser"} != set(_TWO_LEVELS):
      raise UserError(f"a saved class table must have {sorted(_TWO_LEVELS)}; the file is damaged.")
    try:
      table = cls(**values)
      for wanted, parts in ((str, table.levels), (int, table.maps)):
        if odd := [x for x in itertools.chain(*parts) if type(x) is not wanted]:
          raise TypeError(f"{reprlib.repr(odd[0])} is not of type {wanted.__name__}")
      return table
    except UserError:
      raise
    except (TypeError, ValueError) as e:
      raise UserError(f"a saved class table cannot be read ({e}); the file is damaged.") from e

  def resolve(self, text: str, superclasses: bool = False) -> list[int]:
    """Ids of the classes that a user asks for, in the user's order.

    Args:
      text: names separated by commas; a name with a comma is quoted as in CSV. `#3` is always the
        id of a child; anything else is, first match first, the exact name of a child, its path
        "super/sub", `all` the children, a superclass by its path or its name, or a bare number as
        a child's id. A superclass may end with "/", which tells it from a child of its name and,
        as "all/", from `all`. An unconditional table knows only `all`, its label 0.
      superclasses: whether the model can draw them; their ids are places in `nodes`.

    Raises:
      UserError: an unknown or ambiguous name, or an id out of range.
    """
    try:
      items = next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error as e:
      raise UserError(
        f"classes {text!r} cannot be read as a list ({e}); separate names by commas and put a "
        'name with a comma in double quotes, "like, this".'
      ) from e
    items = [printable(item.strip()) for item in items]
    if not items or "" in items:
      raise UserError(f"classes {text!r} has an empty name; give names, ids, or {ALL!r}.")
    return [i for item in items for i in self._find(item, superclasses)]

  def _find(self, item: str, superclasses: bool) -> list[int]:
    if not self.children:
      if item in (ALL, "0", "#0"):
        return [0]
      raise UserError(f"class {item!r}: this model is unconditional; ask for {ALL!r}.")
    if item[0] == "#" and item[1:].lstrip("-").isdecimal():
      return [self._id(item, item[1:])]
    if item in self.children:
      return [self.children.index(item)]
    full = self._full_names(0)
    if item in full:
      return [full.index(item)]
    if item == ALL:
      return list(range(self.num_classes))
    if superclasses:
      above = range(1, len(self.levels))
      for names_of in (self._full_names, self.levels.__getitem__):
        names = list(itertools.chain(*map(names_of, above)))
        if (name := item.removesuffix("/")) in names:
          return [self.num_classes + names.index(name)]
    if item.lstrip("-").isdecimal():
      return [self._id(item, item)]
    raise UserError(self._unknown(item, superclasses))

  def _id(self, item: str, number: str) -> int:
    if number.isdecimal() and int(number) < self.num_classes:
      return int(number)
    raise UserError(
      f"class id {item!r} is not one of this model's ids, #0 to #{self.num_classes - 1}."
    )

  def _unknown(self, item: str, superclasses: bool) -> str:
    named = range(len(self.levels) if superclasses else 1)
    paths = [path for level in named for path in self._full_names(level)]
    twins = [path for path in paths if path.endswith(f"/{item}")]
    if twins:
      return f"class {item!r} occurs more than once; say which: {', '.join(map(repr, twins[:5]))}."
    if item in self.nodes:
      some = self._children_of(self.nodes.index(item))[:5]
      return f"{item!r} is a superclass; ask for its classes: {', '.join(map(repr, some))}."
    known = paths if "/" in item else [name for level in named for name in self.levels[level]]
    return f"no class is named {item!r}{did_you_mean(item, known)}."

  def _children_of(self, node: int) -> list[str]:
    """Names of the children below a superclass."""
    below = {node}
    starts = list(itertools.accumulate(self.sizes, initial=0))
    for level in reversed(range(len(self.levels) - 1)):
      ids = self.maps[level]
      below |= {starts[level] + i for i, up in enumerate(ids) if starts[level + 1] + up in below}
    return [name for i, name in enumerate(self.children) if i in below]


_TWO_LEVELS = ("children", "superclasses", "parents")


def _check_level(names: tuple[str, ...], ids: tuple[int, ...], above: tuple[str, ...]) -> None:
  """Raises UserError unless names are unique and each has one parent among those above."""
  _check_unique(names)
  if len(ids) != len(names):
    raise UserError(
      f"a class table has {len(names)} classes and {len(ids)} parents in one level; it needs one "
      "parent a class."
    )
  if not set(ids) <= set(range(len(above))):
    raise UserError(
      f"a class table's parents must be ids below {len(above)}, its number of superclasses; found "
      f"{min(ids)} to {max(ids)}."
    )


def _check_unique(names: tuple[str, ...]) -> None:
  twice = [name for name, count in Counter(names).items() if count > 1]
  if twice:
    raise UserError(f"a class table names {twice[0]!r} twice; class names must be unique.")


def did_you_mean(name: str, known: Iterable[str]) -> str:
  """The text "; did you mean 'x' or 'y'?" of the nearest known names, case ignored, or nothing."""
  by_lower = {k.lower(): k for k in reversed(list(known))}
  near = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)
  return f"; did you mean {' or '.join(repr(by_lower[k]) for k in near)}?" if near else ""
