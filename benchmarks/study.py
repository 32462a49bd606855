"""What the studies of all papers share: runs, their records, and where their pictures come from."""

import dataclasses
import json
import pathlib
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True, eq=False)
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


class Runs:
  """The runs of a paper's table on one set of images.

  Subclasses give `recipe()`, `runs(seeds)`, `print_budget`, `print_table` and `save_grid`.

  Args:
    data: a folder of images; "" where every run is finished, or the recipe has its own set.
    workdir: one folder a run goes here.
    tiny: takes the recipe's `:tiny`.
    only: comparisons with commas; "" takes all.

  Raises:
    UserError: an unknown comparison.
  """

  comparisons: tuple[str, ...] = ()
  held_out = ""  # of the pictures, in words
  needs_data = True  # there is no set without --data

  def __init__(self, data: str, workdir: pathlib.Path, tiny: bool, only: str = ""):
    from dit_jax.core.errors import UserError

    self.data, self.tiny, self.workdir = data, tiny, workdir.resolve()
    self.only = tuple(filter(None, only.split(",")))
    for name in self.only:
      if name not in self.comparisons:
        known = ", ".join(self.comparisons) or "none"
        raise UserError(f"--only={name} is no comparison of this paper; it has {known}.")
    self._judge = None

  def done(self, seeds, out: pathlib.Path) -> list[dict]:
    """The records of all runs; those that other commands are at are waited for."""
    runs, records = list(self.runs(seeds)), {}
    while len(records) < len(runs):
      before = len(records)
      for run in runs:
        if run not in records and (record := self.finished(run, out)) is not None:
          records[run] = record
      if len(records) == before:
        time.sleep(10)
    return [records[run] for run in runs]

  def finished(self, run: Run, out: pathlib.Path) -> dict | None:
    """The record of a run, read where it is in `out`, else made; None: another command is at it.

    Raises:
      UserError: the record is of another recipe, or there are no images to make it from.
    """
    from benchmarks import claims, effects
    from dit_jax.core.errors import UserError

    path = out / f"{slug(run.name)}_seed{run.seed}.json"
    try:
      if not path.exists():
        if not self.data and self.needs_data:
          raise UserError(f"{path} is missing; give --data=FOLDER to make it.")
        with self.claimed(path.stem):
          if not path.exists():  # or another command made it meanwhile
            self._make(run, path)
    except claims.Busy:
      return None
    record = json.loads(path.read_text())
    effects.refuse_other(path, record, run.config)
    if self.data and self.source("heldout").fingerprint not in record["card"]["reference"]:
      raise UserError(f"{path} is of other images than --data={self.data}; choose another --out.")
    return record

  def _make(self, run: Run, path: pathlib.Path) -> None:
    import jax

    from benchmarks import effects
    from dit_jax.core import files

    if jax.config.jax_compilation_cache_dir is None:  # one for all runs
      jax.config.update("jax_compilation_cache_dir", str(self.workdir / "compiled"))
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
    files.write_text(path, json.dumps(record, indent=1) + "\n")
    shown = ", ".join(f"{name} {record['card']['metrics'][name]:.2f}" for name in effects.METRICS)
    print(f"[{run.name}, seed {run.seed}] {shown}; {record['minutes']} minutes", flush=True)
    jax.clear_caches()  # or two dozen runs' programs stay in memory

  def claimed(self, name: str):
    """Work of this name, which no other command with this workdir is at; see claims.claimed."""
    from benchmarks import claims

    return claims.claimed(self.workdir / "claims" / name)

  def judge(self):
    """The scores' own pictures; their features are made once."""
    from benchmarks import judge

    if self._judge is None:
      held, source = self.source("heldout"), self.recipe().data.source
      name = pathlib.Path(self.data).name or source
      described = f"{name}, {self.held_out} held out, {held.fingerprint}"
      self._judge = judge.Judge(self.source("train"), held, described)
    return self._judge

  # What the rows show.

  def source(self, split: str):
    from dit_jax.data import sources

    return sources.open_source(self.recipe().data, split)

  def real(self):
    """The held-out pictures themselves."""
    from benchmarks import judge

    return judge.images_of(self.source("heldout")), {}

  def floor(self, seed: int):
    """Training pictures, as many of each class as are held out."""
    from benchmarks import judge
    from dit_jax.evals import fidelity

    train, labels = self.source("train"), self.source("heldout").labels
    rows = fidelity.matching_rows(train.labels, labels, seed)
    return judge.images_of(train, rows), {}

  def reconstructed(self, config, workdir: pathlib.Path):
    """The held-out pictures, encoded and decoded, their maps, and the autoencoder's facts."""
    import jax

    from benchmarks import judge
    from dit_jax.core import tree as trees
    from dit_jax.data import grain_maps
    from dit_jax.evals import features, frechet
    from dit_jax.tasks import autoencoder, dvae

    stage = dvae.DVAETask(config.dvae, config.data.image_size)
    params, thresholds = autoencoder.load(config, workdir)
    images = judge.images_of(self.source("heldout"))
    maps = grain_maps.GrainMaps.from_record(thresholds)
    grains = np.stack([maps.of(image) for image in images]).astype(np.int32)
    again = jax.jit(lambda x, g: stage.reconstruct({"gen": params}, x, g))
    decoded = features.in_batches(again, images, grains)
    psnr = round(float(frechet.psnr(images, decoded).mean()), 3)
    return decoded, grains, {"dvae": trees.content_hash(params), "psnr_db": psnr}

  def drawn(self, run, config, seed: int, kept: str, level: int = 0, maps=None) -> np.ndarray:
    """Pictures of the held-out pictures' classes, or of what holds those at a level of the tree.

    Args:
      run: of tasks.restored.
      config: says how to sample, as of today: what is trained remembers how it was to be then.
      seed: of noise and maps.
      kept: name of the file in the workdir that keeps images and maps.
      level: of the tree.
      maps: (labels, indices) -> grain maps; None: the grain transformer's.
    """
    from dit_jax.sampling import generate

    label = self.source("heldout").labels
    if level:
      label = run.models.tiers.ancestors(level)[label]
    index = np.arange(len(label), dtype=np.int32)
    generator = generate.Generator(run.models, run.settings(**config.sampling))
    maps = maps or (lambda label, index: generator.grain_maps(run.params, label, index, seed))
    grains = maps(label, index)
    images = generator.images(run.params, label, index, grains, seed)
    self.keep(kept, images=images, grains=grains)
    return images

  def keep(self, name: str, **arrays) -> None:
    """Writes arrays that `save_grid` shows."""
    np.savez(self.workdir / f"{name}.npz", **arrays)

  def kept(self, name: str) -> dict[str, np.ndarray]:
    """Reads them.

    Raises:
      UserError: they are in another workdir.
    """
    from dit_jax.core.errors import UserError

    path = self.workdir / f"{name}.npz"
    if not path.exists():
      raise UserError(f"--grid needs {path}, of the run that drew it; give that run's --workdir.")
    with np.load(path) as arrays:
      return dict(arrays)


def slug(name: str) -> str:
  """The name of a row, as files have it."""
  return re.sub("[ +]", "_", name.lower())
