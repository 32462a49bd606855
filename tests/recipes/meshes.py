"""A DVAE, and a content transformer in steps of two sizes of slots: tests/test_meshes.py.

Its numbers are multiples of what eight devices ask for, in any mesh of two a tensor axis.
"""

import pathlib

from dit_jax.core import config


def get_config(arg=None):
  del arg
  c = config.load(pathlib.Path(__file__).parents[2] / "configs" / "demo.py", "tiny")
  c.stages = ("dvae", "dct")
  c.data.update(source="folder", image_size=32, only=(), holdout=0, workers=2)
  c.latents.update(flip=True, batch_size=8)
  c.sampling.update(steps=2, microbatch=2)
  c.dvae.model.update(stem=4, encoder_mults=(1, 1, 1, 1), decoder_mults=(1, 1, 1))
  c.dvae.update(total_steps=2, every=dict(log=1, save=2, preview=0))
  c.dvae.optim.update(warmup_steps=0, schedule="constant")
  c.dct.model.update(depth=1, refine_depth=1, width=16, num_heads=2)
  c.dct.update(batch_size=32, total_steps=6, ema_decay=0.9)
  c.dct.optim.update(name="adamw", warmup_steps=2, schedule="constant")
  c.dct.every = dict(log=1, save=6, preview=0)
  return c
