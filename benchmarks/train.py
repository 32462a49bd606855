"""How fast does it train? DiT and D2iT (mixed, pad, budget) beside a PyTorch DiT, in one run.

  python benchmarks/train.py [--variant=XL] [--batch=128] [--kinds=dit,mixed,pad,budget,torch]

On the device that is there, with sizes from the model tables: images a second, share of the
device's own matmul rate (MFU), memory, padding, and the shares of a step that wait for input and
go to the optimizer and the average. Latents are random, fine fractions as those of photographs. All
kinds take turns: A B A B, medians. PyTorch: benchmarks/torch_dit.py, where torch is installed.
"""

import argparse
import datetime
import importlib.metadata
import json
import pathlib
import statistics
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
KINDS = ("dit", "mixed", "pad", "budget", "torch")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--variant", default="", help="of the models; XL, or S on a CPU")
  parser.add_argument("--batch", type=int, default=0, help="images a step; 128, or 8 on a CPU")
  parser.add_argument("--image-size", type=int, default=256)
  parser.add_argument("--kinds", default="")
  parser.add_argument("--remat", default="none")
  parser.add_argument("--repeats", type=int, default=5, help="turns of each kind")
  parser.add_argument("--steps", type=int, default=0, help="of a turn; 20, or 2 on a CPU")
  parser.add_argument("--out", default="")
  args = parser.parse_args()

  import jax

  cpu = jax.default_backend() == "cpu"
  args.variant = args.variant or ("S" if cpu else "XL")
  args.batch = args.batch or (8 if cpu else 128)
  args.steps = args.steps or (2 if cpu else 20)
  kinds = args.kinds.split(",") if args.kinds else list(KINDS)
  if "torch" in kinds and not _has("torch"):
    print("torch is not installed: no PyTorch row")
    kinds.remove("torch")
  peak = matmul_rate(cpu)
  head = machine() | dict(
    variant=args.variant,
    batch=args.batch,
    image_size=args.image_size,
    matmul_flops=peak,
  )
  print(json.dumps(head))
  with tempfile.TemporaryDirectory() as folder:
    runs = {kind: start(kind, args, pathlib.Path(folder) / kind, cpu) for kind in kinds}
    rows = [head, *alternate(runs, args, peak * jax.device_count())]
    for run in runs.values():
      run.close()
  if args.out:
    pathlib.Path(args.out).write_text(json.dumps(rows, indent=2) + "\n")


def machine() -> dict:
  """The day, the devices and the versions that a table was made with."""
  import jax

  return dict(
    date=str(datetime.date.today()),
    device=jax.devices()[0].device_kind,
    devices=jax.device_count(),
    versions={n: importlib.metadata.version(n) for n in ("jax", "flax", "torch") if _has(n)},
  )


def start(kind: str, args, folder: pathlib.Path, cpu: bool):
  return Torch(args) if kind == "torch" else Ours(kind, args, folder, cpu)


def recipe(kind: str, args, cpu: bool):
  """The recipe of XL with the sizes that are asked for, and one stage."""
  from dit_jax.core import config as configs

  name = "dct" if kind in ("mixed", "pad", "budget") else "dit"
  c = configs.load(ROOT / "configs" / ("dit_xl.py" if name == "dit" else "d2it_xl.py"))
  c.stages, c.data.image_size, block = (name,), args.image_size, c[name]
  block.batch_size = args.batch
  block.model.variant = args.variant + ("/2" if name == "dit" else "")
  block.model.remat, block.model.dtype = args.remat, "float32" if cpu else "bfloat16"
  if name == "dct":
    block.buckets = kind
  return c


