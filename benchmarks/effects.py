"""Records of finished runs, one small JSON each, and how a table of them reads.

A record has `row`, `seed`, `on` (the factors of a cell; null where the row is no cell), `card` (of
dit_jax.evals.fidelity), `recognised` (of benchmarks.judge, null for training photos), `config`, and
where there are such things, the hash of its `base` and `hrig`, the strength that was measured.
"""

import dataclasses
import json
import operator

import numpy as np

METRICS = ("VGG-FD", "VGG-KID")  # both fall as pictures get nearer to the photos
LABELS = ("class", "superclass")  # percentages of pictures that are taken for what was asked for


def as_json(config) -> dict:
  """A recipe without the places of data and base, which say nothing of the result."""
  from dit_jax.core import config as configs

  config = configs.from_json(configs.to_json(config))
  config.data.path = config.init_from = ""
  return json.loads(configs.to_json(config))


def refuse_other(path, record: dict, config) -> None:
  """Raises UserError where a record was made by another recipe than `config`."""
  from dit_jax.core import config as configs
  from dit_jax.core.errors import UserError
  from dit_jax.sampling import generate

  old, new = (configs.from_json(json.dumps(x)) for x in (record["config"], as_json(config)))
  found = configs.resume_differences(old, new)
  drawn = (generate.Settings(**c.sampling) for c in (old, new))  # older records say less of it
  if operator.ne(*drawn):
    found.append("sampling")
  if found:
    raise UserError(
      f"{path} is of another recipe ({'; '.join(found[:3])}); move it away, or choose another "
      "--out."
    )


def refuse_mixture(records: list[dict]) -> None:
  """Raises UserError where records were scored unlike each other, or started from two bases."""
  from dit_jax.core.errors import UserError
  from dit_jax.evals import fidelity

  names = [f"{r['row']}, seed {r['seed']}" for r in records]
  cards = [fidelity.Card(**r["card"]) for r in records]
  fidelity.refuse_mixture(dict(zip(names, cards, strict=True)))
  bases = {r["base"]: name for name, r in zip(names, records, strict=True) if "base" in r}
  if len(bases) > 1:
    raise UserError(
      f"the runs started from {len(bases)} bases ({'; '.join(bases.values())}): a table has one; "
      "choose another --out, or move the older records away."
    )


@dataclasses.dataclass(frozen=True)
class Effect:
  """What turning a factor on does to the metrics, over all cells of the others.

  Attributes:
    factor: its name.
    by_seed: metric or label -> mean of the cells with it - mean of those without it, seed by seed.
    reading: "better" or "worse" where every seed says so in every metric, and the mean VGG-FD
      moves by what can be told apart; else "not resolved". Labels have no part in it.
  """

  factor: str
  by_seed: dict[str, list[float]]
  reading: str


def numbers(record: dict) -> dict[str, float]:
  """Metrics and labels of a record by name; training photos have no labels."""
  return record["card"]["metrics"] | (record["recognised"] or {})


def effects(records: list[dict], factors: tuple[str, ...], resolution: float) -> list[Effect]:
  """The main effect of each factor.

  Args:
    records: of finished runs; rows that are no cells are passed over.
    factors: names.
    resolution: the least difference of VGG-FD that is one.
  """
  cells = [r for r in records if r["on"] is not None]
  seeds = sorted({r["seed"] for r in cells})

  def mean(metric, seed, factor, side):
    chosen = [r for r in cells if r["seed"] == seed and (factor in r["on"]) == side]
    return np.mean([numbers(r)[metric] for r in chosen])

  found = []
  for factor in factors:
    by_seed = {
      m: [float(mean(m, s, factor, True) - mean(m, s, factor, False)) for s in seeds]
      for m in METRICS + LABELS
    }
    every = np.concatenate([by_seed[m] for m in METRICS])
    reading = "not resolved"
    if abs(np.mean(by_seed["VGG-FD"])) >= resolution and abs(np.sign(every).sum()) == len(every):
      reading = "better" if every[0] < 0 else "worse"
    found.append(Effect(factor, by_seed, reading))
  return found


def resolution_of(records: list[dict]) -> float:
  """How far VGG-FD of real photos moves from one draw of them to another: the floor's range."""
  floor = [r["card"]["metrics"]["VGG-FD"] for r in records if r["row"] == "floor"]
  return max(floor) - min(floor)


def mean_and_sd(values: list[float | None]) -> str:
  """18 characters: the mean, and in brackets the sd where there are several; "-" for no values."""
  if None in values:
    return f"{'-':>10s}{'':8s}"
  sd = f"({np.std(values, ddof=1):.2f})" if len(values) > 1 else ""
  return f"{np.mean(values):10.2f} {sd:7s}"


def print_rows(records: list[dict], title: str, last) -> None:
  """The rows as mean and sd over seeds; `last`: records of a row -> its last column, titled."""
  head = "".join(f"{name:>10s}{'':8s}" for name in (*METRICS, "class %", "superclass %"))
  print(f"\n{'n = ' + str(records[0]['card']['n']):16s} seeds{head}{title}")
  for name in dict.fromkeys(r["row"] for r in records):
    rows = [r for r in records if r["row"] == name]
    shown = "".join(mean_and_sd([numbers(r).get(m) for r in rows]) for m in METRICS + LABELS)
    print(f"{name:16s} {len(rows):5d}{shown}{last(rows)}".rstrip())


def print_table(records: list[dict], factors: tuple[str, ...]) -> None:
  """Rows as mean and sd over seeds, then the effects and how they read."""
  strength = lambda rows: " ".join(f"{r['hrig']['strength']}" for r in rows if "hrig" in r)
  print_rows(records, "HRIG's strength", strength)
  resolution = resolution_of(records)
  print(
    f"\neffects: cells with a factor less cells without it, by seed; VGG-FD {resolution:.1f} is"
  )
  print("the range of the floor, and less than that is no difference")
  for effect in effects(records, factors, resolution):
    shown = [
      f"{metric} " + " ".join(f"{x:+.2f}" for x in values)
      for metric, values in effect.by_seed.items()
    ]
    print(f"{effect.factor:6s} {'; '.join(shown)}: {effect.reading}")
