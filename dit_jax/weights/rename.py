"""Names and layouts of one format's arrays as rows of a table that is read in both directions.

A row says which of their keys are one leaf of ours, and how the numbers lie. Both directions are
exact: they rename, transpose and cut, and compute nothing.
"""

import dataclasses
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.core.errors import UserError

FIXED_GAP = 1e-5  # how far a leaf may be from the value that a format fixes it at


@dataclasses.dataclass(frozen=True)
class Layout:
  """How an array of ours lies there, and theirs here; the two are inverse."""

  there: Callable[[np.ndarray], np.ndarray]
  here: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda x: x, lambda x: x)
LINEAR = Layout(lambda x: x.T, lambda x: x.T)  # [in, out] <-> [out, in]
CONV = Layout(  # HWIO <-> OIHW
  lambda x: x.transpose(3, 2, 0, 1), lambda x: x.transpose(2, 3, 1, 0)
)
BATCHED = Layout(lambda x: x[None], lambda x: x[0])  # [n, d] <-> [1, n, d]


def patches(patch: int) -> Layout:
  """A dense map of (row, column, channel) <-> a strided convolution [d, c, patch, patch]."""
  return Layout(
    lambda x: x.reshape(patch, patch, -1, x.shape[-1]).transpose(3, 2, 0, 1),
    lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
  )


@dataclasses.dataclass(frozen=True)
class Row:
  """One leaf of ours.

  Attributes:
    ours: its path.
    theirs: their keys: parts that follow each other on their first axis, or copies.
    layout: of the whole leaf.
    copies: every key holds all of the leaf, and all must be equal.
  """

  ours: str
  theirs: tuple[str, ...]
  layout: Layout = SAME
  copies: bool = False

  def to_theirs(self, x: np.ndarray) -> list[np.ndarray]:
    """What each of their keys holds."""
    y = self.layout.there(x)
    return [y] * len(self.theirs) if self.copies else np.split(y, len(self.theirs))

  def to_ours(self, arrays: list[np.ndarray]) -> np.ndarray:
    """The leaf, of what their keys hold."""
    y = arrays[0] if self.copies or len(arrays) == 1 else np.concatenate(arrays)
    return self.layout.here(y)


def layer(ours: str, theirs: str | tuple[str, ...], layout: Layout = LINEAR, copies=False):
  """The two rows of a layer with a bias: kernel <-> weight, bias <-> bias."""
  theirs = (theirs,) if isinstance(theirs, str) else theirs
  return [
    Row(f"{ours}/kernel", tuple(f"{name}.weight" for name in theirs), layout, copies),
    Row(f"{ours}/bias", tuple(f"{name}.bias" for name in theirs), SAME, copies),
  ]


def norm(ours: str, theirs: str) -> list[Row]:
  """The two rows of a norm with scale and bias."""
  return [Row(f"{ours}/scale", (f"{theirs}.weight",)), Row(f"{ours}/bias", (f"{theirs}.bias",))]


def to_ours(
  rows: Iterable[Row], theirs: dict[str, np.ndarray], shapes: dict, fixed: dict | None = None
) -> dict[str, np.ndarray]:
  """Our leaves of their arrays, all or none.

  Args:
    rows: of the format.
    theirs: arrays by their keys.
    shapes: of every leaf that the model has, by path.
    fixed: leaves that the format has no key for, with their values.

  Raises:
    UserError: lists every key that no leaf takes, every leaf that stays empty, every shape and
      dtype that differs, and copies that are not equal.
  """
  rows, fixed = list(rows), fixed or {}
  wrong = _mismatches(rows, theirs, shapes, fixed)
  for row in rows:
    if row.copies and not wrong:
      wrong += _unequal(row.theirs, theirs)
  if wrong:
    raise UserError("these weights do not fit the model: " + "; ".join(wrong) + ".")
  out = {row.ours: row.to_ours([theirs[key] for key in row.theirs]) for row in rows}
  return {name: (out | fixed)[name] for name in shapes}


def to_theirs(
  rows: Iterable[Row], ours: dict[str, np.ndarray], fixed: dict | None = None
) -> dict[str, np.ndarray]:
  """Their arrays of our leaves; the inverse of `to_ours`.

  Raises:
    UserError: a leaf that the format has no place for, or that it fixes at another value.
  """
  rows, fixed = list(rows), fixed or {}
  wanted = {row.ours for row in rows} | set(fixed)
  wrong = [f"no place for {name}" for name in ours if name not in wanted]
  wrong += [f"{name} is missing" for name in sorted(wanted - set(ours))]
  for name, value in fixed.items():
    if not wrong and (gap := np.abs(ours[name].astype(np.float32) - value).max()) > FIXED_GAP:
      wrong.append(f"{name} is fixed in that format, and yours is up to {gap:.1e} away from it")
  if wrong:
    raise UserError("the format cannot hold this model: " + "; ".join(wrong) + ".")
  pairs = [zip(row.theirs, row.to_theirs(ours[row.ours]), strict=True) for row in rows]
  return {key: value for pair in pairs for key, value in pair}


def check_leaves(ours: dict[str, np.ndarray], shapes: dict) -> None:
  """Refuses leaves that are not those of the model, as `to_ours` does."""
  if wrong := _mismatches([Row(name, (name,)) for name in shapes], ours, shapes, {}):
    raise UserError("these weights do not fit the model: " + "; ".join(wrong) + ".")


def _mismatches(rows: list[Row], theirs: dict, shapes: dict, fixed: dict) -> list[str]:
  """Every key and leaf that has no partner, and every pair that differs."""
  taken = {key for row in rows for key in row.theirs}
  wrong = [f"unused key {key} {_shape(theirs[key])}" for key in theirs if key not in taken]
  filled = {row.ours for row in rows} | set(fixed)
  wrong += [f"unfilled leaf {name} {_shape(shapes[name])}" for name in shapes if name not in filled]
  for row in rows:
    if row.ours not in shapes:
      wrong += [f"unused key {key} {_shape(theirs[key])}" for key in row.theirs if key in theirs]
      continue
    if absent := [key for key in row.theirs if key not in theirs]:
      wrong.append(f"unfilled leaf {row.ours} {_shape(shapes[row.ours])} (no {', '.join(absent)})")
      continue
    blank = np.broadcast_to(np.zeros((), bool), shapes[row.ours].shape)
    for key, want in zip(row.theirs, row.to_theirs(blank), strict=True):
      got = theirs[key]
      if got.shape != want.shape:
        wrong.append(f"{key} is {_shape(got)} and should be {_shape(want)}")
      elif not jnp.issubdtype(got.dtype, jnp.floating):
        wrong.append(f"{key} is of dtype {got.dtype} and should be of floats")
  for name, value in fixed.items():
    if name in shapes and value.shape != shapes[name].shape:
      wrong.append(f"{name} is {_shape(value)} and should be {_shape(shapes[name])}")
  return wrong


def _unequal(keys: tuple[str, ...], arrays: dict) -> list[str]:
  first = arrays[keys[0]]
  return [
    f"{key} differs from {keys[0]}, of which it should be a copy"
    for key in keys[1:]
    if not (arrays[key].dtype == first.dtype and np.array_equal(arrays[key], first))
  ]


def _shape(x: np.ndarray | jax.ShapeDtypeStruct) -> str:
  return str(tuple(x.shape)).replace(" ", "")
