"""How the times of n steps are spaced, from the first to the last before 0.

  (1) linspace   t evenly, both ends of the chain included (iDDPM's rule)
  (2) trailing   t = 1, (n - 1) / n .. 1 / n; (1) on continuous schedules (Lin et al. 2023, Table 2)
  (3) leading    every (T // n)-th step from the chain's first on: starts below t = 1 (DDPM's code)
  (4) quadratic  sqrt(t) evenly (Song et al. 2021, section D.2; theirs starts at 0.8 T)
  (5) karras     (sigma / alpha)^(1/7) evenly (Karras et al. 2022, Eq. 5)
  (6) logsnr     log(alpha / sigma) evenly (Lu et al. 2022, section 3.3)

(5) and (6) go from t = 1 to 1 / T and need both ratios to be finite. On the linear schedule, whose
times are the steps of its chain, times are rounded to steps; where several meet, they move to the
nearest free ones above, so that there are n of them.
"""

import jax.numpy as jnp
import numpy as np

from dit_jax.core.errors import UserError
from dit_jax.core.typing import Array, Float
from dit_jax.diffusion.schedules import LinearBeta, RectifiedFlow, Schedule

SPACINGS = ("linspace", "trailing", "leading", "quadratic", "karras", "logsnr")

_RHO = 7.0


def times(schedule: Schedule, num_steps: int, spacing: str = "linspace") -> Float[Array, " n"]:
  """`num_steps` descending times, the last of them above 0, then 0.

  Raises:
    UserError: a spacing that is unknown or that the schedule has not; a wrong number of steps.
  """
  linspace = schedule.times(num_steps)
  if spacing == "linspace":
    return linspace
  discrete = isinstance(schedule, LinearBeta)
  end = schedule.T if discrete else 1  # t = 1 in the unit of `at`
  left = np.arange(num_steps, 0, -1)
  match spacing:
    case "trailing":
      at = end * left / num_steps
    case "quadratic":
      at = end * np.square(left / num_steps)
    case "leading" if discrete:
      at = 1 + schedule.T // num_steps * (left - 1)
    case "karras" | "logsnr" if not isinstance(schedule, RectifiedFlow):
      at = end * _by_noise(schedule, num_steps, spacing)
    case _ if spacing in SPACINGS:
      others = "'linspace', 'trailing' or 'quadratic'"
      raise UserError(
        f"{spacing=} with {type(schedule).__name__}: "
        + ("its last time would be 0" if spacing == "leading" else "log-SNR is infinite at t = 1")
        + f", so wanted {others}; change it."
      )
    case _:
      raise UserError(f"{spacing=} is unknown; choose one of {SPACINGS}.")
  at = _distinct(np.round(at), end) if discrete else at
  return jnp.asarray(np.append(at / end, 0.0), jnp.float32)


def _by_noise(schedule, num_steps: int, spacing: str) -> np.ndarray:
  """Times of (5) or (6), descending."""
  ends = np.array([schedule.noise_ratio(1.0), schedule.noise_ratio(1.0 / schedule.T)])
  if spacing == "karras":
    ratio = np.linspace(*ends ** (1 / _RHO), num_steps) ** _RHO
  else:
    ratio = np.exp(np.linspace(*np.log(ends), num_steps))
  return schedule.time_of(ratio)


def _distinct(steps: np.ndarray, most: int) -> np.ndarray:
  """Whole numbers, descending, made different and 1..most by the least moves up, then down."""
  place = np.arange(len(steps))
  rising = np.maximum(steps[::-1], 1) - place
  rising = np.minimum(np.maximum.accumulate(rising), most - len(steps) + 1)
  return (rising + place)[::-1]
