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
  from dit_jax.data import latent_shards
  from dit_jax.data.hierarchy import ClassTable

  scale = factors[-1] // factors[0]
  shape = (regions[0] * scale, regions[1] * scale, channels)

  def record(i: int) -> dict:
    draw = np.random.default_rng(i)
    return {
      "moments": draw.standard_normal(shape, np.float32),
      "grains": draw.permutation(np.arange(regions[0] * regions[1]) < fine[i]).reshape(regions),
      "label": i % 1000,
      "index": i,
      "flipped": False,
    }

  meta = {"factors": factors, "regions": regions, "classes": ClassTable().to_json()}
  records = lambda positions, done: ((i, record(i)) for i in positions.tolist())
  latent_shards.write(folder, meta, {}, len(fine), records)
