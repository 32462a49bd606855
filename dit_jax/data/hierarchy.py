"""The two-level label set: children (what the model is conditioned on) under their superclasses.

Ids depend on names alone: children are ordered by (superclass, child), so the children of a
superclass are neighbours, and superclasses by name. The table travels with every checkpoint.
"""

import csv
import dataclasses
import difflib
import unicodedata
from collections import Counter
from collections.abc import Iterable

from dit_jax.core.errors import UserError

ALL = "all"  # the word that asks for every class, and the superclass of a flat set


def printable(name: str) -> str:
  """A file system's name as text: composed Unicode, bytes that are no UTF-8 written as \\xNN."""
  raw = name.encode("utf-8", "surrogateescape")
  return unicodedata.normalize("NFC", raw.decode("utf-8", "backslashreplace"))


@dataclasses.dataclass(frozen=True)
class ClassTable:
  """Names of the classes, by id, and the superclass of each child.

  Attributes:
    children: names, unique; a name that occurs under two superclasses reads "super/sub".
    superclasses: names, unique.
    parents: id of every child's superclass. No children at all: an unconditional set, label 0.
  """

  children: tuple[str, ...] = ()
  superclasses: tuple[str, ...] = ()
  parents: tuple[int, ...] = ()

  def __post_init__(self):
    for field in dataclasses.fields(self):  # lists come back from JSON
      object.__setattr__(self, field.name, tuple(getattr(self, field.name)))
    if len(self.parents) != len(self.children):
      raise UserError(
        f"a class table has {len(self.children)} children and {len(self.parents)} parents; "
        "it needs one parent a child."
      )
    for kind in (self.children, self.superclasses):
      twice = [name for name, count in Counter(kind).items() if count > 1]
      if twice:
        raise UserError(f"a class table names {twice[0]!r} twice; class names must be unique.")
    if not set(self.parents) <= set(range(len(self.superclasses))):
      raise UserError(
        f"a class table's parents must be ids below {len(self.superclasses)}, its number of "
        f"superclasses; found {min(self.parents)} to {max(self.parents)}."
      )

  @classmethod
  def from_pairs(cls, pairs: Iterable[tuple[str, str]]) -> "ClassTable":
    """The table of all (superclass, child) pairs that occur, in any order and number."""
    pairs = sorted(set(pairs))
    superclasses = sorted({parent for parent, _ in pairs})
    number = {parent: i for i, parent in enumerate(superclasses)}
    count = Counter(child for _, child in pairs)
    children = [f"{parent}/{child}" if count[child] > 1 else child for parent, child in pairs]
    return cls(children, superclasses, [number[parent] for parent, _ in pairs])

  @property
  def num_classes(self) -> int:
    """Number of children: the model's classes; the null class has this id."""
    return len(self.children)

  def full_name(self, child: int) -> str:
    """A child as "super/sub"."""
    parent = self.superclasses[self.parents[child]]
    name = self.children[child]
    return name if name.startswith(f"{parent}/") else f"{parent}/{name}"

  def to_json(self) -> dict[str, list]:
    """The table as JSON-ready values; `from_json` gives it back."""
    return {field.name: list(getattr(self, field.name)) for field in dataclasses.fields(self)}

  @classmethod
  def from_json(cls, values: dict) -> "ClassTable":
    """The inverse of `to_json`."""
    wanted = {field.name for field in dataclasses.fields(cls)}
    if not isinstance(values, dict) or set(values) != wanted:
      raise UserError(f"a saved class table must have {sorted(wanted)}; the file is damaged.")
    return cls(**values)

  def resolve(self, text: str) -> list[int]:
    """Ids of the classes that a user asks for, in the user's order.

    Args:
      text: names separated by commas; a name with a comma is quoted as in CSV. `#3` is always an
        id; anything else is, first match first, the exact name of a child, "super/sub", `all`, or
        a bare number as an id. An unconditional table knows only `all`, its label 0.

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
    return [i for item in items for i in self._find(item)]

  def _find(self, item: str) -> list[int]:
    if not self.children:
      if item in (ALL, "0", "#0"):
        return [0]
      raise UserError(f"class {item!r}: this model is unconditional; ask for {ALL!r}.")
    if item[0] == "#" and item[1:].lstrip("-").isdecimal():
      return [self._id(item, item[1:])]
    if item in self.children:
      return [self.children.index(item)]
    full = [self.full_name(i) for i in range(self.num_classes)]
    if item in full:
      return [full.index(item)]
    if item == ALL:
      return list(range(self.num_classes))
    if item.lstrip("-").isdecimal():
      return [self._id(item, item)]
    raise UserError(self._unknown(item, full))

  def _id(self, item: str, number: str) -> int:
    if number.isdecimal() and int(number) < self.num_classes:
      return int(number)
    raise UserError(
      f"class id {item!r} is not one of this model's ids, #0 to #{self.num_classes - 1}."
    )

  def _unknown(self, item: str, full: list[str]) -> str:
    twins = [name for name in full if name.endswith(f"/{item}")]
    if twins:
      return f"class {item!r} occurs more than once; say which: {', '.join(map(repr, twins[:5]))}."
    if item in self.superclasses:
      parent = self.superclasses.index(item)
      some = [c for c, p in zip(self.children, self.parents, strict=True) if p == parent]
      return f"{item!r} is a superclass; ask for its classes: {', '.join(map(repr, some[:5]))}."
    return (
      f"no class is named {item!r}{did_you_mean(item, full if '/' in item else self.children)}."
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
  """The text "; did you mean 'x' or 'y'?" of the nearest known names, case ignored, or nothing."""
  by_lower = {k.lower(): k for k in reversed(list(known))}
  near = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)
  return f"; did you mean {' or '.join(repr(by_lower[k]) for k in near)}?" if near else ""
