"""What do static shapes cost? Executed over ideal FLOPs of the steps that the planner emits.

  python benchmarks/padding.py --data=FOLDER [--data=twemoji] [--image-size=256]

Measures the grain maps of a data set, plans three epochs of D2iT-XL (24 + 4 blocks) and counts, by
batch size and number of shards: slots, promotions and joined epochs included. Runs nowhere but on
the host.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import types

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
EPOCHS, BATCHES, SHARDS = 3, (16, 64, 256), (1, 8, 32)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--data", action="append", required=True, help="an image folder, or twemoji")
  parser.add_argument("--image-size", type=int, default=256)
  parser.add_argument("--variant", default="XL")
  parser.add_argument("--out", default="")
  args = parser.parse_args()
  rows = [row for data in args.data for row in measure(data, args.image_size, args.variant)]
  if args.out:
    pathlib.Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(args.out).write_text(json.dumps(rows, indent=2) + "\n")


def measure(data: str, image_size: int, variant: str) -> list[dict]:
  """A row for every batch size, number of shards and mode."""
  from dit_jax.core import buckets, slots
  from dit_jax.models import dct

  factors = (8, 16)
  regions = (image_size // factors[-1]) ** 2
  tokens = tokens_of(data, image_size, factors)
  quantum = buckets.quantum(regions, factors)
  grid = (image_size // factors[0],) * 2
  model = dct.DCT(**dct.decode_variant(variant), factors=factors, grid=grid)
  print(
    f"{pathlib.Path(data).name} at {image_size} px: {len(tokens):,} images, refined tokens "
    f"{tokens.mean():.0f} of {regions * 4} on average, sd {tokens.std():.0f}; "
    f"{variant}, {model.depth} + {model.refine_depth} blocks"
  )
  print("batch  shards   mixed     pad   slots of a step, images x tokens")
  rows = []
  for batch_size in BATCHES:
    for shards in (s for s in SHARDS if batch_size % s == 0):
      shapes = slots.mixed(tokens, batch_size, quantum, shards)
      padded = slots.one(int(tokens.max()), batch_size)
      row = {"data": pathlib.Path(data).name, "image_size": image_size, "batch": batch_size}
      row |= {"shards": shards, "images": len(tokens), "mean_tokens": float(tokens.mean())}
      row["mixed"] = planned(model, tokens, shapes, batch_size, quantum)
      row["pad"] = planned(model, tokens, padded, batch_size, quantum)
      row |= {"capacities": shapes.capacities, "counts": shapes.counts}
      rows.append(row)
      text = " ".join(f"{c}x{n}" for c, n in zip(shapes.counts, shapes.capacities, strict=True))
      print(
        f"{batch_size:5d} {shards:7d} {row['mixed']:7.3f} {row['pad']:7.3f}   {text}", flush=True
      )
  return rows


def tokens_of(data: str, image_size: int, factors: tuple[int, ...]) -> np.ndarray:
  """Refined tokens of every image under the data's own median threshold."""
  from dit_jax.core import buckets
  from dit_jax.data import grain_maps, sources

  wanted = types.SimpleNamespace(
    source="twemoji" if data == "twemoji" else "folder",
    path="" if data == "twemoji" else data,
    image_size=image_size,
    holdout=0,
    only=(),
  )
  source = sources.open_source(wanted, "train")
  with tempfile.TemporaryDirectory() as folder:
    maps = grain_maps.measure(source, factors[-1], (0.5, 0.5), pathlib.Path(folder) / "e.npz")
  grains = [
    maps.add_to({k: v[None] for k, v in source[i].items()})["grains"][0] for i in range(len(source))
  ]
  return buckets.num_tokens(np.stack(grains), factors)


def planned(model, tokens, shapes, batch_size: int, quantum: int) -> float:
  """Executed over ideal FLOPs of the steps of three epochs."""
  from dit_jax.data import plan
  from dit_jax.tasks import padding

  positions = plan.reading(tokens, model.factors, quantum, shapes, seed=0)["positions"]
  capacities = np.tile(np.repeat(shapes.capacities, shapes.rows), shapes.groups)
  steps = EPOCHS * len(tokens) // batch_size
  needed = np.stack([tokens[positions(n)] for n in range(steps)])
  assert (needed <= capacities).all(), "an image does not fit its slot"
  executed = steps * padding.forward_flops(model, capacities).sum()
  return float(executed / padding.forward_flops(model, needed).sum())


if __name__ == "__main__":
  sys.path.insert(0, str(ROOT))
  main()
