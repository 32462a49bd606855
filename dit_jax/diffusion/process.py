"""The Gaussian process between data and noise, and what a model may predict about it.

  (1) z_t = alpha x0 + sigma eps
  (2) v = alpha eps - sigma x0                                (Salimans & Ho 2022)
  (3) u = eps - x0                                            (rectified flow's velocity)
  (4) q(z_t | z_s) = N(alpha_ts z_s, var_ts),  alpha_ts = alpha_t / alpha_s,
      var_ts = sigma_t^2 - alpha_ts^2 sigma_s^2               (Kingma et al. 2021, Eqs. 23-26)
  (5) q(z_s | z_t, x0) = N(mean, var),  var = var_ts sigma_s^2 / sigma_t^2,
      mean = alpha_ts sigma_s^2 / sigma_t^2 z_t + alpha_s var_ts / sigma_t^2 x0

Every prediction is turned into (x0, eps) and every target made from it: 2n rules, not n^2.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from dit_jax.core.errors import UserError
from dit_jax.core.typing import Array, Float
from dit_jax.diffusion.schedules import RectifiedFlow, Schedule

PREDICTIONS = ("eps", "x0", "v", "flow")

_TINY = 1e-20  # under the smallest variance of any step, so only an exact 0 meets it


class Denoised(NamedTuple):
  """What a denoiser knows about z_t.

  Attributes:
    x0: the predicted data, [b, h, w, c].
    eps: the predicted noise, [b, h, w, c], with z_t = alpha x0 + sigma eps.
    log_var_mix: where the model puts its log variance between that of the posterior (0) and that
      of the forward step (1) (iDDPM, Eq. 15), [b, h, w, c]; None where no variance is learned.
  """

  x0: Array
  eps: Array
  log_var_mix: Array | None = None


Denoiser = Callable[..., Denoised]


def spread(a: Array, x: Float[Array, "..."]) -> Array:
  """Gives a scalar or a [b] array the trailing axes that it needs to multiply x."""
  return jnp.expand_dims(a, tuple(range(a.ndim, x.ndim)))


class Transition(NamedTuple):
  """Eqs. (4) and (5) for s < t, each of the shape of t.

  Attributes:
    from_z: weight of z_t in the posterior's mean.
    from_x0: weight of x0 in the posterior's mean.
    var: the posterior's variance; 0 when s = 0.
    var_ts: the forward step's variance.
  """

  from_z: Array
  from_x0: Array
  var: Array
  var_ts: Array


def transition(schedule: Schedule, t: Float[Array, "*n"], s: Float[Array, "*n"]) -> Transition:
  """The posterior of the step from t down to s, of any length: Eqs. (4) and (5)."""
  alpha_s, sigma_t = schedule.alpha(s), schedule.sigma(t)
  alpha_ts = schedule.alpha(t) / alpha_s
  ratio = jnp.square(schedule.sigma(s) / sigma_t)
  keep = 1.0 - jnp.square(alpha_ts) * ratio  # var_ts / sigma_t^2, without squaring sigma_t away
  var_ts = keep * jnp.square(sigma_t)
  return Transition(alpha_ts * ratio, alpha_s * keep, var_ts * ratio, var_ts)


def log_var_between(
  small: Float[Array, "*n"], large: Float[Array, "*n"], mix: Float[Array, "b h w c"]
) -> Float[Array, "b h w c"]:
  """The learned log variance: `mix` of the way from log small to log large (iDDPM, Eq. 15)."""
  low, high = (spread(jnp.log(jnp.maximum(v, _TINY)), mix) for v in (small, large))
  return low + mix * (high - low)


@dataclasses.dataclass(frozen=True)
class Process:
  """A schedule and the meaning of a model's output.

  Attributes:
    schedule: gives alpha and sigma.
    prediction: "eps", "x0", "v" (Eq. 2) or "flow" (Eq. 3).
    learn_sigma: the output's second half of channels are variance logits, -1 for the posterior's
      variance and 1 for the forward step's.
    clip: bound on |x0| when sampling pixels; None for latents.

  Raises:
    UserError: where the fields contradict each other.
  """

  schedule: Schedule
  prediction: str = "eps"
  learn_sigma: bool = False
  clip: float | None = None

  def __post_init__(self):
    name = type(self.schedule).__name__
    if self.prediction not in PREDICTIONS:
      raise UserError(f"prediction={self.prediction!r}: wanted one of {PREDICTIONS}; change it.")
    if self.prediction == "flow" and not isinstance(self.schedule, RectifiedFlow):
      raise UserError(f"prediction='flow' with {name}: wanted schedule 'flow'; or predict 'v'.")
    if self.prediction == "eps" and isinstance(self.schedule, RectifiedFlow):
      raise UserError(
        "prediction='eps' with schedule 'flow': eps says nothing of x0 at t = 1; predict 'flow'."
      )
    if self.learn_sigma and self.prediction in ("v", "flow"):
      raise UserError(
        f"learn_sigma with prediction={self.prediction!r}: wanted 'eps' or 'x0'; "
        "set learn_sigma=False."
      )
    if self.learn_sigma and not self.schedule.variance_preserving:
      raise UserError(
        f"learn_sigma with {name}: wanted a schedule that preserves variance, 'linear' or "
        "'cosine'; set learn_sigma=False."
      )
    if self.clip is not None and not self.clip > 0:
      raise UserError(f"clip={self.clip}: wanted a positive bound on |x0|, or None.")

  def _alpha_sigma(self, t, x):
    return spread(self.schedule.alpha(t), x), spread(self.schedule.sigma(t), x)

  def add_noise(
    self, x0: Float[Array, "b h w c"], eps: Float[Array, "b h w c"], t: Float[Array, " b"]
  ) -> Float[Array, "b h w c"]:
    """z_t of Eq. (1)."""
    alpha, sigma = self._alpha_sigma(t, x0)
    return alpha * x0 + sigma * eps

  def target(
    self, x0: Float[Array, "b h w c"], eps: Float[Array, "b h w c"], t: Float[Array, " b"]
  ) -> Float[Array, "b h w c"]:
    """What a perfect model predicts."""
    alpha, sigma = self._alpha_sigma(t, x0)
    match self.prediction:
      case "eps":
        return eps
      case "x0":
        return x0
      case "v":
        return alpha * eps - sigma * x0
      case _:
        return eps - x0

  def to_x0_eps(
    self, pred: Float[Array, "b h w c"], z: Float[Array, "b h w c"], t: Float[Array, " b"]
  ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
    """The (x0, eps) that z and a prediction determine, t > 0; never clipped."""
    alpha, sigma = self._alpha_sigma(t, z)
    match self.prediction:
      case "eps":
        return (z - sigma * pred) / alpha, pred
      case "x0":
        return pred, (z - alpha * pred) / sigma
      case "v":
        norm = jnp.square(alpha) + jnp.square(sigma)
        return (alpha * z - sigma * pred) / norm, (sigma * z + alpha * pred) / norm
      case _:
        return z - sigma * pred, z + alpha * pred

  def split(
    self, raw: Float[Array, "b h w m"]
  ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"] | None]:
    """A model's output as (prediction, log_var_mix or None), float32."""
    raw = raw.astype(jnp.float32)
    if not self.learn_sigma:
      return raw, None
    pred, logits = jnp.split(raw, 2, axis=-1)
    return pred, 0.5 * (logits + 1.0)

  def denoiser(self, model_fn: Callable[..., Array]) -> Denoiser:
    """`denoise(z, t [b]) -> Denoised` from `model_fn(z, model_time [b]) -> raw output`."""

    def denoise(z: Float[Array, "b h w c"], t: Float[Array, " b"]) -> Denoised:
      pred, mix = self.split(model_fn(z, self.schedule.model_time(t)))
      x0, eps = self.to_x0_eps(pred, z, t)
      if self.clip is not None:
        return with_x0(
          self.schedule, Denoised(x0, eps, mix), jnp.clip(x0, -self.clip, self.clip), z, t
        )
      return Denoised(x0, eps, mix)

    return denoise


def with_x0(
  schedule: Schedule,
  denoised: Denoised,
  x0: Float[Array, "b h w c"],
  z: Float[Array, "b h w c"],
  t: Float[Array, " b"],
) -> Denoised:
  """Replaces the predicted data, and the noise with what is left of z: (z - alpha x0) / sigma."""
  alpha, sigma = spread(schedule.alpha(t), z), spread(schedule.sigma(t), z)
  return denoised._replace(x0=x0, eps=(z - alpha * x0) / sigma)
