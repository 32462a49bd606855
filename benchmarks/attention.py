"""Where does ProAttention pay? Dense, ours and Informer's, by length and head dim.

  python benchmarks/attention.py [--lengths=256,1024,4096] [--head-dims=64,72,128] [--heads=512]
  python benchmarks/attention.py --aot=v5e:2x4        (or v5p:2x2x1, v6e:2x2, h200)

Measures on the device that is there: medians of alternating runs, forward and forward + backward,
beside analytic FLOPs and least bytes, and the device's own copy and matmul rates, the roofline.
With --aot nothing runs: every case is compiled for hardware that need not be there, and its
temporary memory and compile seconds are printed; exit code 1 where ProAttention takes too much.
"""

import argparse
import functools
import json
import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
MOST = 2  # temporary bytes of ProAttention over those of q, k, v and the result, from 1,024 tokens


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  numbers = lambda text: [int(part) for part in text.split(",")]
  parser.add_argument("--lengths", type=numbers, default=[256, 640, 1024, 4096])
  parser.add_argument("--head-dims", type=numbers, default=[64, 72, 128])
  parser.add_argument(
    "--heads", type=int, default=0, help="images x heads; 512 by default, 2 on a CPU, 64 with --aot"
  )
  parser.add_argument("--dtype", default="", help="bfloat16, or float32 on a CPU")
  parser.add_argument("--kinds", default="", help="of dense, cudnn, splash, xla, pro, informer")
  parser.add_argument("--repeats", type=int, default=7)
  parser.add_argument("--aot", default="", help="compile for this target and run nothing")
  parser.add_argument("--out", default="")
  args = parser.parse_args()
  rows = compile_all(args) if args.aot else measure_all(args)
  if args.out:
    pathlib.Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(args.out).write_text(json.dumps(rows, indent=2) + "\n")
  if greedy := [row for row in rows if args.aot and too_much(row)]:
    sys.exit(f"{len(greedy)} cases of pro take {MOST} times q + k + v + out or more: {greedy}")


def too_much(row: dict) -> bool:
  """Whether ProAttention on many tokens needs more temporary memory than it should."""
  return row["kind"] == "pro" and row["n"] >= 1024 and row["temporary_to_qkvo"] >= MOST


def functions(kind: str):
  """forward and forward + backward of (q, k, v, g): "dense" and "pro" through the door."""
  import jax

  from dit_jax.kernels.attention import attention
  from dit_jax.kernels.pro_attention.settings import ProSettings

  per_query = dict(implementation="reference", settings=ProSettings(keys="per_query"))
  forward = {
    "dense": attention,
    "cudnn": functools.partial(jax.nn.dot_product_attention, implementation="cudnn"),
    "splash": splash,
    "xla": functools.partial(jax.nn.dot_product_attention, implementation="xla"),
    "pro": functools.partial(attention, kind="pro"),
    "informer": functools.partial(attention, kind="pro", **per_query),
  }[kind]

  def both(q, k, v, g):
    out, pull = jax.vjp(forward, q, k, v)
    return out, *pull(g)

  return {"forward": lambda q, k, v, g: forward(q, k, v), "both": both}


def splash(q, k, v):
  """JAX's splash attention on TPUs, called directly."""
  import jax
  from jax.experimental.pallas.ops.tpu import splash_attention as tpu

  n, h, d = q.shape[1:]
  mask = tpu.MultiHeadMask([tpu.FullMask((n, n))] * h)
  kernel = jax.vmap(tpu.make_splash_mha_single_device(mask))
  q, k, v = (x.transpose(0, 2, 1, 3) for x in (q * d**-0.5, k, v))
  return kernel(q, k, v).transpose(0, 2, 1, 3)


def kinds_of(args, platform: str) -> list[str]:
  """What to compare with the door's dense attention, which comes first."""
  library = {"gpu": ["cudnn", "xla"], "tpu": ["splash", "xla"], "cpu": []}[platform]
  asked = args.kinds.split(",") if args.kinds else [*library, "pro", "informer"]
  return ["dense", *(kind for kind in asked if kind != "dense")]


def cost(kind: str, step: str, n: int, d: int, heads: int, itemsize: int) -> tuple[int, int]:
  """FLOPs and the least bytes to move, analytic."""
  from dit_jax.kernels.pro_attention.settings import ProSettings

  u = ProSettings().num_queries(n)
  backward = step == "both"
  if kind not in ("pro", "informer"):
    flops, matrices = (7 if backward else 2) * 2 * n * n * d, 12 if backward else 4
    return heads * flops, heads * matrices * n * d * itemsize
  flops = 2 * n * u * d * (8 if backward else 3)
  size = (10 * n + 2 * u if backward else 4 * n) * d * itemsize
  gathered = n * u * d * itemsize if kind == "informer" else 0
  return heads * flops, heads * (size + gathered)


