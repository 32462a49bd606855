"""What do dynamic grains buy? Three DVAEs trained alike on a folder: coarse, dynamic, fine.

  python benchmarks/grains.py --data=FOLDER [--steps=1200] [--out=benchmarks/results/grains.json]

Every 5th image of a class is held out. Prints thresholds, the realised fine fraction, and PSNR on
the held-out images beside the tokens an image costs.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
FACTORS = {"coarse": (8,), "dynamic": (4, 8), "fine": (4,)}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--data", required=True)
  parser.add_argument("--steps", type=int, default=1_200)
  parser.add_argument("--out", default="")
  args = parser.parse_args()
  rows = {name: measure(args.data, factors, args.steps) for name, factors in FACTORS.items()}
  print(f"{'grains':8s} {'tokens':>8s} {'PSNR dB':>8s} {'params':>10s} {'minutes':>8s}")
  for name, row in rows.items():
    print(
      f"{name:8s} {row['tokens']:8.1f} {row['psnr_db']:8.2f} {row['params']:10,d} "
      f"{row['minutes']:8.1f}"
    )
  dynamic = rows["dynamic"]
  print(f"thresholds {dynamic['taus']} nats; fine fraction {dynamic['fine_fraction']:.4f} realised")
  if args.out:
    pathlib.Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(args.out).write_text(json.dumps(rows, indent=2) + "\n")


def recipe(data: str, factors: tuple[int, ...], steps: int):
  """The demo's DVAE, with one grain or two."""
  from dit_jax.core import config as configs

  c = configs.load(ROOT / "configs" / "demo.py")
  c.stages = ("dvae",)
  c.data.path, c.data.only, c.data.holdout = data, (), 5
  c.dvae.model.factors, c.dvae.model.z_channels = factors, 4
  c.dvae.model.encoder_mults = (1, 1, 2, 2)[: 3 + (factors[-1] == 8)]
  c.dvae.model.decoder_mults = (1, 1, 2, 2)[: 3 + (factors[0] == 8)]
  c.dvae.ratios = (1.0,) if len(factors) == 1 else (0.5, 0.5)
  c.dvae.total_steps = steps
  c.dvae.every = dict(log=100, save=100_000, preview=0)
  return c


def measure(data: str, factors: tuple[int, ...], steps: int) -> dict:
  """Trains one DVAE and measures it on the held-out images."""
  import jax
  import numpy as np

  from dit_jax import train
  from dit_jax.core import tree as trees
  from dit_jax.data import grain_maps, sources
  from dit_jax.evals import frechet
  from dit_jax.nn import grains as structure
  from dit_jax.tasks import dvae
  from dit_jax.training.checkpoint import Checkpoints

  c = recipe(data, factors, steps)
  begin = time.monotonic()
  with tempfile.TemporaryDirectory() as workdir:
    train.train_and_evaluate(c, pathlib.Path(workdir) / "run")
    ema, meta, _ = Checkpoints(pathlib.Path(workdir) / "run" / "dvae").restore_ema()
  minutes = (time.monotonic() - begin) / 60
  held = sources.open_source(c.data, "heldout")
  maps = grain_maps.GrainMaps.from_record(meta["thresholds"])
  stage = dvae.DVAETask(c.dvae, c.data.image_size)
  step = jax.jit(lambda x, g: stage.reconstruct({"gen": ema["gen"]}, x, g))
  psnr, codes, fine = [], [], []
  for start in range(0, len(held), 30):
    rows = range(start, min(start + 30, len(held)))
    batch = maps.add_to(dvae.collate([held[i] for i in rows]))
    again = np.asarray(step(batch["image"], batch["grains"]))
    psnr.append(frechet.psnr(batch["image"], again))
    codes.append(np.asarray(structure.unique_weights(batch["grains"], factors)).sum((1, 2)))
    fine.append(batch["grains"].mean((1, 2)))
  row = {
    "factors": factors,
    "psnr_db": float(np.concatenate(psnr).mean()),
    "tokens": float(np.concatenate(codes).mean()),
    "held_out_images": len(held),
    "params": trees.count(ema["gen"]),
    "steps": steps,
    "minutes": minutes,
  }
  if len(factors) == 1:
    return row
  return row | {
    "taus": meta["thresholds"]["taus"],
    "atoms": meta["thresholds"]["atoms"],
    "fine_fraction": meta["thresholds"]["fractions"][-1],
    "fine_fraction_held_out": float(np.concatenate(fine).mean()),
  }


if __name__ == "__main__":
  sys.path.insert(0, str(ROOT))
  main()
