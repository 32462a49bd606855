"""Positions of a latent grid: every cell its own, copies of one code far apart."""

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.nn import fourier


def test_octaves_are_sines_and_cosines_of_the_centres():
  rows, cols = 4, 8
  table = fourier.octaves(rows, cols)
  assert table.shape == (rows, cols, 12)  # three octaves, two functions, two axes
  for i in range(rows):
    for j in range(cols):
      y, x = -1 + (i + 0.5) * 2 / rows, -1 + (j + 0.5) * 2 / cols
      want = [f(np.pi * 2**k * v) for v in (y, x) for f in (np.sin, np.cos) for k in range(3)]
      np.testing.assert_allclose(table[i, j], want, atol=1e-6)


def test_neighbouring_cells_differ_as_much_as_distant_ones():
  """The finest octave has a period of two cells, so copies side by side can be told apart."""
  flat = fourier.octaves(32, 32).reshape(32 * 32, -1)
  squares = (flat**2).sum(-1)
  apart = squares[:, None] + squares - 2 * flat @ flat.T  # squared distances
  assert np.sort(apart, axis=1)[:, 1].min() > 1.0  # from each cell to the nearest other one


def test_adds_fourier_rows_and_columns():
  z = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 6, 3)), jnp.float32)
  module = fourier.GridPosition()
  params = module.init(jax.random.key(0), z)["params"]
  zeros = jax.tree.map(jnp.zeros_like, params)
  only = lambda name: {"params": zeros | {name: params[name]}}
  rows = module.apply(only("rows"), z) - z
  cols = module.apply(only("cols"), z) - z
  assert np.ptp(rows, axis=(0, 2)).max() < 1e-6 < np.ptp(rows, axis=1).min()
  assert np.ptp(cols, axis=(0, 1)).max() < 1e-6 < np.ptp(cols, axis=2).min()
  whole = module.apply({"params": params}, z) - z
  wave = fourier.octaves(4, 6) @ np.asarray(params["fourier"]["kernel"])
  np.testing.assert_allclose(whole, rows + cols + wave, atol=1e-5)
