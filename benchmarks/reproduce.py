"""A paper's comparison at a size for the machine at hand: trains, samples, scores, prints a table.

  python benchmarks/reproduce.py --paper=efdit --data=FOLDER [--workdir=DIR] [--seeds=0,1,2]

`efdit`: one base that is shown superclasses alone, then the 2^3 fine-tunes {TE, HRIG, ProAttention}
from it (configs/efdit_birds.py). Every run draws as many pictures as there are held-out photos, of
the same classes, and is scored against those. A finished run leaves a JSON file in --out and is not
repeated; with all of them there, only the table is printed. A kept --workdir resumes what was
interrupted. Once the base is there, commands with other --seeds may share --out and --workdir.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Paper:
  """One table of cells: a recipe and the factors that are on or off in it.

  Attributes:
    recipe: in configs/; `:base` trains what all cells start from.
    factors: name -> {field of the recipe: (its value where off, its value where on)}.
    shown: cells of the grid of pictures, as the factors that are on.
  """

  recipe: str
  factors: dict[str, dict[str, tuple[Any, Any]]]
  shown: tuple[tuple[str, ...], ...]


PAPERS = {
  "efdit": Paper(
    "efdit_birds.py",
    {
      # Both sides are guided away from "no class", which is another level of another tree.
      "TE": {"dit.labels.fusion": ("none", "sum"), "sampling.guidance_level": (1, 2)},
      "HRIG": {"dit.hrig.enabled": (False, True)},
      "Pro": {"dit.model.attention.kind": ("full", "pro")},
    },
    shown=((), ("TE", "HRIG"), ("TE", "HRIG", "Pro")),
  ),
}


@dataclasses.dataclass(frozen=True)
class Run:
  """One row of the table for one seed.

  Attributes:
    name: of the row.
    seed: of what is drawn, and of the training where the row trains.
    config: its recipe, without the places of data and base.
    make: () -> (images, facts), the work.
    on: factors of a cell; None where the row is none.
    asked: whether the images are made for classes, not training photos of them.
  """

  name: str
  seed: int
  config: Any
  make: Callable[[], tuple[np.ndarray, dict]]
  on: tuple[str, ...] | None = None
  asked: bool = True


def main(words=None) -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--paper", required=True, choices=sorted(PAPERS))
  parser.add_argument("--data", default="", help="an image folder, root/superclass/class/*")
  parser.add_argument("--out", default="", help="default: benchmarks/results/PAPER")
  parser.add_argument("--workdir", default="", help="kept, and resumed; default: a temporary one")
  parser.add_argument("--seeds", default="0,1,2")
  parser.add_argument("--grid", default="", help="a PNG of some classes before and after")
  parser.add_argument("--tiny", action="store_true", help="the recipe's :tiny, to try the command")
  args = parser.parse_args(words)
  from benchmarks import effects

  with contextlib.ExitStack() as stack:
    folder = args.workdir or stack.enter_context(tempfile.TemporaryDirectory())
    study = Study(PAPERS[args.paper], args.data, pathlib.Path(folder), args.tiny)
    seeds = [int(word) for word in args.seeds.split(",")]
    study.print_budget(len(seeds))
    out = pathlib.Path(args.out or ROOT / "benchmarks" / "results" / args.paper)
    done = [study.finished(run, out) for run in study.runs(seeds)]
    effects.refuse_mixture(done)
    effects.print_table(done, tuple(study.paper.factors))
    if args.grid:
      study.save_grid(args.grid, seeds[0])


class Study:
  """The runs of a paper's table on one folder of images.

  Args:
    paper: of PAPERS.
    data: the folder; "" where every run is finished.
    workdir: one folder a run goes here, and the base's.
    tiny: takes the recipe's `:tiny`.
  """

  def __init__(self, paper: Paper, data: str, workdir: pathlib.Path, tiny: bool):
    self.paper, self.data, self.tiny = paper, data, tiny
    self.workdir = workdir.resolve()
    self.base = self.workdir / "base"
    self._judge = None

  def recipe(self, seed: int = 0, on: tuple[str, ...] | None = None):
    """The config of the base, or of the cell where the factors `on` are on."""
    from dit_jax.core import config as configs

    words = ("base",) * (on is None) + ("tiny",) * self.tiny
    c = configs.load(ROOT / "configs" / self.paper.recipe, ",".join(words))
    c.data.path, c.seed, c.dit.every.preview = self.data, seed, 0
    if on is not None:
      for name, fields in self.paper.factors.items():
        c.update_from_flattened_dict({field: sides[name in on] for field, sides in fields.items()})
    return c

  def runs(self, seeds):
    """Every row for every seed, in the table's order, seed by seed."""
    from benchmarks import judge

    names = tuple(self.paper.factors)
    sides = itertools.product((False, True), repeat=len(names))
    cells = [tuple(itertools.compress(names, side)) for side in sides]
    base = self.recipe()
    yield Run("held out", 0, base, lambda: (judge.images_of(self.source("heldout")), {}))
    yield Run("decoded", 0, base, self.decoded)
    for seed in seeds:
      yield Run("floor", seed, base, lambda seed=seed: self.photos(seed), asked=False)
      yield Run("before", seed, base, lambda seed=seed: self.before(seed))
      for on in cells:
        make = lambda seed=seed, on=on: self.after(seed, on)
        yield Run("+".join(on) or "plain", seed, self.recipe(seed, on), make, on)

  def finished(self, run: Run, out: pathlib.Path) -> dict:
    """The record of a run, read where it is in `out`, else made and written there.

    Raises:
      UserError: the record is of another recipe, or there are no images to make it from.
    """
    import jax

    from benchmarks import effects
    from dit_jax.core.errors import UserError

    path = out / f"{re.sub('[ +]', '_', run.name.lower())}_seed{run.seed}.json"
    if path.exists():
      record = json.loads(path.read_text())
      effects.refuse_other(path, record, run.config)
      return record
    if not self.data:
      raise UserError(f"{path} is missing; give --data=FOLDER to make it.")
    judge, begin = self.judge(), time.monotonic()
    images, facts = run.make()
    found = judge.extract(images)
    record = {
      "row": run.name,
      "on": run.on,
      "seed": run.seed,
      "minutes": round((time.monotonic() - begin) / 60, 2),
      **facts,
      "card": dataclasses.asdict(judge.card(found)),
      "recognised": judge.recognised(found) if run.asked else None,
      "config": effects.as_json(run.config),
    }
    out.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(path)
    shown = ", ".join(f"{name} {record['card']['metrics'][name]:.2f}" for name in effects.METRICS)
    print(f"[{run.name}, seed {run.seed}] {shown}; {record['minutes']} minutes", flush=True)
    jax.clear_caches()  # or two dozen runs' programs stay in memory
    return record

  # What the rows show.

  def source(self, split: str):
    from dit_jax.data import sources

    return sources.open_source(self.recipe().data, split)

  def photos(self, seed: int):
    """Training photos, as many of each class as are held out: the floor."""
    from benchmarks import judge
    from dit_jax.evals import fidelity

    train, labels = self.source("train"), self.source("heldout").labels
    rows = fidelity.matching_rows(train.labels, labels, seed)
    return judge.images_of(train, rows), {}

  def decoded(self):
    """The held-out photos, encoded and decoded: what a perfect transformer would be scored."""
    import jax
    import jax.numpy as jnp

    from benchmarks import judge
    from dit_jax.evals import features
    from dit_jax.tasks import autoencoder, dvae

    config = self.trained_base()
    stage = dvae.DVAETask(config.dvae, config.data.image_size)
    params = {"gen": autoencoder.load(config, self.base)[0]}
    regions = (config.data.image_size // config.dvae.model.factors[0],) * 2
    maps = lambda x: jnp.zeros((len(x), *regions), jnp.int32)
    again = jax.jit(lambda x: stage.reconstruct(params, x, maps(x)))
    return features.in_batches(again, judge.images_of(self.source("heldout"))), {}

  def before(self, seed: int):
    """The base's pictures of the held-out photos' superclasses."""
    from dit_jax.tasks import base

    config = self.trained_base()
    return self.drawn(self.base, config, seed, level=1), {"base": base.read(self.base / "dit")[1]}

  def after(self, seed: int, on: tuple[str, ...]):
    """A fine-tune's pictures of the held-out photos' classes."""
    from dit_jax import train
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
    return self.drawn(workdir, config, seed), facts

  def trained_base(self):
    """Trains what all cells start from, once; its config."""
    import jax

    from dit_jax import train

    if jax.config.jax_compilation_cache_dir is None:  # one for all runs
      jax.config.update("jax_compilation_cache_dir", str(self.workdir / "compiled"))
    config = self.recipe()
    train.train_and_evaluate(config, self.base)
    return config

  def drawn(self, workdir: pathlib.Path, config, seed: int, level: int = 0) -> np.ndarray:
    """Pictures of the held-out photos' classes, or of what holds those at a level of the tree.

    As `config` says today: a base that is trained already remembers how it was to be sampled then.
    """
    from dit_jax.sampling import generate
    from dit_jax.tasks import restored

    run = restored.load(workdir)
    label = self.source("heldout").labels
    if level:
      label = run.models.tiers.ancestors(level)[label]
    index = np.arange(len(label), dtype=np.int32)
    generator = generate.Generator(run.models, run.settings(**config.sampling))
    maps = generator.grain_maps(run.params, label, index, seed)
    images = generator.images(run.params, label, index, maps, seed)
    np.savez(self.workdir / f"{workdir.name}_drawn{seed}.npz", images=images)
    return images

  def judge(self):
    """The scores' own photos; their features are made once."""
    from benchmarks import judge

    if self._judge is None:
      name = pathlib.Path(self.data).name
      self._judge = judge.Judge(self.source("train"), self.source("heldout"), name)
    return self._judge

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

  def save_grid(self, path: str, seed: int, columns: int = 8) -> None:
    """Pictures of some classes, before and after, from the same noise, under their names."""
    from PIL import Image, ImageDraw

    from dit_jax.sampling import grids

    held = self.source("heldout")
    chosen = np.linspace(0, held.classes.num_classes - 1, columns).round().astype(int)
    places = [int(np.flatnonzero(held.labels == label)[0]) for label in chosen]
    rows = {"before: the base, of their superclasses": f"base_drawn{seed}"}
    for on in self.paper.shown:
      name = "_".join(on) or "plain"
      rows[f"fine-tuned, {name.replace('_', ' + ')}"] = f"{name}_seed{seed}_drawn{seed}"
    titled = []
    for title, file in rows.items():
      with np.load(self.workdir / f"{file}.npz") as drawn:
        titled.append((title, drawn["images"][places]))
    picture = grids.blocks(titled, columns)
    strip = Image.new("RGB", (picture.shape[1], 40), "white")
    for i, label in enumerate(chosen):
      words = held.classes.children[label].split(".")[-1].replace("_", "\n")
      ImageDraw.Draw(strip).text((i * picture.shape[1] // columns + 2, 0), words, fill="black")
    grids.save_png(path, np.concatenate([np.asarray(strip), picture]))


if __name__ == "__main__":
  sys.path.insert(0, str(ROOT))
  main()
