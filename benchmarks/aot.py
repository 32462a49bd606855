"""Does a recipe fit a machine that is not here? Compiles its programs ahead of time, and says.

  python benchmarks/aot.py --config=configs/d2it_xl.py --target=v5e:4x4       (or v5p:2x2x2, h200x8)
  python benchmarks/aot.py --config=configs/d2it_xl.py --target=h200 --stages=dct --fit \
    --config.dct.batch_size=128

For every stage the real train step and the real sampling program: bytes on a device, whether that
fits, collectives by kind, compile seconds. Nothing runs. The recipe's mesh is used as it stands;
--config.a.b=v changes any field. --fit also finds the largest batch.
"""

import argparse
import collections
import json
import math
import os
import pathlib
import re
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
SIZES = {"pred": 1, "u8": 1, "s8": 1, "bf16": 2, "f16": 2, "u16": 2, "s64": 8, "f64": 8}
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--config", required=True)
  parser.add_argument("--target", required=True)
  parser.add_argument("--stages", default="", help="some of the recipe's, by comma")
  parser.add_argument("--fit", action="store_true", help="find the largest batch of a train step")
  parser.add_argument("--out", default="", help="a JSON file, to which the rows are added")
  args, overrides = parser.parse_known_args()
  os.environ.setdefault("JAX_PLATFORMS", "cpu")

  from dit_jax.core import targets
  from dit_jax.training import sharding

  config = load(args.config, overrides)
  devices = targets.devices(args.target)
  mesh = sharding.make_mesh(config.mesh, devices)
  stages = args.stages.split(",") if args.stages else config.stages
  print(f"{args.config} on {args.target}: {len(devices)} devices, mesh {dict(mesh.shape)}")
  print(
    f"{'stage':6s} {'program':9s} {'batch':>6s} {'remat':6s} {'arguments':>10s} {'temporary':>10s}"
    f" {'needed':>8s}  GiB a device  compile s  collectives, MiB a device"
  )
  rows = []
  for name in stages:
    for program in ("train", "sample"):
      rows.append(measure(config, name, program, mesh, args))
    if args.fit:
      rows.append(largest(config, name, mesh, args))
  if args.out:
    path = pathlib.Path(args.out)
    kept = json.loads(path.read_text()) if path.exists() else []
    path.write_text(json.dumps(kept + rows, indent=2) + "\n")


def load(path: str, overrides: list[str]):
  """A recipe with `--config.a.b=v` applied, as the entry points read it."""
  from absl import flags
  from ml_collections import config_flags

  from dit_jax.core import cli

  own = flags.FlagValues()
  config = config_flags.DEFINE_config_file("config", lock_config=True, flag_values=own)
  cli.parse_flags(own, ["aot", f"--config={path}", *overrides])
  return config.value


def measure(config, name: str, program: str, mesh, args) -> dict:
  """Compiles one program and prints its row."""
  from dit_jax.tasks import abstract
  from dit_jax.training import memory

  begin, refused, compiled = time.monotonic(), "", None
  classes = config.data.classes[0]
  if program == "train":
    compile_ = lambda: abstract.compile_step(config, name, classes, mesh)
  else:
    compile_ = lambda: abstract.compile_sampling(config, name, classes, list(mesh.devices.flat))
  try:
    compiled = memory.compiled(name, compile_)
  except memory.TooLarge as e:
    refused = " ".join(str(e.__cause__).split())
  row = {
    "config": pathlib.Path(args.config).name,
    "target": args.target,
    "stage": name,
    "program": program,
  }
  row |= {"batch": rows_of(config, name, program, mesh), "accum": config[name].accum}
  row |= {"mesh": dict(mesh.shape), "remat": config[name].model.get("remat", "")}
  row["compile_s"] = round(time.monotonic() - begin, 1)
  row |= memory_of(compiled, args.target) if compiled else {"fits": False, "refused": refused[:300]}
  if compiled:
    row["collectives"] = collectives(compiled.as_text())
  print(line(row), flush=True)
  return row


def rows_of(config, name: str, program: str, mesh) -> int:
  if program == "train":
    return config[name].batch_size
  each = config.latents.batch_size if name == "dvae" else config.sampling.microbatch
  return each * mesh.devices.size


def memory_of(compiled, target: str) -> dict:
  """Bytes on one device, and whether it has them."""
  from dit_jax.core import targets
  from dit_jax.training import memory

  analysis = compiled.memory_analysis()
  return {
    "arguments": analysis.argument_size_in_bytes,
    "temporary": analysis.temp_size_in_bytes,
    "aliased": analysis.alias_size_in_bytes,
    "needed": memory.needed(compiled),
    "fits": memory.needed(compiled) <= targets.memory(target),
  }


def collectives(text: str) -> dict[str, dict[str, int]]:
  """How many of every kind there are in a program's HLO, and the bytes of their results.

  A TPU's compiler spreads one collective over several fusions, each of which shows it: they share
  a channel, which counts once.
  """
  found, seen = collections.defaultdict(lambda: {"count": 0, "bytes": 0}), set()
  for shapes, kind, rest in re.findall(rf"= (.+?) ({'|'.join(KINDS)})(?:-start)?\((.*)", text):
    if channel := re.search(r"channel_id=(\d+)", rest):
      if channel[1] in seen:
        continue
      seen.add(channel[1])
    found[kind]["count"] += 1
    for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
      size = math.prod(int(n) for n in dims.split(",") if n)
      found[kind]["bytes"] += size * SIZES.get(dtype, 4)
  return dict(found)


def line(row: dict) -> str:
  head = f"{row['stage']:6s} {row['program']:9s} {row['batch']:6d} {row['remat']:6s}"
  if "refused" in row:
    return f"{head} does not fit: {row['refused'][:120]}"
  gib = lambda name: row[name] / 2**30
  moved = ", ".join(
    f"{kind} {x['count']} x {x['bytes'] / 2**20:.0f}" for kind, x in row["collectives"].items()
  )
  return (
    f"{head} {gib('arguments'):10.2f} {gib('temporary'):10.2f} {gib('needed'):8.2f}  "
    f"{'fits' if row['fits'] else 'DOES NOT FIT':12s} {row['compile_s']:9.1f}  {moved or 'none'}"
  )


def largest(config, name: str, mesh, args) -> dict:
  """The largest batch that fits, to within an eighth, by doubling and halving."""
  from dit_jax.training import sharding

  unit = sharding.num_shards(mesh) * config[name].accum
  config = config.copy_and_resolve_references()
  best, low, high = None, 0, None
  while high is None or high - low > max(unit, low // 8 // unit * unit):
    batch = (
      max(unit, 2 * low or config[name].batch_size)
      if high is None
      else ((low + high) // 2 // unit * unit)
    )
    config[name].batch_size = batch
    row = measure(config, name, "train", mesh, args)
    if row["fits"]:
      best, low = row, batch
    else:
      high = batch
  print(f"{name}: the largest batch that fits is {low}")
  return (best or row) | {"largest": low}


if __name__ == "__main__":
  sys.path.insert(0, str(ROOT))
  main()
