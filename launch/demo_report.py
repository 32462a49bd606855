"""What the demo learned, in one picture and a few numbers: demo_report.py WORKDIR

Writes samples.png (real, reconstruction, samples from the grain transformer's own maps, nearest
training image of each sample) and report.json beside it, and report.html about the whole run.
"""

import json
import pathlib
import sys

import jax
import numpy as np

from dit_jax.data import grain_maps, sources
from dit_jax.evals import features, frechet, report
from dit_jax.sampling import generate, grids
from dit_jax.tasks import dvae, restored

SHOWN = 24  # pictures a block
SAMPLES = 192  # pictures behind the distances
NEAR_COPY = 0.5  # of the median distance from a held-out image to its nearest training image


def main(workdir: str) -> None:
  run = restored.load(workdir)
  data = run.config.data
  if not data.holdout:
    sys.exit("data.holdout=0 keeps no image apart to compare with; train with 10, in a new WORKDIR")
  train = load(sources.open_source(data, "train"))
  held = load(sources.open_source(data, "heldout"))
  every_held = load(sources.open_source(dvae.every_superclass(data), "heldout"))
  again = reconstruct(run, every_held["image"])
  samples = draw(run, train["label"])
  noise = decoded_noise(run, len(samples))

  extract = features.Extractor("alexnet")
  f = {"train": train["image"], "held": held["image"], "samples": samples, "noise": noise}
  f = {name: extract(images).values for name, images in f.items()}
  distance = {name: frechet.frechet_distance(f[name], f["train"]) for name in f if name != "train"}
  near_samples, to_train = frechet.nearest(small(samples), small(train["image"]))
  _, held_to_train = frechet.nearest(small(held["image"]), small(train["image"]))
  copies = float(np.mean(to_train < NEAR_COPY * np.median(held_to_train)))
  found = {
    "held_out_psnr_db": float(frechet.psnr(every_held["image"], again).mean()),
    "held_out_images": len(every_held["image"]),
    "alexnet_fd_to_train": distance,
    "alexnet_fd_samples_to_held_out": frechet.frechet_distance(f["samples"], f["held"]),
    "alexnet_fd_samples_to_noise": frechet.frechet_distance(f["samples"], f["noise"]),
    "samples": len(samples),
    "near_copies": copies,
  }
  show = spread(len(samples), SHOWN)
  real = held["image"][spread(len(held["image"]), SHOWN)]
  picture = grids.blocks(
    [
      ("real, held out", real),
      ("reconstruction", reconstruct(run, real)),
      ("samples, from the grain transformer's own maps", samples[show]),
      ("nearest training image of each sample", train["image"][near_samples[show]]),
    ],
    columns=12,
  )
  out = pathlib.Path(workdir)
  grids.save_png(out / "samples.png", picture)
  (out / "report.json").write_text(json.dumps(found, indent=2) + "\n")
  print(json.dumps(found, indent=2))
  print(f"four blocks of pictures: {out / 'samples.png'}; the run: {report.of_workdir(out)}")


def load(source) -> dict:
  """Every image of a split as one batch."""
  return dvae.collate([source[i] for i in range(len(source))])


def spread(total: int, count: int) -> np.ndarray:
  """`count` places, evenly spaced."""
  return np.linspace(0, total - 1, min(count, total)).round().astype(int)


def small(images: np.ndarray) -> np.ndarray:
  """Images on 16 x 16 means, where a shift of a pixel does not hide a copy."""
  n, h, w, c = images.shape
  return images.reshape(n, 16, h // 16, 16, w // 16, c).mean((2, 4))


def reconstruct(run, images: np.ndarray) -> np.ndarray:
  """Through the DVAE and back, in batches of one shape."""
  stage = dvae.DVAETask(run.config.dvae, run.config.data.image_size)
  maps = grain_maps.GrainMaps.from_record(run.meta["thresholds"])
  grains = np.stack([maps.of(image) for image in images]).astype(np.int32)
  step = jax.jit(lambda x, g: stage.reconstruct({"gen": run.params["dvae"]}, x, g))
  return features.in_batches(step, images, grains)


def draw(run, labels: np.ndarray) -> np.ndarray:
  """Samples with labels in the training set's proportions."""
  label = np.sort(labels)[spread(len(labels), SAMPLES)]
  index = np.arange(len(label), dtype=np.int32)
  generator = generate.Generator(run.models, run.settings())
  grains = generator.grain_maps(run.params, label, index, 0)
  return generator.images(run.params, label, index, grains, 0)


def decoded_noise(run, count: int) -> np.ndarray:
  """What the decoder makes of latents that are pure noise."""
  models = run.models
  p = models.factors[-1] // models.factors[0]
  shape = (count, *(p * r for r in models.regions), models.channels)
  z = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  z = z * np.asarray(models.std[-1]) + np.asarray(models.mean[-1])
  decode = jax.jit(lambda z: generate.to_uint8(models.decode(run.params, z)))
  return features.in_batches(decode, z)


if __name__ == "__main__":
  main(sys.argv[1])
