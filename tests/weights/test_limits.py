"""Fields of a file are of known kinds, and no larger than its arrays bear out."""

import numpy as np
import pytest

from dit_jax.core.errors import UserError
from dit_jax.weights import limits

DIT = dict(
  depth=2,
  width=8,
  num_heads=2,
  patch=2,
  grid=(4, 4),
  z_channels=4,
  num_classes=3,
  learn_sigma=False,
)
VAE = dict(block_out_channels=(8, 8), layers_per_block=1, latent_channels=4)


def arrays(count: int, numbers: int = 0) -> dict:
  return {str(i): np.broadcast_to(np.float32(0), (numbers,)) for i in range(count)}


def test_what_arrays_bear_out_passes():
  limits.check("dit", DIT, arrays(20))
  limits.check("dit", DIT | dict(max_period=9, tiers=None, qk_norm=True), arrays(20))
  limits.check("sd-vae", VAE, arrays(32))
  limits.check("sd-vae", VAE | dict(scaling_factor=0.5), arrays(32))


@pytest.mark.parametrize(
  ("model", "change", "words"),
  [
    ("dit", dict(depth=3), "3 blocks are more than 256, or than 20 arrays can hold"),
    ("dit", dict(depth=257), "257 blocks"),
    ("dit", dict(depth=2.0), "depth=2.0 must be a whole number"),
    ("dit", dict(width=2048), "width=2048 asks for 4,194,304 numbers"),
    ("dit", dict(grid=(4096, 4096)), "grid="),
    ("dit", dict(patch=1024, grid=(1024, 1024)), "z_channels=4 asks"),
    ("dit", dict(num_classes=2**20), "num_classes=1048576 asks"),
    ("dit", dict(tiers={}), "a class tree is not kept"),
    ("dit", dict(new=1), "unknown field 'new'"),
    ("sd-vae", dict(layers_per_block=2), "4 blocks"),
    ("sd-vae", dict(block_out_channels=(2048,)), "block_out_channels="),
    ("sd-vae", dict(latent_channels=1024), "latent_channels=1024 asks"),
    ("unet", {}, "unknown model 'unet', known are dit, sd-vae"),
    ({}, {}, "unknown model {}"),
  ],
)
def test_what_they_do_not_is_refused_by_name(model, change, words):
  fields, count = (VAE, 32) if model == "sd-vae" else (DIT, 20)
  with pytest.raises(UserError, match=words):
    limits.check(model, fields | change, arrays(count))


def test_arrays_may_be_as_large_as_the_file():
  limits.check("dit", DIT | dict(width=2048), arrays(20, 2**18))


@pytest.mark.parametrize(("model", "fields"), [("dit", DIT), ("sd-vae", VAE)])
def test_a_field_that_is_missing_is_named(model, fields):
  for name in fields:
    less = {other: value for other, value in fields.items() if other != name}
    limits.check_fields(model, less)
    with pytest.raises(UserError, match=f"fields {name} are missing"):
      limits.check(model, less, arrays(32))