class Ours:
  """The real train step of dit or dct, fed by the real loader from a cache of random latents."""

  def __init__(self, kind: str, args, folder: pathlib.Path, cpu: bool):
    from dit_jax.tasks import abstract, sizes
    from dit_jax.training import memory, sharding

    c = recipe(kind, args, cpu)
    self.mesh, (name,), classes = sharding.make_mesh(c.mesh), c.stages, c.data.classes[0]
    prepared = abstract.prepare(c, name, classes, self.mesh)
    meta = sizes.latent_meta(c, classes)
    self.facts = {"kind": kind} | work(c, meta, prepared.slots, self.mesh)
    self.batches = loader(c, meta, prepared.slots, folder)
    begin = time.monotonic()
    self.program = prepared.step.compile(prepared.state, prepared.batch)
    self.facts["compile_s"] = time.monotonic() - begin
    self.facts["memory_bytes"] = memory.needed(self.program)
    self.state = born(prepared, {})
    self.ready, self.waited = self._next(), 0.0
    self.facts["optimizer_s"] = optimizer_seconds(c[name], self.state)

  def turn(self, steps: int) -> float:
    """Seconds of so many steps; the next batch is read while one runs, as in training."""
    import jax

    begin = time.perf_counter()
    for _ in range(steps):
      self.state, metrics = self.program(self.state, self.ready)
      asked = time.perf_counter()
      rows = next(self.batches)
      self.waited += time.perf_counter() - asked
      self.ready = self._put(rows)
    jax.block_until_ready(metrics["loss"])
    return time.perf_counter() - begin

  def _next(self):
    return self._put(next(self.batches))

  def _put(self, rows):
    from dit_jax.training import sharding

    return sharding.put_batch(rows, self.mesh)

  def close(self) -> None:
    self.batches.close()


class Torch:
  """The PyTorch DiT of the same variant."""

  def __init__(self, args):
    import torch
    import torch_dit

    from dit_jax.models import dit
    from dit_jax.training import sharding

    self.waited, cuda = 0.0, torch.cuda.is_available()
    preset = dit.decode_variant(f"{args.variant}/2")
    begin = time.monotonic()
    self.step = torch_dit.make(
      **preset,
      grid=args.image_size // 8,
      channels=4,
      num_classes=1000,
      batch=args.batch,
      device="cuda" if cuda else "cpu",
      compile=True,
    )
    self.sync = torch.cuda.synchronize if cuda else (lambda: None)
    self.turn(1)
    c = recipe("torch", args, not cuda)
    self.facts = {"kind": "torch"} | work(c, None, None, sharding.make_mesh(c.mesh))
    self.facts["compile_s"] = time.monotonic() - begin
    self.facts["memory_bytes"] = torch.cuda.max_memory_allocated() if cuda else 0

  def turn(self, steps: int) -> float:
    begin = time.perf_counter()
    for _ in range(steps):
      self.step()
    self.sync()
    return time.perf_counter() - begin

  def close(self) -> None:
    pass


def born(prepared, frozen: dict):
  """A state of prepared shapes; what `frozen` lacks, which only previews read, is zeros."""
  import jax
  import jax.numpy as jnp

  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), prepared.state.frozen)
  places = jax.tree.map(lambda s: s.sharding, prepared.state)
  return jax.jit(prepared.init, out_shardings=places)(jax.random.key(0), zeros | frozen)


def work(c, meta, shared, mesh) -> dict:
  """Ideal FLOPs of an image's training step, and the padding over them."""
  from dit_jax.tasks import abstract, dct, padding, sizes

  if c.stages == ("dit",):
    counted = sizes.measure(c, c.data.classes[0], mesh)["flops_per_image"]["dit"]
    return dict(flops=3 * counted["forward"], padding=1.0)
  model, tokens = dct.make_model(c, meta), abstract.assumed_tokens(c, meta)
  ideal = float(padding.forward_flops(model, tokens).mean())
  return dict(flops=3 * ideal, padding=padding.overhead(model, tokens, shared))


