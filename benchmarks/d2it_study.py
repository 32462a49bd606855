"""D2iT's comparisons on emoji: which of the paper's orderings hold at equal FLOPs.

Of configs/d2it_emoji.py, each row with three seeds, which change all that comes after the data:
DVAE, maps, transformer and noise. A seed has five DVAEs that differ in their share of fine regions;
each of its transformers stands on one of them, so that a fixed grain has a DVAE of its own.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from benchmarks import d2it_budget, study

HALF = 0.5  # the share of fine regions that D2iT's transformers stand on


@dataclasses.dataclass(frozen=True)
class Row:
  """What pictures of a row are drawn with.

  Attributes:
    fine: share of the fine regions in its DVAE; 0 and 1 have one grain, and a DiT.
    fields: of the recipe, where the row differs from it.
    maps: where the grain maps of its pictures come from.
    trains: whether it has a transformer of its own; else it draws with that of D2iT.
  """

  fine: float = HALF
  fields: dict[str, Any] = dataclasses.field(default_factory=dict)
  maps: str = "dgt"
  trains: bool = True


ROWS = {
  "DiT coarse": Row(fine=0.0),
  "DiT fine": Row(fine=1.0),
  "D2iT": Row(),
  "true maps": Row(maps="truth", trains=False),
  "shuffled maps": Row(maps="shuffled", trains=False),
  "random maps": Row(maps="random", trains=False),
  # As many blocks; its steps are cheaper, and so there are more of them.
  "6+0": Row(fields={"dct.model.depth": 6, "dct.model.refine_depth": 0, "dct.total_steps": 1_111}),
  "copied": Row(fields={"dct.diffusion.loss": "copied"}),
  "grain means": Row(fields={"dct.diffusion.loss": "grain_means"}),
}
DECODED = {f"decoded {fine:g}": fine for fine in (0.0, 0.25, 0.5, 0.75, 1.0)}
COMPARISONS = {  # name -> pairs of rows, the lower one first as the paper (or sense) has it
  "grains": (("D2iT", "DiT coarse"), ("D2iT", "DiT fine")),
  "maps": (
    ("true maps", "D2iT"),
    ("D2iT", "shuffled maps"),
    ("D2iT", "random maps"),
    ("shuffled maps", "random maps"),
  ),
  "depth": (("D2iT", "6+0"),),
  "ratio": tuple(zip(list(DECODED)[1:], list(DECODED)[:-1], strict=True)),
  "loss": (("D2iT", "copied"), ("D2iT", "grain means")),
}
BETWEEN = ("D2iT", "true maps", "random maps")  # the paper: 4.47 of 4.35 and 15.93, so 0.01


class Study(study.Runs):
  """The rows: held-out emoji, the floor, those decoded by five DVAEs, and nine ways to draw."""

  comparisons = tuple(COMPARISONS)
  held_out, needs_data = "every 3rd", False

  def recipe(self, seed: int = 0, row: Row | None = None):
    """The config of a row."""
    from dit_jax.core import config as configs

    row = row or Row()
    words = (f"fine={row.fine}",) + ("tiny",) * self.tiny
    c = configs.load(study.ROOT / "configs" / "d2it_emoji.py", ",".join(words))
    c.update_from_flattened_dict(row.fields)
    if self.tiny and row.fields:
      c.dct.total_steps = 4
    c.data.path, c.seed = self.data, seed
    for name in ("dvae", *c.stages):
      c[name].every.preview = 0
    return c

  def runs(self, seeds):
    """Every row for every seed: the DVAEs of all seeds first, then seed by seed."""
    wanted = {name for c in self.only or COMPARISONS for pair in COMPARISONS[c] for name in pair}
    yield study.Run("held out", 0, self.recipe(), self.real)
    for seed in seeds:
      make = lambda seed=seed: self.floor(seed)
      yield study.Run("floor", seed, self.recipe(seed), make, asked=False)
    for seed in seeds:
      for name, fine in DECODED.items():
        if name in wanted:
          make = lambda seed=seed, fine=fine: self.decoded(seed, fine)
          yield study.Run(name, seed, self.dvae_recipe(seed, fine), make)
    for seed in seeds:
      for name in (name for name in ROWS if name in wanted):
        make = lambda seed=seed, name=name: self.generated(seed, name)
        yield study.Run(name, seed, self.recipe(seed, ROWS[name]), make)

  # What the rows show.

  def decoded(self, seed: int, fine: float):
    """The held-out emoji through a DVAE: what a perfect transformer would be scored."""
    config, workdir = self.trained_dvae(seed, fine)
    images, grains, facts = self.reconstructed(config, workdir)
    self.keep(f"{study.slug(f'decoded {fine:g}')}_seed{seed}", images=images, grains=grains)
    return images, facts

  def generated(self, seed: int, name: str):
    """Pictures of the held-out emoji's classes, drawn as a row says."""
    from dit_jax.core import tree as trees
    from dit_jax.tasks import restored

    row, config = ROWS[name], self.recipe(seed, ROWS[name])
    workdir = self.trained(seed, name if row.trains else "D2iT")
    run = restored.load(workdir)
    maps = None
    if row.maps != "dgt":
      cache = workdir / "latents"
      maps = lambda label, index: given_maps(row.maps, label, index, seed, run, cache)
    images = self.drawn(run, config, seed, f"{study.slug(name)}_seed{seed}", maps=maps)
    return images, {
      "dvae": trees.content_hash(run.params["dvae"]),
      "transformer": trees.content_hash(run.params["content"]),
    }

  def dvae_recipe(self, seed: int, fine: float):
    """The config of a DVAE, and of D2iT's grain transformer, which is trained beside it."""
    config = self.recipe(seed, Row(fine=fine))
    config.stages = ("dvae", "dgt") if fine == HALF else ("dvae",)
    return config

  def trained_dvae(self, seed: int, fine: float):
    """Its config and workdir, trained once."""
    from dit_jax import train

    config, workdir = self.dvae_recipe(seed, fine), self.workdir / f"dvae_{fine:g}_seed{seed}"
    with self.claimed(workdir.name):
      train.train_and_evaluate(config, workdir, stage="dvae")
    return config, workdir

  def trained(self, seed: int, name: str) -> pathlib.Path:
    """The workdir of a row with its transformer, on the DVAE, latents and maps of its seed."""
    from dit_jax import train
    from dit_jax.tasks import latent_stage

    row, config = ROWS[name], self.recipe(seed, ROWS[name])
    workdir = self.workdir / f"{study.slug(name)}_trained_seed{seed}"
    with self.claimed(workdir.name):
      base_config, base = self.trained_dvae(seed, row.fine)
      with self.claimed(base.name):
        train.train_and_evaluate(base_config, base)
        latent_stage.ensure(config, base, None)
      train.claim(workdir, config)
      for shared in ("dvae", "dgt", "latents"):
        if (base / shared).exists() and not (workdir / shared).exists():
          (workdir / shared).symlink_to(base / shared, target_is_directory=True)
      train.train_and_evaluate(config, workdir)
    return workdir

  # What is printed and drawn.

  def print_budget(self, seeds: int) -> None:
    """A table of the runs and what they cost; see d2it_budget."""
    d2it_budget.print_table(self.costs(), seeds)

  def costs(self) -> dict[str, d2it_budget.Cost]:
    """Row -> what one seed of it costs; the grain transformer is in the row of D2iT."""
    classes, held = self.source("all").classes.sizes, len(self.source("heldout"))
    found = {}
    for run in self.runs((0,)):
      trains = run.config.stages if run.name in DECODED else ()
      if (row := ROWS.get(run.name)) is not None and row.trains:
        trains = run.config.stages[1 if run.name == "D2iT" else -1 :]
      trains = tuple(name for name in trains if run.name in ROWS or name == "dvae")
      found[run.name] = d2it_budget.of_run(run.config, trains, row is not None, held, classes)
    return found

  def print_table(self, records: list[dict]) -> None:
    """Rows as mean and sd over seeds, then the orderings and how they read."""
    from benchmarks import effects, orderings

    effects.refuse_mixture(records)
    refuse_strangers(records)
    psnr = lambda rows: effects.mean_and_sd([r.get("psnr_db") for r in rows])
    effects.print_rows(records, f"{'PSNR dB':>10s}", psnr)
    print(
      "\norderings: the first row less the second, by seed; the paper (or sense) has it below.\n"
      f"The floor's VGG-FD ranges over {effects.resolution_of(records):.1f}"
    )
    names = {r["row"] for r in records}
    for comparison in self.only or COMPARISONS:
      for lower, higher in COMPARISONS[comparison]:
        found = orderings.ordering(records, lower, higher)
        print(f"{comparison:7s} {orderings.line(found)}")
    if names.issuperset(BETWEEN):
      place = orderings.place_between(records, *BETWEEN)
      shown = [f"{m} " + " ".join(f"{x:.2f}" for x in values) for m, values in place.items()]
      print(f"D2iT's own maps, 0 as true ones, 1 as random ones: {'; '.join(shown)}")

  def save_grid(self, path: str, seed: int, columns: int = 8) -> None:
    """A picture a comparison: its rows for the same classes and noise, and their grain maps."""
    from benchmarks import judge
    from dit_jax.sampling import grids

    held = self.source("heldout")
    places = np.linspace(0, len(held) - 1, 2 * columns).astype(int)[1::2]
    path = pathlib.Path(path)
    for comparison in self.only or COMPARISONS:
      titled = [("held out", judge.images_of(held, places))]
      for name in dict.fromkeys(n for pair in COMPARISONS[comparison] for n in pair):
        kept = self.kept(f"{study.slug(name)}_seed{seed}")
        images, grains = kept["images"][places], kept["grains"][places]
        titled.append((name, images))
        if grains.any():
          titled.append((f"{name}: its fine regions", grids.overlay(images, grains, 2)))
      grids.save_png(path.with_stem(f"{path.stem}_{comparison}"), grids.blocks(titled, columns))


