"""Deterministic steppers of second order: one call of the denoiser a step, former ones remembered.

h = lambda_s - lambda_t with lambda = log(alpha / sigma), m_t the x0 predicted at t, q the time of
the step before t, g = h / (lambda_t - lambda_q).

  (1) DPM-Solver++(2M)  z_s = sigma_s / sigma_t z_t + alpha_s (1 - exp(-h)) m,
      m = m_t + g / 2 (m_t - m_q)  (Lu et al. 2022, arXiv 2211.01095, Algorithm 2)
  (2) UniPC  (1), and once m_s is known z_s again, m = m_t + rho g (m_t - m_q) + rho_s (m_s - m_t),
      rho + rho_s = phi_2 / phi_1, rho_s - rho / g = 2 phi_3 / phi_1 at -h; 0 and 1 / 2 where g = 0
      (Zhao et al. 2023, arXiv 2302.04867: order 2, B(h) = exp(h) - 1, data prediction)
  (3) Heun  z_s' = DDIM's, z_s = z_s' + c (e_s - e_t) / (2 alpha_s), c = sigma_s alpha_t -
      sigma_t alpha_s, e_t the eps predicted from z_t, e_s that from z_s'

(3) is Heun's method on dz / dt = eps - x0 under rectified flow, and under schedules that preserve
variance on dz / da = alpha eps - sigma x0 in the angle a, alpha = cos a, with the rotation of DDIM
as the straight step. Karras et al. 2022 take d(z / alpha) / d(sigma / alpha) = eps, which puts
alpha_t for alpha_s in (3): near t = 1, where alpha_t is almost 0, that needs many more steps.
Euler's method on each of these is DDIM.

Where lambda is infinite, to s = 0 and from t = 1 under rectified flow, (1) is DDIM, as it is in the
step after that t (g = 0); (3) is DDIM to s = 0. Each is linear in z, x0 and eps with one weight for
all cells: the structure of a grain map stays.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from dit_jax.core.typing import Array, Float, Key
from dit_jax.diffusion import process, steppers
from dit_jax.diffusion.schedules import Schedule

NAMES = ("ddpm", "ddim", "dpmpp_2m", "unipc", "euler", "heun")
MULTISTEP = ("dpmpp_2m", "unipc")

_SERIES = 0.5  # below, phi of f32 loses digits to the difference that it is
_FAR = 60.0  # past it, exp(-h) is 0 beside 1


def make(name: str, p: process.Process, noise_fn: Callable[..., Array]) -> steppers.Stepper:
  """The stepper of one of NAMES; DDPM takes the model's variance where it has one."""
  match name:
    case "ddpm":
      return steppers.DDPM(p.schedule, noise_fn, "learned" if p.learn_sigma else "small")
    case "ddim" | "euler":
      return steppers.DDIM(p.schedule, noise_fn)
    case "dpmpp_2m":
      return DPMSolver(p.schedule)
    case "unipc":
      return UniPC(p.schedule)
  assert name == "heun", name
  return Heun(p.schedule)


def num_calls(name: str, steps: int) -> int:
  """Calls of the denoiser (NFE) that so many steps of one of NAMES take."""
  return 2 * steps - 1 if name == "heun" else steps


def _length(schedule: Schedule, t: Float[Array, ""], s: Float[Array, ""]) -> Float[Array, ""]:
  """h; infinite from alpha = 0 and to sigma = 0."""
  log_snr = lambda t: jnp.log(schedule.alpha(t) / schedule.sigma(t))
  return log_snr(s) - log_snr(t)


def _over(h: Float[Array, ""], before: Float[Array, ""]) -> Float[Array, ""]:
  """g; 0 where a step is infinite."""
  return jnp.where(jnp.isinf(h), 0.0, h / before)


def _move(schedule: Schedule, z, x0, t, s, h) -> Float[Array, "b h w c"]:
  """z_s of (1), m = x0."""
  keep = schedule.sigma(s) / schedule.sigma(t)
  return keep * z - schedule.alpha(s) * jnp.expm1(-h) * x0


class Past(NamedTuple):
  """The carry of (1).

  Attributes:
    z: at the time reached, t.
    x0: m_q.
    h: lambda_t - lambda_q; infinite at the start.
  """

  z: Array
  x0: Array
  h: Array


@dataclasses.dataclass(frozen=True)
class DPMSolver(steppers.Stepper):
  """Eq. (1).

  Attributes:
    schedule: of the denoiser's process.
  """

  schedule: Schedule

  def init(self, x: Float[Array, "b h w c"]) -> Past:
    """No past."""
    return Past(x, jnp.zeros_like(x), jnp.float32(jnp.inf))

  def step(
    self,
    denoise: process.Denoiser,
    past: Past,
    t: Float[Array, ""],
    s: Float[Array, ""],
    keys: Key[Array, " b"],
  ) -> Past:
    """To s; no key is used."""
    x0 = denoise(past.z, jnp.broadcast_to(t, past.z.shape[:1])).x0
    h = _length(self.schedule, t, s)
    m = x0 + 0.5 * _over(h, past.h) * (x0 - past.x0)
    return Past(_move(self.schedule, past.z, m, t, s, h), x0, h)

  def finish(self, carry: Past) -> Float[Array, "b h w c"]:
    """z_0."""
    return carry.z


