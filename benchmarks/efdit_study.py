"""EFDiT's comparison: one base that is shown superclasses alone, then fine-tunes from it.

Of configs/efdit_birds.py: `:base` trains what all cells start from, then the 2^3 fine-tunes {TE,
HRIG, ProAttention}, each for every seed.
"""

import itertools

import numpy as np

from benchmarks import study

FACTORS = {
  # Both sides are guided away from "no class", which is another level of another tree.
  "TE": {"dit.labels.fusion": ("none", "sum"), "sampling.guidance_level": (1, 2)},
  "HRIG": {"dit.hrig.enabled": (False, True)},
  "Pro": {"dit.model.attention.kind": ("full", "pro")},
}


class Study(study.Runs):
  """The rows: held-out photos, those decoded, the floor, the base, and 2^3 cells.

  Attributes:
    factors: name -> {field of the recipe: (its value where off, its value where on)}.
    shown: cells of the grid of pictures, as the factors that are on.
  """

  factors = FACTORS
  shown = ((), ("TE", "HRIG"), ("TE", "HRIG", "Pro"))
  held_out = "every 5th"

  @property
  def base(self):
    """The base's workdir."""
    return self.workdir / "base"

  def recipe(self, seed: int = 0, on: tuple[str, ...] | None = None):
    """The config of the base, or of the cell where the factors `on` are on."""
    from dit_jax.core import config as configs

    words = ("base",) * (on is None) + ("tiny",) * self.tiny
    c = configs.load(study.ROOT / "configs" / "efdit_birds.py", ",".join(words))
    c.data.path, c.seed, c.dit.every.preview = self.data, seed, 0
    if on is not None:
      for name, fields in self.factors.items():
        c.update_from_flattened_dict({field: sides[name in on] for field, sides in fields.items()})
    return c

  def runs(self, seeds):
    """Every row for every seed, in the table's order, seed by seed."""
    names = tuple(self.factors)
    sides = itertools.product((False, True), repeat=len(names))
    cells = [tuple(itertools.compress(names, side)) for side in sides]
    base = self.recipe()
    yield study.Run("held out", 0, base, self.real)
    yield study.Run("decoded", 0, base, self.decoded)
    for seed in seeds:
      yield study.Run("floor", seed, base, lambda seed=seed: self.floor(seed), asked=False)
      yield study.Run("before", seed, base, lambda seed=seed: self.before(seed))
      for on in cells:
        make = lambda seed=seed, on=on: self.after(seed, on)
        yield study.Run("+".join(on) or "plain", seed, self.recipe(seed, on), make, on)

  # What the rows show.

  def decoded(self):
    """The held-out photos, encoded and decoded: what a perfect transformer would be scored."""
    images, _, _ = self.reconstructed(self.trained_base(), self.base)
    return images, {}

  def before(self, seed: int):
    """The base's pictures of the held-out photos' superclasses."""
    from dit_jax.tasks import base, restored

    config = self.trained_base()
    images = self.drawn(restored.load(self.base), config, seed, f"base_drawn{seed}", level=1)
    return images, {"base": base.read(self.base / "dit")[1]}

  def after(self, seed: int, on: tuple[str, ...]):
    """A fine-tune's pictures of the held-out photos' classes."""
    from dit_jax import train
    from dit_jax.tasks import restored
    from dit_jax.training.checkpoint import Checkpoints

    self.trained_base()
    workdir = self.workdir / f"{'_'.join(on) or 'plain'}_seed{seed}"
    config = self.recipe(seed, on)
    config.init_from = str(self.base)
    train.claim(workdir, config)
    if not (workdir / "latents").exists():  # those of the base, whose DVAE it takes over
      (workdir / "latents").symlink_to(self.base / "latents", target_is_directory=True)
    train.train_and_evaluate(config, workdir)
    meta = Checkpoints(workdir / "dit").read_meta()
    facts = {"base": meta["base"]["hash"]} | {k: meta[k] for k in ("hrig",) if k in meta}
    kept = f"{workdir.name}_drawn{seed}"
    return self.drawn(restored.load(workdir), config, seed, kept), facts

  def trained_base(self):
    """Trains what all cells start from, once; its config."""
    from dit_jax import train

    config = self.recipe()
    with self.claimed("base"):
      train.train_and_evaluate(config, self.base)
    return config

  # What is printed and drawn.

  def print_budget(self, seeds: int) -> None:
    """A table of the runs and what they cost to train, two FLOPs a multiply-add."""
    from dit_jax.data import sources
    from dit_jax.tasks import sizes
    from dit_jax.training import sharding

    base = self.recipe()
    classes = sources.open_source(base.data).classes.sizes if self.data else base.data.classes
    print("run             stage  times  steps x batch       TFLOP, all of them")
    rows = [("base", base, base.stages, 1)]
    rows += [
      (run.name, run.config, ("dit",), seeds) for run in self.runs((0,)) if run.on is not None
    ]
    total = 0
    for name, config, stages, times in rows:
      config.stages = stages
      found = sizes.measure(config, classes, sharding.make_mesh(config.mesh))
      for stage in stages:
        block = config[stage]
        flop = found["flops_per_image"][stage]["train"] * block.batch_size * block.total_steps
        total += times * flop
        steps = f"{block.total_steps} x {block.batch_size}"
        print(f"{name:15s} {stage:6s} {times:5d}  {steps:13s} {times * flop / 1e12:24.2f}")
    print(f"{'training, all together':43s} {total / 1e12:24.2f}", flush=True)

  def print_table(self, records: list[dict]) -> None:
    """Refuses records that do not belong together, and prints the rest."""
    from benchmarks import effects

    effects.refuse_mixture(records)
    effects.print_table(records, tuple(self.factors))

  def save_grid(self, path: str, seed: int, columns: int = 8) -> None:
    """Pictures of some classes, before and after, from the same noise, under their names."""
    from PIL import Image, ImageDraw

    from dit_jax.sampling import grids

    held = self.source("heldout")
    chosen = np.linspace(0, held.classes.num_classes - 1, columns).round().astype(int)
    places = [int(np.flatnonzero(held.labels == label)[0]) for label in chosen]
    rows = {"before: the base, of their superclasses": f"base_drawn{seed}"}
    for on in self.shown:
      name = "_".join(on) or "plain"
      rows[f"fine-tuned, {name.replace('_', ' + ')}"] = f"{name}_seed{seed}_drawn{seed}"
    titled = []
    for title, file in rows.items():
      titled.append((title, self.kept(file)["images"][places]))
    picture = grids.blocks(titled, columns)
    strip = Image.new("RGB", (picture.shape[1], 40), "white")
    for i, label in enumerate(chosen):
      words = held.classes.children[label].split(".")[-1].replace("_", "\n")
      ImageDraw.Draw(strip).text((i * picture.shape[1] // columns + 2, 0), words, fill="black")
    grids.save_png(path, np.concatenate([np.asarray(strip), picture]))
