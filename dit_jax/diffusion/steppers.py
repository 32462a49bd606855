"""One step from t down to s. A stepper is `init(x)`, `step(denoise, carry, t, s, keys)`, `finish`.

Every step calls the denoiser once, at t; `visits` makes the times of the steps from those asked
for. Steppers that remember former calls are in solvers.py.

  (1) DDPM  z_s = mean + sqrt(variance) noise, mean and variance of q(z_s | z_t, x0 predicted)
            (process.py, Eqs. 4 and 5), for steps of any length
  (2) DDIM  z_s = alpha_s x0 + sqrt(sigma_s^2 - c^2) eps + c noise, c = eta sqrt(posterior var)
            (Song et al. 2021, Eqs. 12 and 16); under rectified flow and eta = 0 it is Euler's
            z_s = z_t + (s - t) (eps - x0)

The noise comes from `noise_fn(keys [b]) -> like z`, so that it may have the structure of a grain
map. Times are scalars; the last step, s = 0, adds no noise.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from dit_jax.core.errors import UserError
from dit_jax.core.typing import Array, Float, Key
from dit_jax.diffusion import process
from dit_jax.diffusion.schedules import Schedule

VARIANCES = ("learned", "small", "large")


class Stepper:
  """What a stepper is where it remembers nothing: the carry is z itself."""

  def visits(self, times: Float[Array, " n"]) -> Float[Array, " m"]:
    """The times between which steps are made, times[0] to times[-1]."""
    return times

  def init(self, x: Float[Array, "b h w c"]):
    """The carry before the first step, from z at its time."""
    return x

  def finish(self, carry) -> Float[Array, "b h w c"]:
    """z at the time that the carry has reached."""
    return carry


@dataclasses.dataclass(frozen=True)
class DDPM(Stepper):
  """Eq. (1): ancestral sampling.

  Attributes:
    schedule: of the denoiser's process.
    noise_fn: standard normal noise like z, from one key an image.
    var: "small", the posterior's variance; "large", the forward step's; "learned", the denoiser's
      place between their logarithms.
  """

  schedule: Schedule
  noise_fn: Callable[..., Array]
  var: str = "learned"

  def __post_init__(self):
    if self.var not in VARIANCES:
      raise UserError(f"var={self.var!r}: wanted one of {VARIANCES}; change it.")

  def step(
    self,
    denoise: process.Denoiser,
    z: Float[Array, "b h w c"],
    t: Float[Array, ""],
    s: Float[Array, ""],
    keys: Key[Array, " b"],
  ) -> Float[Array, "b h w c"]:
    """z_s from z_t; UserError where the variance is "learned" and the denoiser has none."""
    d = denoise(z, jnp.broadcast_to(t, z.shape[:1]))
    q = process.transition(self.schedule, t, s)
    if self.var == "learned":
      if d.log_var_mix is None:
        raise UserError("var='learned' from a model without: wanted learn_sigma, or var='small'.")
      std = jnp.exp(0.5 * process.log_var_between(q.var, q.var_ts, d.log_var_mix))
    else:
      std = jnp.sqrt(q.var if self.var == "small" else q.var_ts)
    return q.from_z * z + q.from_x0 * d.x0 + jnp.where(s > 0, std, 0.0) * self.noise_fn(keys)


@dataclasses.dataclass(frozen=True)
class DDIM(Stepper):
  """Eq. (2): deterministic at eta = 0, where no noise is drawn; DDPM with "small" at eta = 1.

  Attributes:
    schedule: of the denoiser's process.
    noise_fn: standard normal noise like z, from one key an image.
    eta: share of the posterior's standard deviation that is drawn afresh, in [0, 1].
  """

  schedule: Schedule
  noise_fn: Callable[..., Array]
  eta: float = 0.0

  def __post_init__(self):
    if not 0 <= self.eta <= 1:
      raise UserError(f"eta={self.eta}: wanted 0..1; change it.")

  def step(
    self,
    denoise: process.Denoiser,
    z: Float[Array, "b h w c"],
    t: Float[Array, ""],
    s: Float[Array, ""],
    keys: Key[Array, " b"],
  ) -> Float[Array, "b h w c"]:
    """z_s from z_t."""
    d = denoise(z, jnp.broadcast_to(t, z.shape[:1]))
    alpha, sigma = self.schedule.alpha(s), self.schedule.sigma(s)
    if self.eta == 0:
      return alpha * d.x0 + sigma * d.eps
    c = self.eta * jnp.sqrt(process.transition(self.schedule, t, s).var)
    old = jnp.sqrt(jnp.maximum(jnp.square(sigma) - jnp.square(c), 0.0))
    return alpha * d.x0 + old * d.eps + c * self.noise_fn(keys)
