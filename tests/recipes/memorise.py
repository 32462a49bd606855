"""Eight images through all stages until they are known by heart: tests/test_memorisation.py."""

import pathlib

from dit_jax.core import config


def get_config(arg=None):
  del arg
  c = config.load(pathlib.Path(__file__).parents[2] / "configs" / "demo.py")
  c.seed = 1
  c.data.image_size, c.data.holdout, c.data.only = 32, 0, ()
  for stage in c.stages:
    c[stage].batch_size = 8
    c[stage].every = dict(log=100, save=10_000, preview=0)
  c.dvae.total_steps, c.dvae.flip = 800, False
  c.dvae.loss.kl = 1e-4
  c.dgt.total_steps, c.dgt.optim.warmup_steps = 10, 0
  c.dct.total_steps, c.dct.ema_decay = 1_800, 0.99
  c.dct.diffusion.logit_normal = False
  c.dct.model.update(depth=4, refine_depth=1, width=128, num_heads=4)
  return c
