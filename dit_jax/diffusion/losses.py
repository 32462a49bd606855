"""The terms of the training loss, per latent cell, and their reduction over unique codes.

  (1) e = mean over channels of (prediction - target)^2
  (2) vlb = mean over channels of KL(q(z_s | z_t, x0) || p(z_s | z_t)) / ln 2, bits per channel,
      s one step of the chain below t; at the first step -log2 p(x0 | z_t) over bins of 2 / 255
      (iDDPM, sections 3.1 and 3.3; DiT trains it beside (1) with weight 1)

Reductions over the multi-grained latent (our reconstruction; the first is the ELBO of the unique
codes). With 1/s_g^2 as a cell's weight, the weighted sum over cells counts each code once.

  (3) unique       sum over codes of e / number of codes
  (4) copied       sum over cells of e / number of cells
  (5) grain_means  sum over grains of w_g (sum over codes of e / number of codes of the grain)
"""

import jax
import jax.numpy as jnp

from dit_jax.core.errors import UserError
from dit_jax.core.typing import Array, Float, Int
from dit_jax.diffusion import process
from dit_jax.diffusion.schedules import Cosine, LinearBeta

KINDS = ("unique", "copied", "grain_means")

_HALF_BIN = 1.0 / 255.0  # data in [-1, 1] on 256 levels
_LEAST_MASS = 1e-12  # of a bin, before the logarithm, as in iDDPM


def mse_terms(
  pred: Float[Array, "b h w c"], target: Float[Array, "b h w c"]
) -> Float[Array, "b h w"]:
  """Eq. (1), in float32."""
  return jnp.mean(jnp.square(pred.astype(jnp.float32) - target), axis=-1)


def vlb_terms(
  schedule: LinearBeta | Cosine,
  x0: Float[Array, "b h w c"],
  z: Float[Array, "b h w c"],
  t: Float[Array, " b"],
  x0_hat: Float[Array, "b h w c"],
  log_var_mix: Float[Array, "b h w c"],
) -> Float[Array, "b h w"]:
  """Eq. (2): trains the learned variance and nothing else.

  Args:
    schedule: variance preserving, with T steps.
    x0: the data.
    z: the data with noise, at t.
    t: the drawn time.
    x0_hat: the model's unclipped data (`Process.to_x0_eps`); no gradient flows into it.
    log_var_mix: the model's place between the two log variances (`Process.split`).
  """
  step = 1.0 / schedule.T
  x0_hat = jax.lax.stop_gradient(x0_hat)
  t = jnp.maximum(t, step)
  now = process.transition(schedule, t, jnp.maximum(t - step, 0.0))
  # The posterior of the first step has no variance; like iDDPM, it borrows the second step's.
  t_var = jnp.maximum(t, 2 * step)
  true_var = process.transition(schedule, t_var, t_var - step).var

  def mean(x):
    return process.spread(now.from_z, z) * z + process.spread(now.from_x0, z) * x

  log_var = process.log_var_between(true_var, now.var_ts, log_var_mix)
  true_log_var = process.spread(jnp.log(true_var), z)
  kl = _normal_kl(mean(x0), true_log_var, mean(x0_hat), log_var)
  nll = _discretised_nll(x0, mean(x0_hat), log_var)
  nats = jnp.where(process.spread(t < 1.5 * step, z), nll, kl)
  return jnp.mean(nats, axis=-1) / jnp.log(2.0)


def _normal_kl(mean_q, log_var_q, mean_p, log_var_p):
  """KL(N(mean_q, ..) || N(mean_p, ..)) in nats."""
  gap = jnp.square(mean_q - mean_p) * jnp.exp(-log_var_p)
  return 0.5 * (log_var_p - log_var_q - 1.0 + jnp.exp(log_var_q - log_var_p) + gap)


def _discretised_nll(x, mean, log_var):
  """-log of the mass that N(mean, ..) gives to the bin around x, in nats.

  The outer bins of [-1, 1] reach to infinity. The mass is taken in the tail on the far side of
  the mean, where a difference of cumulatives keeps its digits.
  """
  inv_std = jnp.exp(-0.5 * log_var)
  below, above = (x - mean - _HALF_BIN) * inv_std, (x - mean + _HALF_BIN) * inv_std
  far = jnp.abs(x - mean)
  cdf = jax.scipy.special.ndtr
  inner = cdf((_HALF_BIN - far) * inv_std) - cdf((-_HALF_BIN - far) * inv_std)
  mass = jnp.where(x < -0.999, cdf(above), jnp.where(x > 0.999, cdf(-below), inner))
  return -jnp.log(jnp.maximum(mass, _LEAST_MASS))


def weighted_sum(e: Float[Array, "b h w"], weights: Float[Array, "b h w"]) -> Float[Array, ""]:
  """Sum of e over unique codes, weights being 1 / s_g^2; the caller divides by a global count."""
  return jnp.sum(e * weights)


def norms(
  cell_grains: Int[Array, "b h w"], unique_weights: Float[Array, "b h w"], num_grains: int
) -> dict[str, Array]:
  """The denominators of Eqs. (3) to (5), each at least 1, from the whole global batch.

  Returns:
    "codes", a scalar; "per_grain", [num_grains], coarsest first; "cells", a scalar.
  """
  grains = jnp.arange(num_grains)
  per_grain = jax.vmap(lambda g: weighted_sum((cell_grains == g) * 1.0, unique_weights))(grains)
  return {
    "codes": jnp.maximum(jnp.sum(unique_weights), 1.0),
    "per_grain": jnp.maximum(per_grain, 1.0),
    "cells": jnp.asarray(max(cell_grains.size, 1), jnp.float32),
  }


def reduce_terms(
  e: Float[Array, "b h w"],
  cell_grains: Int[Array, "b h w"],
  unique_weights: Float[Array, "b h w"],
  kind: str,
  norm: dict[str, Array],
  weights: tuple[float, ...] = (1.0, 1.0),
) -> Float[Array, ""]:
  """One of Eqs. (3) to (5) over a micro-batch.

  Args:
    e: a term per cell, equal in the cells of a code.
    cell_grains: the grain of every cell; zeros for a plain latent.
    unique_weights: 1 / s_g^2 of every cell; ones for a plain latent.
    kind: "unique", "copied" or "grain_means".
    norm: `norms` of the whole batch, so that the values of micro-batches add up to the batch's.
    weights: w_g of "grain_means", coarsest first.

  Raises:
    UserError: on an unknown kind, or not one weight a grain.
  """
  if kind == "unique":
    return weighted_sum(e, unique_weights) / norm["codes"]
  if kind == "copied":
    return jnp.sum(e) / norm["cells"]
  if kind != "grain_means":
    raise UserError(f"loss kind {kind!r}: wanted one of {KINDS}; change the config.")
  num_grains = norm["per_grain"].shape[0]
  if len(weights) != num_grains:
    raise UserError(f"{weights=} for {num_grains} grains: wanted one a grain; change the config.")
  return sum(
    w * weighted_sum(jnp.where(cell_grains == g, e, 0.0), unique_weights) / norm["per_grain"][g]
    for g, w in enumerate(weights)
  )
