"""Columns and features by name: which holds the class, its superclasses, the path, the split."""

from collections.abc import Iterable, Sequence

from dit_jax.core.errors import UserError
from dit_jax.data.hierarchy import did_you_mean, printable

PATHS = ("path", "file_name", "filename", "file", "image")
IMAGES = ("image", "img")
LABELS = ("label", "labels", "fine_label", "class")
SUPERS = ("superclass", "coarse_label", "supercategory")
SPLITS = ("split",)


def find(columns: Iterable[str], known: tuple[str, ...]) -> str:
  """The first of the known names that is a column, or ""."""
  columns = set(columns)
  return next((name for name in known if name in columns), "")


def levels(
  columns: Iterable[str], data, where: str, supers: tuple[str, ...] = SUPERS
) -> tuple[str, ...]:
  """The columns of the classes, coarsest first; () where the set has no labels.

  Args:
    columns: the names that there are.
    data: may have `label_key`, one of them, and `super_key`, some of them, finest first, separated
      by commas; what is "" is looked for by its usual names.
    where: the set, for messages.
    supers: usual names of superclasses.

  Raises:
    UserError: no such column, or superclasses without classes.
  """
  columns = list(columns)
  label, above = getattr(data, "label_key", ""), getattr(data, "super_key", "")
  above = [name.strip() for name in above.split(",")] if above else []
  for field, name in (("label_key", label), *(("super_key", name) for name in above)):
    if (name or field == "super_key") and name not in columns:
      hint = did_you_mean(name, columns) or f"; it has {', '.join(map(printable, columns))}"
      raise UserError(f"data.{field} names {name!r}, no column of {where}{hint}.")
  label = label or find(columns, LABELS)
  if not label and above:
    raise UserError(f"{where} has superclasses by data.super_key and no class; set data.label_key.")
  if not label:
    return ()
  above = above or [name for name in (find(columns, supers),) if name and name != label]
  if len({label, *above}) <= len(above):
    raise UserError(
      f"data.super_key={','.join(above)!r} names the class, {label!r}, or one column twice."
    )
  return *reversed(above), label


def by_number(values: Iterable[int], names: Sequence[str], where: str) -> dict[int, str]:
  """Names of classes that a set knows by number.

  Args:
    values: the numbers that occur.
    names: by number, in which "/", which parts the levels of a path, becomes "-"; without any, the
      numbers are the names. Names that all are numbers get leading zeros, which keep their order,
      unless two would read alike.
    where: what holds them, for messages.

  Raises:
    UserError: a number without a name, or two names that read alike.
  """
  values = sorted(set(values))
  clean = [printable(name.strip()).replace("/", "-") for name in names]
  if len(set(clean)) < len(clean):
    twice = next(name for name in clean if clean.count(name) > 1)
    raise UserError(f"{where} names two classes {twice!r}; rename one.")
  if values and (values[0] < 0 or (names and values[-1] >= len(names))):
    odd = values[0] if values[0] < 0 else values[-1]
    raise UserError(
      f"{where} has the class {odd}, which has no name; images without a label cannot be used, "
      "choose another part by data.split."
    )
  if not names:
    return dict(zip(values, _padded(map(str, values)), strict=True))
  clean = _padded(clean)
  return {value: clean[value] for value in values}


def by_text(values: Iterable[str]) -> dict[str, str]:
  """Names of classes that a set knows by text: itself, with leading zeros if all are numbers.

  "1" and "01" are two classes: beside such, every name stays as it is.
  """
  values = list(set(values))
  return dict(zip(values, _padded(values), strict=True))


def _padded(texts: Iterable[str]) -> list[str]:
  texts = list(texts)
  if not all(text.isdecimal() for text in texts):
    return texts
  padded = [text.zfill(max(map(len, texts))) for text in texts]
  return padded if len(set(padded)) == len(texts) else texts
