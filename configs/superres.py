"""Pixel-space super-resolution x2 on degraded images, usable alone or behind any other recipe.

Ours: no paper row belongs to it. Expected: luma PSNR on held-out images at least 0.3 dB above
bicubic on the degradation trained on; benchmarks/superres.py measures it (docs/superres.md).

  python -m dit_jax.main --config=configs/superres.py --workdir=DIR --config.data.path=IMAGES

  python -m dit_jax.sample --workdir=ANOTHER --superres=DIR   # doubles what the other one draws
  python -m dit_jax.sample --workdir=DIR --superres --images=photo.jpg --out=large.png

`:tiny` is a CPU test on emoji.
"""

import ml_collections

from dit_jax.core import config


def get_config(arg=None):
  tiny = config.parse_arg(arg, tiny=False).tiny
  c = ml_collections.ConfigDict()
  c.seed = 0
  c.stages = ("superres",)
  c.mesh = dict(data=-1, fsdp=1, tensor=1)
  c.sharding = ()  # pairs (regex of a parameter's path, axes), before the rules of the package
  c.data = dict(
    source="twemoji" if tiny else "folder",
    path="",  # instead of the source: a folder, list, archive or table (docs/data.md)
    split="",  # of a set that has splits; "": train, and its own held-out one
    label_key="",  # column or feature of the class; "": found by its name
    super_key="",  # those of its superclasses, finest first: "genus,family"
    image_size=32 if tiny else 256,  # patches are cut from pictures scaled to this
    background="#ffffff",  # under transparent pixels
    classes=(100, 10) if tiny else (1, 1),  # expected, not imposed: counted from the data
    holdout=5,  # every n-th image of a class is never trained on
    only=(),
    workers=1 if tiny else 16,  # threads that degrade
  )
  c.superres = dict(
    model=dict(
      depth=1 if tiny else 16,
      width=8 if tiny else 64,
      dtype="float32" if tiny else "bfloat16",
    ),
    crop=32 if tiny else 192,  # pixels a side of a large patch
    margin=2 if tiny else 8,  # small pixels at a patch's border that do not count
    degradation=dict(
      clean=0.2,  # share of pairs that are scaled down and nothing else
      blur=(0.2, 1.2),  # each range twice a pair: deviations in pixels,
      scale=(0.5, 1.0),  # of the first resize; the second goes to half of the patch,
      noise=(0.0, 8.0),  # deviations in levels of 255,
      jpeg=(60, 95),  # qualities
    ),
    optim=dict(
      name="adam",
      lr=5e-4,
      warmup_steps=2 if tiny else 500,
      schedule="cosine",
      b1=0.9,
      b2=0.99,
      weight_decay=0.0,
      clip=1.0,
    ),
    batch_size=8 if tiny else 32,
    accum=1,
    total_steps=4 if tiny else 200_000,
    ema_decay=0.999,
    every=dict(log=2 if tiny else 100, save=2 if tiny else 5_000, preview=4 if tiny else 10_000),
  )
  return c
