"""HRIG: an enhancement of the high band where the noise is weak (after EFDiT; our reconstruction).

The perceptual window is SNR(t) = alpha^2 / sigma^2 >= s. E(y; z_t, t) makes data from its low band
y = D(x0), HP is what D drops, F = rfft2 (ortho) per channel, |.| the complex modulus.

  (1) L = lam 1[SNR >= s] (  mean|E(D(z0); z_t, t) - z0|
                           + lam_f mean|F(E(D(z0_hat); z_t, t)) - F(z0)|  ),
      means over elements of an image, summed over images, over the size of the full batch
  (2) z0' = z0_hat + a P[HP(E(D(z0_hat); z_t, t) - z0_hat)] inside the window, z0_hat outside it
  (3) a minimises mean|HP(z0' - z0)| on held-out latents; a = 0 where nothing above lowers it

P is the identity, or for latents with grains the caller's projection on unique codes. As D HP = 0,
(2) leaves the low band of z0_hat alone where P is the identity.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.core.errors import UserError
from dit_jax.core.mesh import by_rows
from dit_jax.core.typing import Array, Bool, Float
from dit_jax.diffusion import process
from dit_jax.diffusion.schedules import Schedule

STRENGTHS = tuple(round(0.1 * i, 1) for i in range(11))  # tried for a; 0 is the first


@dataclasses.dataclass(frozen=True)
class HRIG:
  """What Eqs. (1) to (3) share, by value.

  Attributes:
    schedule: of the process.
    enhance: E, (params, y, z, model_time [b]) -> like z.
    down, high_pass: D and HP.
    snr: s, the least SNR of the window.
    weight, frequency_weight: lam and lam_f.
    stop_gradient: no gradient of Eq. (1) flows into z0_hat.

  Raises:
    UserError: a number out of range.
  """

  schedule: Schedule
  enhance: Callable[..., Array]
  down: Callable[..., Array]
  high_pass: Callable[..., Array]
  snr: float = 1.0
  weight: float = 0.1
  frequency_weight: float = 0.1
  stop_gradient: bool = False

  def __post_init__(self):
    if not self.snr > 0:
      raise UserError(f"hrig.snr={self.snr}: wanted a signal-to-noise ratio above 0; change it.")
    for name in ("weight", "frequency_weight"):
      if not getattr(self, name) >= 0:
        raise UserError(f"hrig.{name}={getattr(self, name)}: wanted 0 or more; change it.")

  def inside(self, t: Float[Array, " b"]) -> Bool[Array, " b"]:
    """Whether SNR(t) >= s."""
    alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
    return jnp.square(alpha) >= self.snr * jnp.square(sigma)

  def loss(
    self,
    params,
    x0: Float[Array, "b h w c"],
    x0_hat: Float[Array, "b h w c"],
    z: Float[Array, "b h w c"],
    t: Float[Array, " b"],
    batch_size: Float[Array, ""] | int,
  ) -> tuple[Array, dict[str, Array]]:
    """Eq. (1) of the rows at hand and its two means, unweighted, as metrics.

    Args:
      params: of the enhancement.
      x0: the data.
      x0_hat: the model's data, from z and t.
      z: the data with noise.
      t: its time.
      batch_size: images of the full batch, whose micro-batches add up.
    """
    if self.stop_gradient:
      x0_hat = jax.lax.stop_gradient(x0_hat)
    weights = self.inside(t) / batch_size
    fourier = by_rows(lambda x: jnp.fft.rfft2(x, axes=(1, 2), norm="ortho"))
    enhance = lambda x: self._enhance(params, x, z, t)
    mean = lambda e: jnp.sum(weights * jnp.mean(jnp.abs(e), axis=(1, 2, 3)))
    data = mean(enhance(x0) - x0)
    frequency = mean(fourier(enhance(x0_hat)) - fourier(x0))
    metrics = {"hrig": data, "hrig_frequency": frequency}
    return self.weight * (data + self.frequency_weight * frequency), metrics

  def correct_x0(
    self, params, strength: float, project: Callable[[Array], Array] | None = None
  ) -> Callable[..., Array] | None:
    """Eq. (2) as the sampler's `correct_x0`; None at a = 0, so that sampling is the plain one's.

    Args:
      params: of the enhancement.
      strength: a.
      project: P; None is the identity.
    """
    if not strength:
      return None

    def correct(x0, z, t):
      inside = self.inside(t)

      def corrected():
        step = strength * self.step(params, x0, z, t, project)
        return jnp.where(process.spread(inside, x0), x0 + step, x0)

      return jax.lax.cond(jnp.any(inside), corrected, lambda: x0)  # outside, E costs nothing

    return correct

  def step(self, params, x0, z, t, project=None) -> Float[Array, "b h w c"]:
    """P[HP(E(D(x0); z, t) - x0)], the correction at a = 1."""
    change = self.high_pass(self._enhance(params, x0, z, t) - x0)
    return change if project is None else project(change)

  def errors(
    self,
    params,
    x0: Float[Array, "b h w c"],
    x0_hat: Float[Array, "b h w c"],
    z: Float[Array, "b h w c"],
    t: Float[Array, " b"],
    project: Callable[[Array], Array] | None = None,
  ) -> Float[Array, "b n"]:
    """mean|HP(z0' - z0)| of every image at each of STRENGTHS, all times inside the window."""
    step = self.step(params, x0_hat, z, t, project)
    error = lambda a: jnp.mean(jnp.abs(self.high_pass(x0_hat + a * step - x0)), axis=(1, 2, 3))
    return jnp.stack([error(a) for a in STRENGTHS], axis=-1)

  def _enhance(self, params, x0, z, t):
    return self.enhance(params, self.down(x0), z, self.schedule.model_time(t))


def window_times(schedule: Schedule, snr: float, count: int) -> np.ndarray:
  """`count` times spread evenly over the window, float32, ascending, above 0.

  Raises:
    UserError: no step of the schedule is inside.
  """
  t = np.arange(1, 1001) / 1000
  alpha, sigma = (
    np.asarray(f(jnp.asarray(t, jnp.float32))) for f in (schedule.alpha, schedule.sigma)
  )
  t = t[alpha**2 >= snr * sigma**2]
  if not len(t):
    raise UserError(f"hrig.snr={snr}: no step of the schedule is that clear; lower it.")
  return t[np.linspace(0, len(t) - 1, count).round().astype(int)].astype(np.float32)


def choose_strength(errors: np.ndarray) -> dict:
  """Eq. (3): a, the error without and with it, from the errors of held-out images [n, strengths].

  Returns:
    JSON-ready "strength", "error_plain", "error"; strength 0 and equal errors where none helps.
  """
  mean = np.asarray(errors, np.float64).mean(0)
  best = int(mean.argmin())  # the first of equals, so that a tie keeps a = 0
  return {"strength": STRENGTHS[best], "error_plain": float(mean[0]), "error": float(mean[best])}
