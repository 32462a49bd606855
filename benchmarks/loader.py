"""How fast are latents read? Records a second of the loader that feeds the content transformer.

  python benchmarks/loader.py [--cache=DIR] [--images=6000] [--threads=0,1,2,4] [--batch-size=256]

Reads batches of a latent cache, or of one made up for 256 px,
as the stage `dct` reads them: the records of random images alone, those that the plan of the mixed
steps names, and these with their token tables, the arrays that go to the device. Medians of runs in
turn, from the page cache; and the processor time of a record, whatever else the cores are doing.
Then the time to plan an epoch of many images. Runs nowhere but on the host.
"""

import argparse
import contextlib
import itertools
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
FACTORS, REGIONS, CHANNELS = (8, 16), 16, 8  # of 256 px: moments [32, 32, 8]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  numbers = lambda text: [int(part) for part in text.split(",")]
  parser.add_argument("--cache", default="", help="a run's folder latents; made up without")
  parser.add_argument("--images", type=int, default=6000, help="of a cache that is made up")
  parser.add_argument("--threads", type=numbers, default=[0, 1, 2, 4])
  parser.add_argument("--batch-size", type=int, default=256)
  parser.add_argument("--steps", type=int, default=60, help="of a run")
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--planned", type=int, default=2_560_000, help="images of the planned epoch")
  parser.add_argument("--out", default="")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    cache = args.cache or make_up(pathlib.Path(folder) / "latents", args.images)
    rows = measure(cache, args)
  rows += plan_epoch(args.planned, args.batch_size)
  if args.out:
    pathlib.Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(args.out).write_text(json.dumps(rows, indent=2) + "\n")


def make_up(folder: pathlib.Path, images: int) -> pathlib.Path:
  """A cache of noise; the shares of fine regions spread as those of photographs do."""
  import noise_cache

  fine = np.random.default_rng(0).beta(2, 2, images) * REGIONS**2
  noise_cache.write(folder, FACTORS, (REGIONS, REGIONS), fine.round().astype(int), CHANNELS)
  return folder


def measure(cache, args) -> list[dict]:
  """A row for every kind of reading and number of threads."""
  from dit_jax.core import buckets, slots
  from dit_jax.data import latents
  from dit_jax.data import plan as plans

  source = latents.LatentSource(cache)
  factors, regions = tuple(source.meta["factors"]), source.grains[0].size
  tokens, size = buckets.num_tokens(source.grains, factors), args.batch_size
  quantum = buckets.quantum(regions, factors)
  shapes = slots.mixed(tokens, size, quantum)
  planned = plans.reading(tokens, factors, quantum, shapes, seed=0)
  anywhere = lambda step: np.random.default_rng(step).integers(0, len(source), size)
  kinds = {
    "reads": dict(positions=anywhere),
    "reads, plan": dict(positions=planned["positions"]),
    "reads, plan, tables": planned,
  }
  record = int(np.prod(source.moments_shape)) * 4
  print(f"{len(source):,} records of {record / 2**10:.1f} KiB, batch {size}, {os_cores()} cores")
  print("records/s".ljust(22) + "".join(f"{n:3d} threads" for n in args.threads))
  rates = {key: [] for key in itertools.product(kinds, args.threads)}
  for _ in range(args.repeats):
    for kind, threads in rates:
      rates[kind, threads].append(rate(source, size, args.steps, threads, kinds[kind]))
  rows = []
  for (kind, threads), seen in rates.items():
    wall, busy = zip(*seen, strict=True)
    row = {"kind": kind, "threads": threads, "records_per_s": statistics.median(wall)}
    rows.append(row | {"best": max(wall), "cpu_us": statistics.median(busy)})
  for kind in kinds:
    found = [row for row in rows if row["kind"] == kind]
    print(kind.ljust(22) + "".join(f"{row['records_per_s']:11,.0f}" for row in found))
    print("  CPU us a record".ljust(22) + "".join(f"{row['cpu_us']:11.1f}" for row in found))
  shared = {"records": len(source), "record_bytes": record, "batch": size, "cores": os_cores()}
  return [shared | row for row in rows]


def os_cores() -> int:
  """Cores that this process may use."""
  return len(os.sched_getaffinity(0))


def rate(source, batch_size: int, steps: int, threads: int, how: dict) -> tuple[float, float]:
  """Records a second of a loader that is asked for one batch after the other; CPU us of each."""
  from dit_jax.data import pipeline

  with contextlib.closing(
    pipeline.batches(source, batch_size, seed=0, threads=threads, **how)
  ) as batches:
    for _ in range(max(2, 2 * threads)):  # what was read ahead of the clock is used up
      next(batches)
    begin, busy = time.perf_counter(), time.process_time()
    for _ in range(steps):
      next(batches)
    wall, busy = time.perf_counter() - begin, time.process_time() - busy
  records = steps * batch_size
  return records / wall, busy / records * 1e6


def plan_epoch(images: int, batch_size: int) -> list[dict]:
  """The seconds that the first batch of an epoch waits for its plan."""
  from dit_jax.core import buckets
  from dit_jax.data.plan import Plan

  draw = np.random.default_rng(0)
  tokens = draw.binomial(REGIONS**2, draw.beta(2, 2, images)) * buckets.codes_per_region(FACTORS)[1]
  begin = time.perf_counter()
  plan = Plan(tokens, batch_size, buckets.quantum(REGIONS**2, FACTORS), seed=0)
  made = time.perf_counter()
  plan.positions(-(-images // batch_size))
  row = {"planned_images": images, "batch": batch_size, "setup_s": made - begin}
  row["epoch_s"] = time.perf_counter() - made
  print(f"{images:,} images: {row['setup_s']:.2f} s once, {row['epoch_s']:.2f} s an epoch to plan")
  return [row]


if __name__ == "__main__":
  sys.path.insert(0, str(ROOT))
  main()
