"""Which tiles are the fastest for ProAttention on the device that is here?

  python benchmarks/tune_attention.py [--lengths=256,1024,4096] [--head-dims=64,72,128] --out=FILE

Times forward + backward with every tile size of the device's kernel, medians of alternating runs,
and writes a table, the fastest first. The defaults of GPUTiles and TPUTiles are what it is for.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  numbers = lambda text: [int(part) for part in text.split(",")]
  parser.add_argument("--lengths", type=numbers, default=[256, 1024, 4096])
  parser.add_argument("--head-dims", type=numbers, default=[64, 72, 128])
  parser.add_argument("--heads", type=int, default=512, help="images x heads")
  parser.add_argument("--repeats", type=int, default=7)
  parser.add_argument("--out", required=True)
  args = parser.parse_args()

  import jax
  import jax.numpy as jnp
  from attention import alternate

  from dit_jax.kernels.pro_attention.settings import uniforms

  kernel, candidates = tiles_of(jax.default_backend())
  r, rows = uniforms(jax.random.key(1), 2), []
  for n, d in itertools.product(args.lengths, args.head_dims):
    keys = jax.random.split(jax.random.key(0), 4)
    arrays = [jax.random.normal(key, (args.heads // 2, n, 2, d), jnp.bfloat16) for key in keys]

    def both(q, k, v, g, tiles):
      out, pull = jax.vjp(lambda *qkv: kernel(*qkv, r, tiles=tiles), q, k, v)
      return out, *pull(g)

    fns = {tiles: functools.partial(both, tiles=tiles) for tiles in candidates}
    fns = {tiles: fn for tiles, fn in fns.items() if compiles(fn, arrays, tiles)}
    times = alternate(fns, arrays, args.repeats)
    for tiles, seconds in sorted(times.items(), key=lambda item: item[1]):
      rows.append(dict(n=n, d=d, seconds=seconds, **dataclasses.asdict(tiles)))
    print(f"n={n} d={d}: {rows[-len(times)]}", flush=True)
  head = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "rows": rows}
  pathlib.Path(args.out).write_text(json.dumps(head, indent=2) + "\n")


def compiles(fn, arrays, tiles) -> bool:
  """Whether the device takes the tiles; what it does not take is said and left out."""
  import jax

  try:
    jax.jit(fn).lower(*arrays).compile()
  except Exception as e:  # whatever the compiler says of too much memory
    print(f"{tiles}: does not compile ({str(e).splitlines()[0][:100]})", flush=True)
    return False
  return True


def tiles_of(platform: str):
  """The platform's kernel and the tiles to try."""
  from dit_jax.kernels.pro_attention import gpu, tpu

  if platform == "tpu":
    return tpu.pro_attention, [tpu.TPUTiles(block_k=size) for size in (128, 256, 512, 1024, 2048)]
  if platform == "gpu":
    sizes = itertools.product((64, 128), (32, 64, 128), (1024, 4096), (4, 8))
    return gpu.pro_attention, [
      gpu.GPUTiles(block_q=q, block_k=k, keys_a_program=keys, num_warps=warps)
      for q, k, keys, warps in sizes
    ]
  raise SystemExit(f"no kernel runs on {platform!r}; a GPU or a TPU is needed")


if __name__ == "__main__":
  sys.path.insert(0, str(ROOT))
  main()