def compile_all(args) -> list[dict]:
  """Every case compiled for a target; a row for each."""
  import os

  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  import jax
  import jax.numpy as jnp
  import numpy as np
  from jax.sharding import AxisType, Mesh, NamedSharding
  from jax.sharding import PartitionSpec as P

  from dit_jax.core.targets import devices

  mesh = Mesh(np.array(devices(args.aot)[:1]), ("data",), axis_types=(AxisType.Auto,))
  heads, dtype, rows = args.heads or 64, jnp.dtype(args.dtype or "bfloat16"), []
  print(f"{args.aot}, jax {jax.__version__}, {dtype.name}, images x heads = {heads}; MiB, seconds")
  print("kind      step      length  dim   arguments  temporary  temporary/qkvo   compile")
  for n in args.lengths:
    for d in args.head_dims:
      for kind in args.kinds.split(",") if args.kinds else ("dense", "pro"):
        for step, fn in functions(kind).items():
          where = NamedSharding(mesh, P("data"))
          x = jax.ShapeDtypeStruct((heads // 2, n, 2, d), dtype, sharding=where)
          begin = time.monotonic()
          with jax.set_mesh(mesh):
            compiled = jax.jit(fn).lower(x, x, x, x).compile()
          memory, qkvo = compiled.memory_analysis(), 4 * n * heads * d * dtype.itemsize
          row = {
            **dict(target=args.aot, kind=kind, step=step, n=n, d=d, heads=heads, dtype=dtype.name),
            "argument_bytes": memory.argument_size_in_bytes,
            "temporary_bytes": memory.temp_size_in_bytes,
            "temporary_to_qkvo": round(memory.temp_size_in_bytes / qkvo, 3),
            "compile_s": round(time.monotonic() - begin, 1),
          }
          rows.append(row)
          print(
            f"{kind:9s} {step:9s} {n:6d} {d:4d} {row['argument_bytes'] / 2**20:11.2f} "
            f"{row['temporary_bytes'] / 2**20:10.2f} {row['temporary_to_qkvo']:15.2f} "
            f"{row['compile_s']:9.1f}",
            flush=True,
          )
  return rows


def measure_all(args) -> list[dict]:
  """Every case timed on this device; a row for each, and a first one with the roofline."""
  import jax
  import jax.numpy as jnp

  cpu = jax.default_backend() == "cpu"
  dtype = jnp.dtype(args.dtype or ("float32" if cpu else "bfloat16"))
  heads = args.heads or (2 if cpu else 512)
  device = jax.devices()[0].device_kind
  copy, matmul = roofline(dtype, cpu)
  print(f"{device}, jax {jax.__version__}, {dtype.name}, images x heads = {heads}")
  print(f"measured here: copy {copy / 1e9:.0f} GB/s, matmul {matmul / 1e12:.2f} TFLOP/s")
  rows = [dict(device=device, jax=jax.__version__, copy=copy, matmul=matmul, heads=heads)]
  print("kind      step      length  dim     GFLOP      MB        ms  floor ms  dense/this")
  kinds = kinds_of(args, jax.default_backend())
  for n in args.lengths:
    for d in args.head_dims:
      keys = jax.random.split(jax.random.key(0), 4)
      arrays = [jax.random.normal(key, (heads // 2 or 1, n, 2, d), dtype) for key in keys]
      for step in ("forward", "both"):
        times = alternate({kind: functions(kind)[step] for kind in kinds}, arrays, args.repeats)
        for kind in kinds:
          flops, size = cost(kind, step, n, d, heads, dtype.itemsize)
          floor = max(flops / matmul, size / copy)
          row = dict(kind=kind, step=step, n=n, d=d, dtype=dtype.name, flops=flops, bytes=size)
          row |= dict(seconds=times[kind], floor=floor, ratio=times["dense"] / times[kind])
          rows.append(row)
          print(
            f"{kind:9s} {step:9s} {n:6d} {d:4d} {flops / 1e9:9.2f} {size / 1e6:7.1f} "
            f"{times[kind] * 1e3:9.3f} {floor * 1e3:9.3f} {row['ratio']:10.2f}",
            flush=True,
          )
  return rows


def alternate(fns: dict, arrays, repeats: int) -> dict[str, float]:
  """Median seconds of each function, run in turn: A B A B ..."""
  import jax

  jitted = {name: jax.jit(fn) for name, fn in fns.items()}
  for fn in jitted.values():
    jax.block_until_ready(fn(*arrays))
  times = {name: [] for name in fns}
  for _ in range(repeats):
    for name, fn in jitted.items():
      begin = time.perf_counter()
      jax.block_until_ready(fn(*arrays))
      times[name].append(time.perf_counter() - begin)
  return {name: statistics.median(values) for name, values in times.items()}


def roofline(dtype, cpu: bool) -> tuple[float, float]:
  """Bytes a second of a copy (read and written) and FLOPs a second of a large product."""
  import jax.numpy as jnp

  n = 1024 if cpu else 8192
  x = jnp.ones((n, n), dtype)
  seconds = alternate({"copy": lambda x: x + 1, "matmul": lambda x: x @ x}, [x], 9)
  return 2 * x.nbytes / seconds["copy"], 2 * n**3 / seconds["matmul"]


if __name__ == "__main__":
  sys.path.insert(0, str(ROOT))
  main()
