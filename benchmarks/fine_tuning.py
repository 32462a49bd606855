"""What does a step of a fine-tune cost? Every `peft` beside training all weights, in one run.

  python benchmarks/fine_tuning.py [--batch=2] [--depth=2] [--kinds=full,efdit] [--out=FILE.json]

The real train step of configs/efdit_vegfru.py in float32, with drawn weights and random latents,
on one device of those that are there. The transformer is XL's but for the depth; the autoencoder,
which only previews read, is cut. `efdit` trains HRIG, the others are without it. FLOPs by our count
and by the compiler's, bytes of the program, and the time of a step: all kinds take turns, A B A B,
medians. On a CPU that others share, believe the processor's time.
"""

import argparse
import json
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
KINDS = ("full", "bitfit", "difffit", "finediffusion", "efdit")
STAGE = "dit"
COLUMNS = {  # of a row, in the order of the table
  "flops": "FLOPs",
  "xla_flops": "FLOPs, XLA",
  "bytes": "bytes",
  "processor_s": "processor",
  "wall_s": "wall",
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--variant", default="XL", help="of the model")
  parser.add_argument("--depth", type=int, default=2, help="blocks; 0: the variant's")
  parser.add_argument("--image-size", type=int, default=256)
  parser.add_argument("--batch", type=int, default=2)
  parser.add_argument("--also", type=int, default=8, help="a batch compiled and not run; 0: none")
  parser.add_argument("--kinds", default=",".join(KINDS), help="the first is what 1 stands for")
  parser.add_argument("--repeats", type=int, default=12, help="turns of each kind")
  parser.add_argument("--steps", type=int, default=1, help="of a turn")
  parser.add_argument("--out", default="")
  args = parser.parse_args()
  import train

  settings = {k: v for k, v in vars(args).items() if k not in ("kinds", "out")}
  rows = [train.machine() | settings]
  print(json.dumps(rows[0]))
  kinds = args.kinds.split(",")
  if args.also:
    rows += told([Run(kind, args, args.also).facts for kind in kinds])
  runs = {kind: Run(kind, args, args.batch) for kind in kinds}
  for run in runs.values():
    run.start()
  turns = train.in_turn(runs, args.repeats, args.steps)
  rows += told([run.facts | summary(turns[kind]) for kind, run in runs.items()])
  if args.out:
    pathlib.Path(args.out).write_text(json.dumps(rows, indent=2) + "\n")


def recipe(kind: str, args, batch: int):
  """configs/efdit_vegfru.py with the sizes that are asked for."""
  from dit_jax.core import config as configs

  c = configs.load(ROOT / "configs" / "efdit_vegfru.py")
  c.peft, c.frozen_dtype, c.data.image_size = kind, "float32", args.image_size
  c.dit.model.update(variant=f"{args.variant}/2", dtype="float32", remat="none")
  if args.depth:
    c.dit.model.depth = args.depth
  c.sd_vae.model.update(block_out_channels=(32,) * 4, layers_per_block=1)
  c.dit.batch_size, c.dit.hrig.enabled = batch, kind == "efdit"
  return c


class Run:
  """The compiled step of a kind; `start` gives it weights and a batch."""

  def __init__(self, kind: str, args, batch: int):
    import jax

    from dit_jax.tasks import abstract, sizes
    from dit_jax.training import memory, sharding

    self.config = recipe(kind, args, batch)
    mesh, classes = sharding.make_mesh({}, jax.devices()[:1]), tuple(self.config.data.classes)
    self.prepared = abstract.prepare(self.config, STAGE, classes, mesh)
    self.parts = sizes.parts(self.config, STAGE, sizes.latent_meta(self.config, classes))
    self.program = self.prepared.step.compile(self.prepared.state, self.prepared.batch)
    analysis = self.program.memory_analysis()
    measured = sizes.measure(self.config, classes, mesh)
    self.facts = {
      "kind": kind,
      "batch": batch,
      "trainable": measured["trainable"][STAGE],
      "flops": batch * measured["flops_per_image"][STAGE]["train"],
      "xla_flops": self.program.cost_analysis()["flops"],
      "bytes": memory.needed(self.program),
      "argument_bytes": analysis.argument_size_in_bytes,
      "temporary_bytes": analysis.temp_size_in_bytes,
    }

  def start(self) -> None:
    """Draws the weights, the frozen ones too, and a batch of latents."""
    import jax
    import jax.numpy as jnp
    import train

    from dit_jax.training import peft

    how, init = peft.of(self.config, STAGE), self.parts[0]
    frozen = {}
    if how.name != "full":
      frozen = {peft.BASE: jax.jit(lambda key: how.split(init(key))[1])(jax.random.key(0))}
    self.state = train.born(self.prepared, frozen)
    put = lambda x, s: jax.device_put(x.astype(s.dtype), s.sharding)
    zeros = {name: jnp.zeros(s.shape) for name, s in self.prepared.batch.items()}
    moments = jax.random.normal(jax.random.key(1), zeros["moments"].shape)
    made = zeros | {"moments": moments, "index": jnp.arange(len(moments))}
    self.batch = {name: put(made[name], s) for name, s in self.prepared.batch.items()}

  def turn(self, steps: int):
    """[processor's, wall] seconds of so many steps."""
    import jax
    import numpy as np

    clocks = lambda: np.array([time.process_time(), time.perf_counter()])
    begin = clocks()
    for _ in range(steps):
      self.state, metrics = self.program(self.state, self.batch)
    jax.block_until_ready((self.state, metrics))
    return clocks() - begin


def summary(turns: list) -> dict:
  """Medians of both clocks, and the least and the most of the processor's."""
  import numpy as np

  processor, wall = np.transpose(turns)
  return {
    "processor_s": float(np.median(processor)),
    "wall_s": float(np.median(wall)),
    "processor_range_s": [float(processor.min()), float(processor.max())],
  }


def told(rows: list[dict]) -> list[dict]:
  """Prints the rows of one batch size as shares of the first; returns them with the shares."""
  columns = [name for name in COLUMNS if name in rows[0]]
  rows = [row | {"to_first": {k: row[k] / rows[0][k] for k in columns}} for row in rows]
  print(f"batch {rows[0]['batch']:<8d}", *(f"{COLUMNS[name]:>11s}" for name in columns))
  for row in rows:
    print(f"{row['kind']:14s}", *(f"{x:11.3f}" for x in row["to_first"].values()), flush=True)
  return rows


if __name__ == "__main__":
  sys.path.insert(0, str(ROOT))
  main()
