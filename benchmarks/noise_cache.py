"""A latent cache of noise, for benchmarks that need no pictures."""

import pathlib

import numpy as np


def write(folder: pathlib.Path, factors, regions, fine, channels: int) -> None:
  """Writes a cache of two grains.

  Args:
    folder: new.
    factors: (f_1, f_2).
    regions: (rows, cols) of a grain map.
    fine: the number of fine regions of every image.
    channels: of the moments.
  """
  from dit_jax.data import latents
  from dit_jax.data.hierarchy import ClassTable

  draw, scale = np.random.default_rng(0), factors[-1] // factors[0]
  shape = (regions[0] * scale, regions[1] * scale, channels)
  records = (
    {
      "moments": draw.standard_normal(shape, np.float32),
      "grains": draw.permutation(np.arange(regions[0] * regions[1]) < n).reshape(regions),
      "label": i % 1000,
      "index": i,
      "flipped": False,
    }
    for i, n in enumerate(fine)
  )
  meta = {"factors": factors, "regions": regions, "classes": ClassTable().to_json()}
  latents.write(folder, meta, records)
