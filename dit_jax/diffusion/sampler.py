"""Sampling is one scan over times; the stepper, the denoiser and its guidance are values."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dit_jax.core import rng
from dit_jax.core.typing import Array, Float, Key
from dit_jax.diffusion import process
from dit_jax.diffusion.steppers import Stepper


def sample(
  denoise: process.Denoiser,
  stepper: Stepper,
  times: Float[Array, " n"],
  noise: Float[Array, "b h w c"],
  keys: Key[Array, " b"],
  correct_x0: Callable[..., Array] | None = None,
) -> Float[Array, "b h w c"]:
  """Integrates from times[0] down to times[-1]; the step compiles once.

  Args:
    denoise: `denoise(z, t [b]) -> Denoised`.
    stepper: how to go from one time to the next.
    times: descending, from `spacing.times`.
    noise: z at times[0].
    keys: one per image; step i draws from a stream of its own.
    correct_x0: `correct_x0(x0, z, t [b]) -> x0`, applied to every prediction; eps follows as
      (z - alpha x0) / sigma. None leaves the predictions as they are.
  """

  def corrected(z, t):
    d = denoise(z, t)
    return process.with_x0(stepper.schedule, d, correct_x0(d.x0, z, t), z, t)

  step_keys = rng.stream(keys, "sampler")

  def body(carry, tsi):
    t, s, i = tsi
    step_denoise = denoise if correct_x0 is None else corrected
    return stepper.step(step_denoise, carry, t, s, rng.stream(step_keys, i)), None

  times = stepper.visits(times)
  steps = (times[:-1], times[1:], jnp.arange(times.shape[0] - 1))
  carry, _ = jax.lax.scan(body, stepper.init(noise), steps)
  return stepper.finish(carry)
