"""Where sampling takes its grain maps from: the grain transformer, a picture, or a rule."""

import numpy as np

from dit_jax.core.errors import UserError

KINDS = ("dgt", "entropy-of:IMAGE", "all-fine", "all-coarse", "random")
OUTSIDE = ("all-fine", "all-coarse", "random")  # maps that no training image had


def parse(text: str) -> tuple[str, str]:
  """Splits "entropy-of:bird.jpg" into ("entropy-of", "bird.jpg"); other kinds have no argument.

  Raises:
    UserError: an unknown kind, or an image that is not named.
  """
  kind, _, argument = text.partition(":")
  if kind == "entropy-of" and argument:
    return kind, argument
  if text in KINDS and kind != "entropy-of":
    return kind, ""
  raise UserError(f"--grain={text} is unknown; choose one of {', '.join(KINDS)}.")


def by_rule(
  kind: str, index: np.ndarray, seed: int, shape: tuple[int, int], fractions: list[float]
) -> np.ndarray:
  """Maps int32 [n, rows, cols] of the kinds in OUTSIDE.

  Args:
    kind: one of OUTSIDE.
    index: sample numbers; map i is a function of (seed, i).
    seed: root of the draws of "random".
    shape: (rows, cols).
    fractions: share of regions by grain in the training set; "random" draws every region from
      them, independently, as in the paper's comparison (D2iT, Table 5).
  """
  if kind == "random":
    draw = lambda i: np.random.default_rng((seed, i)).choice(
      len(fractions), shape, p=np.asarray(fractions) / sum(fractions)
    )
    return np.stack([draw(int(i)) for i in index]).astype(np.int32)
  grain = 0 if kind == "all-coarse" else len(fractions) - 1
  return np.full((len(index), *shape), grain, np.int32)
