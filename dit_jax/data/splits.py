"""Which images of a set are trained on, where the set itself says so.

A set may have parts: top folders, values of a column, splits of TFDS. One part can be asked for by
its name, and is then the whole set. Without that, the part "train" is trained on and the first of
HELD that is there is the held-out split, in place of every n-th image; other parts are not read.
"""

from collections.abc import Iterable

from dit_jax.core.errors import UserError
from dit_jax.data.hierarchy import did_you_mean, printable

TRAIN = "train"
VALIDATION = ("val", "valid", "validation")
HELD = (*VALIDATION, "test")
NAMES = frozenset((TRAIN, *HELD))
HELDOUT = "heldout"


def chosen(data) -> str:
  """data.split of a config; "" of older runs, which say nothing of it."""
  return getattr(data, "split", "")


def choose(present: Iterable[str], wanted: str, where: str) -> dict[str, str]:
  """What becomes of the parts of a set.

  Args:
    present: the names of its parts; "" is one without a name.
    wanted: data.split, one of them, or "".
    where: the set, for messages.

  Returns:
    The parts that are read, each with "train", "heldout" or, where the rule of every n-th image
    holds, "".

  Raises:
    UserError: there is no such part, or the parts do not say what is trained on.
  """
  present = sorted(set(present))
  named = ", ".join(map(printable, present)) or "none"
  if wanted:
    if wanted not in present:
      hint = did_you_mean(wanted, present) or f"; it has {named}"
      raise UserError(f"data.split={wanted!r} is no split of {where}{hint}.")
    return {wanted: ""}
  if "" in present[:-1]:
    raise UserError(
      f"{where} has images of no split beside those of {named.removeprefix(', ')}; name a split "
      "for each, or choose one by data.split."
    )
  if len(present) < 2 and not NAMES.intersection(present):
    return {name: "" for name in present}
  if TRAIN not in present:
    raise UserError(f"{where} has the splits {named} and no {TRAIN!r}; choose one by data.split.")
  held = [name for name in HELD if name in present]
  if len(set(held) & set(VALIDATION)) > 1:
    raise UserError(
      f"{where} has the splits {named}: which one is held out is unclear; rename all but one, or "
      "choose what is trained on by data.split."
    )
  return {TRAIN: TRAIN, held[0]: HELDOUT} if held else {TRAIN: ""}