def given_maps(kind: str, label, index, seed: int, run, cache: pathlib.Path) -> np.ndarray:
  """Grain maps that no transformer draws, int32 [n, rows, cols].

  Args:
    kind: "truth": of a training image of the same class; "shuffled": the same, its regions in a
      random order; "random": every region by itself, at the training set's share.
    label, index: of the pictures.
    seed: of the draws.
    run: of tasks.restored.
    cache: the latents of the training set.
  """
  from dit_jax.data import latents
  from dit_jax.sampling import grain_source

  if kind == "random":
    fractions = run.meta["thresholds"]["fractions"]
    return grain_source.by_rule("random", index, seed, run.models.regions, fractions)
  source = latents.LatentSource(cache)
  maps = maps_of_class(source.grains, source.labels, label, np.random.default_rng(seed))
  return maps if kind == "truth" else shuffled(maps, np.random.default_rng((seed, 1)))


def maps_of_class(grains, labels, wanted, rng) -> np.ndarray:
  """A map of a random image of each wanted class; none twice while there are others."""
  out = np.zeros((len(wanted), *grains.shape[1:]), np.int32)
  for label in np.unique(wanted):
    have, places = np.flatnonzero(labels == label), np.flatnonzero(wanted == label)
    order = [rng.permutation(have) for _ in range(-(-len(places) // len(have)))]
    out[places] = grains[np.concatenate(order)[: len(places)]]
  return out


def shuffled(maps: np.ndarray, rng) -> np.ndarray:
  """Each map with its own regions in a random order."""
  flat = maps.reshape(len(maps), -1)
  return rng.permuted(flat, axis=1).reshape(maps.shape)


def refuse_strangers(records: list[dict]) -> None:
  """Raises UserError where rows of one seed stand on two DVAEs, or draw with two transformers."""
  from dit_jax.core.errors import UserError

  known = {}
  for r in records:
    for part, fields in (("dvae", ("seed", "data", "dvae")), ("transformer", ())):
      if part in r:
        recipe = str([r["config"][field] for field in fields or sorted(r["config"])])
        name, found = known.setdefault((part, recipe), (r["row"], r[part]))
        if found != r[part]:
          raise UserError(
            f"rows {name!r} and {r['row']!r} of seed {r['seed']} have one recipe and two trainings "
            f"of the {part}: they are of two workdirs; move the records of one away."
          )
