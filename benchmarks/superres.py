"""Does super-resolution beat bicubic? Trains the stage small, then measures held-out images.

  python benchmarks/superres.py --data=FOLDER [--steps=400] [--out=FILE.json]

Luma PSNR in dB of pictures enlarged by bicubic, by the zero-padded spectrum alone (the network's
weights at zero), by the network, and by what no network that keeps the low band can pass: the zero-
padded spectrum with the real high band. Three ways down: the degradation trained on, without its
clean share; antialiased bicubic; area. Every draw is fixed.
"""

import argparse
import json
import pathlib
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
GATE = 0.3  # dB above bicubic on the degradation trained on


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--data", required=True, help="an image folder")
  parser.add_argument("--image-size", type=int, default=128)
  parser.add_argument("--crop", type=int, default=64)
  parser.add_argument("--depth", type=int, default=3)
  parser.add_argument("--width", type=int, default=32)
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--steps", type=int, default=400)
  parser.add_argument("--images", type=int, default=60, help="held-out images that are measured")
  parser.add_argument("--workdir", default="", help="kept, and resumed; default: a temporary one")
  parser.add_argument("--out", default="")
  args = parser.parse_args()
  from dit_jax.train import train_and_evaluate

  with tempfile.TemporaryDirectory() as temporary:
    workdir = args.workdir or pathlib.Path(temporary) / "run"
    config = recipe(args)
    train_and_evaluate(config, workdir)
    rows = measure(config, workdir, args.images)
  fields = ("data", "workdir", "out")
  settings = {k: v for k, v in vars(args).items() if k not in fields}
  result = {"data": pathlib.Path(args.data).name, **settings, "psnr_luma_db": rows}
  gain = rows["degraded"]["network"] - rows["degraded"]["bicubic"]
  print(f"gain over bicubic on the degradation trained on: {gain:.2f} dB, wanted {GATE}")
  if args.out:
    pathlib.Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(args.out).write_text(json.dumps(result, indent=2) + "\n")


def recipe(args):
  """configs/superres.py at a size for two cores."""
  from dit_jax.core import config as configs

  c = configs.load(ROOT / "configs" / "superres.py")
  c.data.update(path=args.data, image_size=args.image_size, workers=1)
  c.superres.model.update(depth=args.depth, width=args.width, dtype="float32")
  c.superres.update(crop=args.crop, margin=4, batch_size=args.batch, total_steps=args.steps)
  c.superres.ema_decay = 0.99
  c.superres.optim.update(lr=1e-3, warmup_steps=20)
  c.superres.every = dict(log=50, save=50, preview=args.steps)
  return c


def measure(config, workdir, count: int) -> dict:
  """Mean luma PSNR by way down and way up, printed as a table."""
  import jax
  from PIL import Image

  from dit_jax.data import degrade, sources
  from dit_jax.evals.superres import luma_psnr
  from dit_jax.sampling import generate
  from dit_jax.sampling.superres import Doubler
  from dit_jax.tasks import superres

  stage, params = superres.restore(workdir)
  source = sources.open_source(config.data, "heldout")
  places = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)
  items = [source[int(i)] for i in places]
  large = np.stack([item["image"] for item in items])
  half = (large.shape[2] // 2, large.shape[1] // 2)
  degraded = degrade.Degradation(
    clean=0.0, **{k: tuple(v) for k, v in config.superres.degradation.items() if k != "clean"}
  )
  area = lambda x: np.asarray(Image.fromarray(x).resize(half, Image.Resampling.BOX))
  draw = lambda item: np.random.default_rng((config.seed, 0, int(item["index"])))
  ways_down = {
    "degraded": [degraded(item["image"], draw(item)) for item in items],
    "bicubic": [degrade.clean(item["image"]) for item in items],
    "area": [area(item["image"]) for item in items],
  }
  double, zero = Doubler(stage.enhance), jax.tree.map(np.zeros_like, params)
  print(f"luma PSNR in dB, {len(items)} held-out images of {large.shape[1]} px")
  print("small by     bicubic   zeroed  network   real high band")
  table = {}
  for name, small in ways_down.items():
    small = np.stack(small)
    bound = np.asarray(generate.to_uint8(double.blended(zero, small) + high_band(large)))
    up = {
      "bicubic": np.stack([degrade.bicubic(x) for x in small]),
      "zeroed": double(zero, small),
      "network": double(params, small),
      "real_high_band": bound,
    }
    table[name] = {k: round(float(luma_psnr(x, large).mean()), 3) for k, x in up.items()}
    print(f"{name:9s}", *(f"{v:10.2f}" for v in table[name].values()), flush=True)
  return table


def high_band(large: np.ndarray) -> np.ndarray:
  """HP of pictures in [-1, 1], reflected at their borders as in sampling."""
  import jax.numpy as jnp

  from dit_jax.nn import fourier_pair
  from dit_jax.sampling.superres import PAD

  room = 2 * PAD
  pad = ((0, 0), (room, room), (room, room), (0, 0))
  wide = np.pad(large.astype(np.float32) / 127.5 - 1, pad, mode="reflect")
  high = np.asarray(fourier_pair.high_pass(jnp.asarray(wide), centred=True))
  return high[:, room:-room, room:-room]


if __name__ == "__main__":
  sys.path.insert(0, str(ROOT))
  main()
