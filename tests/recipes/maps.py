"""The grain transformer on all of Twemoji, and hardly anything else (test_grain_statistics.py)."""

import pathlib

from dit_jax.core import config


def get_config(arg=None):
  del arg
  c = config.load(pathlib.Path(__file__).parents[2] / "configs" / "demo.py")
  c.data.only, c.data.holdout, c.data.image_size = (), 5, 32  # maps of 4 x 4
  c.dvae.total_steps, c.dvae.optim.warmup_steps = 2, 0
  c.dvae.model.width, c.dvae.loss.lpips, c.dvae.loss.trunk = 8, 0.0, "none"
  c.dgt.total_steps = 2_500
  c.dct.total_steps, c.dct.optim.warmup_steps = 1, 0
  c.dct.model.update(depth=1, width=48, num_heads=2)
  for stage in c.stages:
    c[stage].every = dict(log=100, save=10_000, preview=0)
  return c
