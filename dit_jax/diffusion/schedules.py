"""Noise schedules: z_t = alpha(t) x0 + sigma(t) eps, t = 0 clean data and t = 1 noise.

  (1) LinearBeta     alpha^2 = prod_{j <= i} (1 - beta_j), t = i / T (DDPM, section 4)
  (2) Cosine         alpha = cos(phi t), sigma = sin(phi t) (iDDPM, section 3.2, without its offset)
  (3) RectifiedFlow  alpha = 1 - t, sigma = t (Liu et al. 2022; Lipman et al. 2022)

(1) and (2) preserve variance: alpha^2 + sigma^2 = 1. For them T is the number of steps of the
training chain, and one step back from t is t - 1 / T.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.core import rng
from dit_jax.core.errors import UserError
from dit_jax.core.typing import Array, Float, Key

_MODEL_STEPS = 1000.0  # timestep embeddings are built for times of 0..1000
_COSINE_END = 0.5 * np.pi * 0.999  # keeps alpha(1) > 0, as iDDPM's cap on beta does


@functools.cache
def _linear_tables(T: int, beta_min: float, beta_max: float) -> tuple[np.ndarray, np.ndarray]:
  """alpha and sigma of Eq. (1) at i = 0..T, computed in float64."""
  log_alpha_sq = np.cumsum(np.log1p(-np.linspace(beta_min, beta_max, T)))
  log_alpha_sq = np.concatenate([[0.0], log_alpha_sq])
  alpha, sigma = (
    np.exp(0.5 * log_alpha_sq),
    np.sqrt(0.0 - np.expm1(log_alpha_sq)),
  )  # not -0.0 at i = 0
  return alpha.astype(np.float32), sigma.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class LinearBeta:
  """Eq. (1): the one discrete schedule. A time is looked up at the nearest i / T, i = 0..T.

  Attributes:
    T: steps of the chain; the model is trained at i = 1..T.
    beta_min: variance added by the first step.
    beta_max: variance added by the last step.
  """

  T: int = 1000
  beta_min: float = 1e-4
  beta_max: float = 0.02

  variance_preserving = True

  def __post_init__(self):
    if self.T < 2 or not 0 < self.beta_min <= self.beta_max < 1:
      raise UserError(f"{self}: wanted T >= 2 and 0 < beta_min <= beta_max < 1; change the config.")

  def _index(self, t):
    return jnp.clip(jnp.round(t * self.T).astype(jnp.int32), 0, self.T)

  def alpha(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
    """Scale of the data."""
    return jnp.asarray(_linear_tables(self.T, self.beta_min, self.beta_max)[0])[self._index(t)]

  def sigma(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
    """Standard deviation of the noise."""
    return jnp.asarray(_linear_tables(self.T, self.beta_min, self.beta_max)[1])[self._index(t)]

  def noise_ratio(self, t: float) -> float:
    """sigma / alpha on the host."""
    alpha, sigma = _linear_tables(self.T, self.beta_min, self.beta_max)
    return float(sigma[round(t * self.T)] / alpha[round(t * self.T)])

  def time_of(self, noise_ratio: np.ndarray) -> np.ndarray:
    """Where sigma / alpha is so much, between steps of the chain too; on the host."""
    alpha, sigma = _linear_tables(self.T, self.beta_min, self.beta_max)
    steps = np.arange(1, self.T + 1)
    return np.interp(np.log(noise_ratio), np.log(sigma[1:] / alpha[1:]), steps) / self.T

  def model_time(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
    """What the timestep embedding sees: i - 1, in 0..T-1, as in DDPM's numbering."""
    return jnp.maximum(self._index(t) - 1, 0).astype(jnp.float32)

  def times(self, num_steps: int) -> Float[Array, " n"]:
    """`num_steps` times evenly spaced over the chain, T / T down to 1 / T, then 0.

    Raises:
      UserError: unless 1 <= num_steps <= T.
    """
    if not 1 <= num_steps <= self.T:
      raise UserError(f"{num_steps=}: wanted 1..{self.T}, the steps of the chain; change it.")
    index = np.round(np.linspace(self.T, 1, num_steps))
    return jnp.asarray(np.append(index, 0.0) / self.T, jnp.float32)

  def sample_times(self, keys: Key[Array, " b"]) -> Float[Array, " b"]:
    """Training times, uniform over the T steps, one a key."""
    index = jax.vmap(lambda k: jax.random.randint(k, (), 1, self.T + 1))(keys)
    return index.astype(jnp.float32) / self.T


class _Continuous:
  """What the continuous schedules share: any time in [0, 1] is a step."""

  def model_time(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
    """What the timestep embedding sees: 1000 t."""
    return _MODEL_STEPS * t

  def times(self, num_steps: int) -> Float[Array, " n"]:
    """`num_steps` + 1 evenly spaced times from 1 down to 0; UserError if num_steps < 1."""
    if num_steps < 1:
      raise UserError(f"{num_steps=}: wanted at least 1; change it.")
    return jnp.asarray(np.linspace(1.0, 0.0, num_steps + 1), jnp.float32)

  def sample_times(self, keys: Key[Array, " b"]) -> Float[Array, " b"]:
    """Training times, one a key: uniform, or sigmoid(N(0, 1)) (Stable Diffusion 3, Eq. 19)."""
    return jax.nn.sigmoid(rng.normal(keys, ())) if self.logit_normal else rng.uniform(keys)


@dataclasses.dataclass(frozen=True)
class Cosine(_Continuous):
  """Eq. (2), phi = 0.999 pi / 2, so that a predicted eps still determines x0 at t = 1.

  Attributes:
    logit_normal: training times from sigmoid(N(0, 1)) instead of uniform.
    T: steps of the chain whose variational bound is trained when the variance is learned; 1 / T is
      the least time of spacings by noise.
  """

  logit_normal: bool = False
  T: int = 1000

  variance_preserving = True

  def alpha(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
    """Scale of the data."""
    return jnp.cos(_COSINE_END * t)

  def sigma(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
    """Standard deviation of the noise."""
    return jnp.sin(_COSINE_END * t)

  def noise_ratio(self, t: float) -> float:
    """sigma / alpha on the host."""
    return float(np.tan(_COSINE_END * t))

  def time_of(self, noise_ratio: np.ndarray) -> np.ndarray:
    """Where sigma / alpha is so much; on the host."""
    return np.arctan(noise_ratio) / _COSINE_END


@dataclasses.dataclass(frozen=True)
class RectifiedFlow(_Continuous):
  """Eq. (3): straight paths from data to noise.

  Attributes:
    logit_normal: training times from sigmoid(N(0, 1)) instead of uniform.
  """

  logit_normal: bool = False

  variance_preserving = False

  def alpha(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
    """Scale of the data."""
    return 1.0 - t

  def sigma(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
    """Standard deviation of the noise."""
    return t


Schedule = LinearBeta | Cosine | RectifiedFlow


def make_schedule(name: str, logit_normal: bool = False) -> Schedule:
  """The schedule that a config names: "linear", "cosine" or "flow".

  Raises:
    UserError: on an unknown name, or logit-normal times for "linear", whose times are uniform.
  """
  match name:
    case "linear" if not logit_normal:
      return LinearBeta()
    case "linear":
      raise UserError("logit_normal with schedule 'linear': wanted 'cosine' or 'flow'; unset it.")
    case "cosine":
      return Cosine(logit_normal)
    case "flow":
      return RectifiedFlow(logit_normal)
  raise UserError(f"schedule {name!r}: wanted 'linear', 'cosine' or 'flow'; change the config.")