def loader(c, meta: dict, shared, folder: pathlib.Path):
  """Batches as training reads them, from a cache of random latents written to `folder`."""
  import noise_cache
  import numpy as np

  from dit_jax.core import buckets
  from dit_jax.data import latents, pipeline, plan
  from dit_jax.tasks import abstract

  factors, (rows, cols), how = meta["factors"], meta["regions"], {}
  batch_size = c[c.stages[0]].batch_size
  fine = np.zeros(4 * batch_size, int)
  if shared:
    tokens = abstract.assumed_tokens(c, meta, len(fine))
    fine = tokens // buckets.codes_per_region(factors)[1]
    how = plan.reading(tokens, factors, buckets.quantum(rows * cols, factors), shared, seed=0)
  noise_cache.write(folder, factors, meta["regions"], fine, 2 * meta["z_channels"])
  source = latents.LatentSource(folder)
  return pipeline.batches(source, batch_size, seed=0, threads=c.data.workers, **how)


def optimizer_seconds(block, train_state) -> float:
  """Median time of the optimizer's update and the average by themselves."""
  import jax
  import optax

  from dit_jax.training import optim

  tx = optim.make_tx(block.optim, block.total_steps)

  @jax.jit
  def update(s):
    updates, opt = tx.update(s.params, s.opt, s.params)
    params = optax.apply_updates(s.params, updates)
    return params, opt, optax.incremental_update(params, s.ema, 1e-4)

  jax.block_until_ready(update(train_state))
  times = []
  for _ in range(5):
    begin = time.perf_counter()
    jax.block_until_ready(update(train_state))
    times.append(time.perf_counter() - begin)
  return statistics.median(times)


def in_turn(runs: dict, repeats: int, steps: int) -> dict[str, list]:
  """What `turn` says of a step of each, A B A B ..., after one step of each that does not count."""
  for run in runs.values():
    run.turn(1)
    run.waited = 0.0
  times = {kind: [] for kind in runs}
  for _ in range(repeats):
    for kind, run in runs.items():
      times[kind].append(run.turn(steps) / steps)
  return times


def alternate(runs: dict, args, peak: float) -> list[dict]:
  """All kinds in turn; prints and returns a row of each."""
  times = in_turn(runs, args.repeats, args.steps)
  print("kind      img/s     MFU   ms/step  padding   GiB  wait %  optimizer %  compile s  to dit")
  rows, first = [], statistics.median(times[next(iter(runs))])
  for kind, run in runs.items():
    seconds, facts = statistics.median(times[kind]), run.facts
    row = facts | dict(seconds=seconds, images_per_s=args.batch / seconds)
    row["mfu"] = args.batch * facts["flops"] / seconds / peak
    row["input_wait"] = run.waited / (sum(times[kind]) * args.steps)
    row["optimizer_share"] = facts.get("optimizer_s", 0.0) / seconds
    row["speed_to_first"] = first / seconds
    rows.append(row)
    print(
      f"{kind:8s} {row['images_per_s']:7.2f} {row['mfu']:7.1%} {seconds * 1e3:9.1f} "
      f"{facts['padding']:8.3f} {facts['memory_bytes'] / 2**30:5.2f} {row['input_wait']:7.2%} "
      f"{row['optimizer_share']:12.1%} {facts['compile_s']:10.1f} {row['speed_to_first']:7.2f}",
      flush=True,
    )
  return rows


def matmul_rate(cpu: bool) -> float:
  """FLOPs a second of a large product on one device: what MFU is a share of."""
  import jax
  import jax.numpy as jnp

  n, dtype = (1024, jnp.float32) if cpu else (8192, jnp.bfloat16)
  x, product = jnp.ones((n, n), dtype), jax.jit(lambda x: x @ x)
  product(x).block_until_ready()
  times = []
  for _ in range(9):
    begin = time.perf_counter()
    product(x).block_until_ready()
    times.append(time.perf_counter() - begin)
  return 2 * n**3 / statistics.median(times)


def _has(package: str) -> bool:
  try:
    importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return False
  return True


if __name__ == "__main__":
  sys.path.insert(0, str(ROOT))
  main()
