"""Orderings of two rows, seed by seed: whether a paper's claim holds in every seed and metric."""

import dataclasses

import numpy as np

from benchmarks import effects

SEEDS = 3  # fewer decide nothing; were two rows alike, one ordering in eight would still hold


@dataclasses.dataclass(frozen=True)
class Ordering:
  """How far one row lies below another, which a paper has above it.

  Attributes:
    lower, higher: names of the rows.
    by_seed: metric -> lower - higher, of the seeds that both rows have.
    reading: "holds" or "reversed" where every seed says so in every metric, and there are SEEDS of
      them; else "not resolved".
  """

  lower: str
  higher: str
  by_seed: dict[str, list[float]]
  reading: str


def ordering(records: list[dict], lower: str, higher: str) -> Ordering:
  """Reads lower < higher from the records of finished runs."""
  rows = {(r["row"], r["seed"]): r["card"]["metrics"] for r in records}
  seeds = sorted(s for name, s in rows if name == lower and (higher, s) in rows)
  by_seed = {m: [rows[lower, s][m] - rows[higher, s][m] for s in seeds] for m in effects.METRICS}
  signs = {float(np.sign(x)) for values in by_seed.values() for x in values}
  words = {(-1.0,): "holds", (1.0,): "reversed"}
  reading = words.get(tuple(signs), "not resolved") if len(seeds) >= SEEDS else "not resolved"
  return Ordering(lower, higher, by_seed, reading)


def place_between(records: list[dict], name: str, low: str, high: str) -> dict[str, list[float]]:
  """Where a row lies between two others, seed by seed: 0 at `low`, 1 at `high`.

  NaN where `high` is not above `low`: there is no scale then.
  """
  to_low, whole = (ordering(records, *pair).by_seed for pair in ((name, low), (high, low)))
  place = lambda a, b: a / b if b > 0 else float("nan")
  return {m: list(map(place, to_low[m], whole[m])) for m in effects.METRICS}


def line(found: Ordering) -> str:
  """The differences of an ordering by seed, and how they read."""
  shown = [f"{m} " + " ".join(f"{x:+.2f}" for x in found.by_seed[m]) for m in effects.METRICS]
  return f"{found.lower} < {found.higher}: {'; '.join(shown)}: {found.reading}"
