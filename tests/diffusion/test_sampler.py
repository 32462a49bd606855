"""The scan: perfect denoisers give the data's distribution; a picture depends on its key alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.core import rng
from dit_jax.diffusion import process, sampler
from dit_jax.diffusion.process import Denoised, Process
from dit_jax.diffusion.schedules import Cosine, LinearBeta, RectifiedFlow
from dit_jax.diffusion.steppers import DDIM, DDPM

SHAPE = (8, 8, 4)
MU, STD = 0.7, 0.4


def noise_fn(keys):
  return rng.normal(keys, SHAPE)


def _gaussian(schedule, times=None):
  """The ideal denoiser of x0 ~ N(MU, STD^2); with `times`, its ideal variance too."""

  def denoise(z, t):
    alpha, sigma = process.spread(schedule.alpha(t), z), process.spread(schedule.sigma(t), z)
    var_z = alpha**2 * STD**2 + sigma**2
    x0 = MU + alpha * STD**2 / var_z * (z - alpha * MU)
    eps = sigma / var_z * (z - alpha * MU)
    if times is None:
      return Denoised(x0, eps)
    s = times[jnp.argmin(jnp.abs(times - t[0])) + 1]
    q = process.transition(schedule, t[0], s)
    var = q.var + q.from_x0**2 * STD**2 * sigma**2 / var_z  # law of total variance
    low, high = (jnp.log(jnp.maximum(v, 1e-20)) for v in (q.var, q.var_ts))
    return Denoised(x0, eps, jnp.broadcast_to((jnp.log(var) - low) / (high - low), z.shape))

  return denoise


@jax.jit
def _start(index):
  """Keys and first noise, compiled once for all tests."""
  keys = rng.sample_keys(0, index)
  return noise_fn(rng.stream(keys, "start")), keys


def _sample(denoise, stepper, steps, index=None, **kwargs):
  index = jnp.arange(64) if index is None else index
  times = stepper.schedule.times(steps) if isinstance(steps, int) else steps
  run = jax.jit(functools.partial(sampler.sample, denoise, stepper, **kwargs))
  return np.asarray(run(times, *_start(index)))


@pytest.mark.parametrize(
  ("schedule", "make"),
  [
    (LinearBeta(), lambda s: DDPM(s, noise_fn, "small")),
    (LinearBeta(), lambda s: DDPM(s, noise_fn, "large")),
    (LinearBeta(), lambda s: DDIM(s, noise_fn)),
    (Cosine(), lambda s: DDIM(s, noise_fn)),
    (RectifiedFlow(), lambda s: DDIM(s, noise_fn)),
    (RectifiedFlow(), lambda s: DDPM(s, noise_fn, "small")),
  ],
  ids=["small", "large", "ddim", "cosine", "flow", "flow-ddpm"],
)
def test_perfect_denoiser_gives_the_right_mean_and_variance(schedule, make):
  x = _sample(_gaussian(schedule), make(schedule), 500)
  # Standard errors are 0.003 and 0.6 %. Both fixed variances err by O(1 / steps): the recursion of
  # DDPM's own formulas gives "small" 13 % too low at 50 steps and 1.8 % at these 500.
  assert x.mean() == pytest.approx(MU, abs=0.015)
  assert x.std() == pytest.approx(STD, rel=0.03)
  # Pixels are independent: image means spread as their number says.
  assert x.mean((1, 2, 3)).std() == pytest.approx(STD / 16, rel=0.4)


@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine()], ids=["linear", "cosine"])
def test_perfect_variance_makes_ancestral_sampling_exact_in_few_steps(schedule):
  """p(z_s | z_t) of Gaussian data is Gaussian, so the learned range loses nothing but the end."""
  times = schedule.times(12)[:-1]  # stops short of 0, where no noise is added
  x = _sample(_gaussian(schedule, times), DDPM(schedule, noise_fn, "learned"), times)
  s = times[-1]
  want = np.sqrt(schedule.alpha(s) ** 2 * STD**2 + schedule.sigma(s) ** 2)
  assert x.mean() == pytest.approx(float(schedule.alpha(s)) * MU, abs=0.015)
  assert x.std() == pytest.approx(float(want), rel=0.02)


@pytest.mark.parametrize(
  ("schedule", "steps"), [(LinearBeta(), 1), (LinearBeta(), 7), (Cosine(), 7), (RectifiedFlow(), 7)]
)
def test_ddim_returns_the_point_of_a_point_mass(schedule, steps):
  point = jax.random.normal(jax.random.key(9), SHAPE)
  x0 = lambda z, t: jnp.broadcast_to(point, z.shape)
  denoise = Process(schedule, "x0").denoiser(x0)
  x = _sample(denoise, DDIM(schedule, noise_fn), steps, jnp.arange(2))
  np.testing.assert_allclose(x, np.stack([point, point]), atol=1e-6)


def test_a_picture_does_not_change_with_its_batch():
  stepper = DDPM(LinearBeta(), noise_fn, "small")
  denoise = _gaussian(LinearBeta())
  one = _sample(denoise, stepper, 5, jnp.asarray([3, 5, 7]))
  other = _sample(denoise, stepper, 5, jnp.asarray([7, 9]))
  np.testing.assert_allclose(one[2], other[0], atol=1e-6)
  assert np.abs(one[0] - one[1]).max() > 0.1


def test_noise_is_fresh_at_every_step():
  """A denoiser that knows nothing (x0 = 0) leaves the sum of the steps' noises."""
  seen = []

  def spy(keys):
    noise = noise_fn(keys)
    jax.debug.callback(lambda x: seen.append(np.asarray(x)), noise)
    return noise

  keys = rng.sample_keys(0, jnp.arange(2))
  stepper = DDPM(LinearBeta(), spy, "large")
  start = noise_fn(keys)
  sampler.sample(_gaussian(LinearBeta()), stepper, LinearBeta().times(4), start, keys)
  jax.effects_barrier()
  draws = np.stack([*seen, np.asarray(start)]).reshape(5, -1)
  correlation = np.corrcoef(draws)
  assert np.abs(correlation - np.eye(5)).max() < 0.25


def test_the_step_is_traced_once_whatever_the_number_of_steps():
  traces = []
  ideal = _gaussian(LinearBeta())

  def denoise(z, t):
    traces.append(1)
    return ideal(z, t)

  counts = []
  for steps in (2, 40):
    traces.clear()
    _sample(denoise, DDIM(LinearBeta(), noise_fn), steps, jnp.arange(2))
    counts.append(len(traces))
  assert counts == [1, 1]


def test_correct_x0_sees_every_prediction_and_keeps_z_consistent():
  schedule, checked = RectifiedFlow(), []

  def correct(x0, z, t):
    assert t.shape == z.shape[:1]
    checked.append(1)
    return x0.at[:, :4].set(0.25)

  x = _sample(_gaussian(schedule), DDIM(schedule, noise_fn), 6, jnp.arange(2), correct_x0=correct)
  assert checked
  np.testing.assert_allclose(x[:, :4], 0.25, atol=1e-6)
  plain = _sample(_gaussian(schedule), DDIM(schedule, noise_fn), 6, jnp.arange(2))
  np.testing.assert_allclose(x[:, 4:], plain[:, 4:], atol=1e-5)


def test_the_identity_as_correction_is_harmless():
  schedule = LinearBeta()
  run = functools.partial(_sample, _gaussian(schedule), DDPM(schedule, noise_fn, "small"), 5)
  same = run(jnp.arange(2), correct_x0=lambda x0, z, t: x0)
  np.testing.assert_allclose(same, run(jnp.arange(2)), atol=1e-5)
