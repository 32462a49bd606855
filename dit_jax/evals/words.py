"""How values of a config or a card read on a page."""

from collections.abc import Iterator, Mapping
from typing import Any

LISTED = 24  # entries of a list that are shown


def number(value: float | None) -> str:
  """Four significant digits, or a dash for what was not finite; whole numbers in full."""
  if value is None:
    return "–"
  return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def shown(value: Any) -> str:
  """A value of JSON in words."""
  match value:
    case bool():
      return "yes" if value else "no"
    case None:
      return "–"
    case int() | float():
      return number(value)
    case Mapping():
      return ", ".join(f"{k} {shown(v)}" for k, v in value.items())
    case list() | tuple():
      more = f" and {len(value) - LISTED} more" if len(value) > LISTED else ""
      return ", ".join(map(shown, value[:LISTED])) + more
  return str(value)


def listed(*facts: tuple[str, Any]) -> list[tuple[str, str]]:
  """Facts in words, without those that are not there: None, "", an empty list."""
  return [(name, shown(value)) for name, value in facts if value not in (None, "", (), [], {})]


def flat(tree: Mapping, above: str = "") -> Iterator[tuple[str, str]]:
  """Facts of a tree in words, by dotted names."""
  for name, value in tree.items():
    if isinstance(value, Mapping):
      yield from flat(value, f"{above}{name}.")
    else:
      yield f"{above}{name}", shown(value)


def at(tree: Any, path: str) -> Any:
  """The value at a dotted path; None where there is none."""
  for name in path.split("."):
    tree = tree.get(name) if isinstance(tree, Mapping) else None
  return tree
