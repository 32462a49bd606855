"""The structure of a grain map: which cells of the latent grid are copies of one code.

A grain map g is [b, rows, cols], one grain a region, 0 the coarsest and k - 1 the finest. With
factors f_1 < ... < f_k, a region spans p = f_k / f_1 cells of the latent grid, and a code of grain
g fills s_g x s_g of them, s_g = f_{k-g} / f_1 (D2iT section 3, neighbour copying).
"""

import jax.numpy as jnp
from einops import reduce, repeat

from dit_jax.core import rng
from dit_jax.core.typing import Array, Float, Int, Key


def spans(factors: tuple[int, ...]) -> tuple[int, ...]:
  """(s_0, ..., s_{k-1}): the side of one code in latent cells, by grain, coarsest first."""
  return tuple(f // factors[0] for f in reversed(factors))


def cell_grains(grains: Int[Array, "b rows cols"], factors: tuple[int, ...]) -> Int[Array, "b h w"]:
  """The grain of every latent cell."""
  p = factors[-1] // factors[0]
  return repeat(grains, "b r c -> b (r p) (c q)", p=p, q=p)


def unique_weights(
  grains: Int[Array, "b rows cols"], factors: tuple[int, ...]
) -> Float[Array, "b h w"]:
  """1 / s_g^2 per cell, so that a sum over cells counts every unique code once."""
  return jnp.asarray([1.0 / s**2 for s in spans(factors)])[cell_grains(grains, factors)]


def select(
  pyramid: list[Float[Array, "b _h _w c"]],
  grains: Int[Array, "b rows cols"],
  factors: tuple[int, ...],
) -> Float[Array, "b h w c"]:
  """The dense grid that holds, in every region, the codes of that region's grain, copied.

  Args:
    pyramid: one grid of codes a grain, coarsest first, grain g of side h / s_g.
    grains: the map.
    factors: f_1 < ... < f_k.
  """
  cells = cell_grains(grains, factors)[..., None]
  out = jnp.zeros((), pyramid[0].dtype)
  for g, (codes, s) in enumerate(zip(pyramid, spans(factors), strict=True)):
    out = jnp.where(cells == g, repeat(codes, "b h w c -> b (h s) (w t) c", s=s, t=s), out)
  return out


def project(
  x: Float[Array, "b h w c"], grains: Int[Array, "b rows cols"], factors: tuple[int, ...]
) -> Float[Array, "b h w c"]:
  """Averages x over the copies of each code: the nearest grid that has the structure of g."""
  pyramid = [
    reduce(x, "b (h s) (w t) c -> b h w c", "mean", s=s, t=s) if s > 1 else x
    for s in spans(factors)
  ]
  return select(pyramid, grains, factors)


def structured_noise(
  keys: Key[Array, " b"],
  grains: Int[Array, "b rows cols"],
  factors: tuple[int, ...],
  channels: int,
) -> Float[Array, "b h w c"]:
  """Standard normal codes, copied: eps = sum_g 1[g] copy_{s_g}(N(0, I)) (multi-grained noise).

  The draw of a code depends on its image's key, its grain and its place, so a region's noise does
  not change with the grains of other regions.
  """
  p = factors[-1] // factors[0]
  h, w = grains.shape[1] * p, grains.shape[2] * p
  pyramid = [
    rng.normal(rng.stream(keys, g), (h // s, w // s, channels))
    for g, s in enumerate(spans(factors))
  ]
  return select(pyramid, grains, factors)


def standardize(
  z: Float[Array, "b h w c"],
  grains: Int[Array, "b rows cols"],
  factors: tuple[int, ...],
  mean: Float[Array, "k c"],
  std: Float[Array, "k c"],
) -> Float[Array, "b h w c"]:
  """(z - mu_g) / sigma_g per grain and channel: what the transformers see of a latent."""
  cells = cell_grains(grains, factors)
  return (z - mean[cells]) / std[cells]


def unstandardize(
  z: Float[Array, "b h w c"],
  grains: Int[Array, "b rows cols"],
  factors: tuple[int, ...],
  mean: Float[Array, "k c"],
  std: Float[Array, "k c"],
) -> Float[Array, "b h w c"]:
  """The inverse of `standardize`; sampling calls it with the sampled map."""
  cells = cell_grains(grains, factors)
  return z * std[cells] + mean[cells]
