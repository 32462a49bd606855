"""How fast are features of pictures? VGG16 at 64 px and Inception at 299 px beside a large product.

  python benchmarks/features.py [--batch=16] [--repeats=5] [--out=benchmarks/results/features.json]

Takes turns between a product of square float32 matrices, the machine's own ceiling, and whole calls
of the extractors, transfers and resize included (Inception with random weights). FLOPs are counted
from the programs: Inception's unpadded convolutions compute 0.8 % more than they keep.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
GATE = 0.6  # of the ceiling
SIZES = {"vgg16": 64, "inception": 256}  # of the pictures; Inception resizes them to 299 px


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--json", action="store_true", help="print the rows alone")
  parser.add_argument("--out", default="")
  args = parser.parse_args()
  rows = measure(args.batch, args.repeats)
  if args.json:
    print(json.dumps(rows, indent=2))
  else:
    show(rows)
  if args.out:
    pathlib.Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(args.out).write_text(json.dumps(rows, indent=2) + "\n")


def measure(batch: int, repeats: int) -> list[dict]:
  """A first row with the ceiling, and one of each extractor."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from dit_jax.evals import features

  side = 2048 if jax.default_backend() == "cpu" else 8192
  x = jnp.ones((side, side))
  product = jax.jit(lambda x: jnp.dot(x, x, precision="highest"))
  with tempfile.TemporaryDirectory() as folder:
    extractors = {
      "vgg16": features.Extractor("vgg16", batch=batch),
      "inception": features.Extractor(
        "inception", batch=batch, weights_file=random_weights(pathlib.Path(folder) / "w.npz")
      ),
    }
  devices, r = jax.local_device_count(), np.random.default_rng(0)
  shapes = {name: (batch * devices, size, size, 3) for name, size in SIZES.items()}
  images = {name: r.integers(0, 256, shape, np.uint8) for name, shape in shapes.items()}
  calls = {"product": lambda: jax.block_until_ready(product(x))}
  calls |= {name: lambda name=name: extractors[name](images[name]) for name in SIZES}
  seconds = alternate(calls, repeats)
  ceiling = 2 * side**3 / seconds["product"] * devices
  first = dict(device=jax.devices()[0].device_kind, devices=devices, jax=jax.__version__)
  rows = [first | dict(batch=batch, product_side=side, product_gflops=ceiling / 1e9)]
  for name in SIZES:
    rate, flops = len(images[name]) / seconds[name], flops_of(name)
    row = dict(trunk=name, image_size=SIZES[name], gflop_per_image=flops / 1e9)
    row |= dict(images_per_second=rate, gflops=rate * flops / 1e9, share=rate * flops / ceiling)
    rows.append(row)
  return rows


def random_weights(path: pathlib.Path) -> str:
  """A file of the network's shapes: its speed does not depend on what they hold."""
  import numpy as np

  from dit_jax.core import tree as trees
  from dit_jax.weights import inception as table
  from dit_jax.weights import rename

  r = np.random.default_rng(0)
  shapes = trees.flatten(shapes_of("inception")[1])
  leaves = {k: 0.05 * r.random(x.shape, np.float32) for k, x in shapes.items()}
  np.savez(path, **rename.to_theirs(table.rows(leaves), leaves))
  return str(path)


def shapes_of(trunk: str):
  """The network and the shapes of its parameters."""
  import jax
  import jax.numpy as jnp

  from dit_jax.models import inception, lpips

  size = inception.SIZE if trunk == "inception" else SIZES[trunk]
  x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  model = inception.InceptionV3() if trunk == "inception" else lpips.LPIPS(trunk)
  inputs = (x,) if trunk == "inception" else (x, x)
  return model, jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"], x


def flops_of(trunk: str) -> int:
  """Of the features of one image."""
  from dit_jax.core import flops

  model, params, x = shapes_of(trunk)
  method = None if trunk == "inception" else "features"
  return flops.count(lambda p, x: model.apply({"params": p}, x, method=method), params, x)


def alternate(calls: dict, repeats: int) -> dict[str, float]:
  """Median seconds of each call, made in turn: A B C A B C ..."""
  for call in calls.values():
    call()
  times = {name: [] for name in calls}
  for _ in range(repeats):
    for name, call in calls.items():
      begin = time.perf_counter()
      call()
      times[name].append(time.perf_counter() - begin)
  return {name: statistics.median(values) for name, values in times.items()}


def show(rows: list[dict]) -> None:
  """The table, and whether each extractor passes the gate."""
  first, *rest = rows
  print(f"{first['devices']} x {first['device']}, jax {first['jax']}, batch {first['batch']}")
  print(f"product of {first['product_side']}^2 in float32: {first['product_gflops']:.1f} GFLOP/s")
  print("trunk       px  GFLOP/image  images/s  GFLOP/s  of the product")
  for row in rest:
    print(
      f"{row['trunk']:9s} {row['image_size']:4d} {row['gflop_per_image']:12.2f} "
      f"{row['images_per_second']:9.2f} {row['gflops']:8.1f} {row['share']:15.2f}"
      f"{'' if row['share'] >= GATE else f'  below {GATE}'}"
    )


if __name__ == "__main__":
  sys.path.insert(0, str(ROOT))
  main()