class Correctable(NamedTuple):
  """The carry of (2): the step from q to the time reached, t, and what it was made of.

  Attributes:
    z: at t, as predicted.
    start: z at q.
    x0: m_q.
    tilt: g (m_q - m of the step before).
    q, h, g: of the step.
    begun: False at the start, where there is no such step.
  """

  z: Array
  start: Array
  x0: Array
  tilt: Array
  q: Array
  h: Array
  g: Array
  begun: Array


@dataclasses.dataclass(frozen=True)
class UniPC(steppers.Stepper):
  """Eq. (2).

  Attributes:
    schedule: of the denoiser's process.
  """

  schedule: Schedule

  def init(self, x: Float[Array, "b h w c"]) -> Correctable:
    """No step yet."""
    zeros = jnp.zeros_like(x)
    scalars = (jnp.float32(v) for v in (1.0, jnp.inf, 0.0))
    return Correctable(x, x, zeros, zeros, *scalars, jnp.asarray(False))

  def step(
    self,
    denoise: process.Denoiser,
    last: Correctable,
    t: Float[Array, ""],
    s: Float[Array, ""],
    keys: Key[Array, " b"],
  ) -> Correctable:
    """Corrects z_t, and to s; no key is used."""
    x0 = denoise(last.z, jnp.broadcast_to(t, last.z.shape[:1])).x0
    rho, rho_s = _corrector_weights(last.h, last.g)
    m = last.x0 + rho * last.tilt + rho_s * (x0 - last.x0)
    again = _move(self.schedule, last.start, m, last.q, t, last.h)
    z = jnp.where(last.begun, again, last.z)
    h = _length(self.schedule, t, s)
    g = _over(h, last.h)
    tilt = g * (x0 - last.x0)
    to = _move(self.schedule, z, x0 + 0.5 * tilt, t, s, h)
    return Correctable(to, z, x0, tilt, t, h, g, jnp.asarray(True))

  def finish(self, carry: Correctable) -> Float[Array, "b h w c"]:
    """z_0."""
    return carry.z


def _corrector_weights(h: Float[Array, ""], g: Float[Array, ""]) -> tuple[Array, Array]:
  """rho and rho_s of (2)."""
  phi_1, phi_2, phi_3 = _phi(-jnp.minimum(h, _FAR))
  b_1, b_2 = phi_2 / phi_1, 2.0 * phi_3 / phi_1
  rho = (b_1 - b_2) * g / (1.0 + g)
  return rho, jnp.where(g == 0, 0.5, b_1 - rho)


def _phi(x: Float[Array, ""]) -> tuple[Array, Array, Array]:
  """phi_1 = (e^x - 1) / x, phi_2 = (phi_1 - 1) / x, phi_3 = (phi_2 - 1 / 2) / x, for x < 0."""
  near = jnp.maximum(x, -_SERIES)
  phi_3 = 1.0
  for k in range(10, 3, -1):  # 1 / 3! (1 + x / 4 (1 + x / 5 (...)))
    phi_3 = 1.0 + near / k * phi_3
  series = phi_3 / 6.0
  far = jnp.minimum(x, -_SERIES)
  direct = ((jnp.expm1(far) / far - 1.0) / far - 0.5) / far
  phi_3 = jnp.where(x > -_SERIES, series, direct)
  phi_2 = 0.5 + x * phi_3
  return 1.0 + x * phi_2, phi_2, phi_3


class Called(NamedTuple):
  """The carry of (3): z at the time reached, and eps from the last call, at q."""

  z: Array
  eps: Array
  q: Array


@dataclasses.dataclass(frozen=True)
class Heun(steppers.Stepper):
  """Eq. (3): a step to t is followed by one from t to t, which corrects it, but for the last.

  Attributes:
    schedule: of the denoiser's process.
  """

  schedule: Schedule

  def visits(self, times: Float[Array, " n"]) -> Float[Array, " m"]:
    """Every time twice, but for the ends."""
    return jnp.repeat(times, 2)[1:-1]

  def init(self, x: Float[Array, "b h w c"]) -> Called:
    """No call yet."""
    return Called(x, jnp.zeros_like(x), jnp.float32(1.0))

  def step(
    self,
    denoise: process.Denoiser,
    last: Called,
    t: Float[Array, ""],
    s: Float[Array, ""],
    keys: Key[Array, " b"],
  ) -> Called:
    """To s < t, or at s = t the correction of z_t; no key is used."""
    d = denoise(last.z, jnp.broadcast_to(t, last.z.shape[:1]))
    alpha, sigma = self.schedule.alpha, self.schedule.sigma
    weight = 0.5 * (sigma(t) * alpha(last.q) / alpha(t) - sigma(last.q))
    again = last.z + weight * (d.eps - last.eps)
    to = alpha(s) * d.x0 + sigma(s) * d.eps
    return Called(jnp.where(s < t, to, again), d.eps, t)

  def finish(self, carry: Called) -> Float[Array, "b h w c"]:
    """z_0."""
    return carry.z
