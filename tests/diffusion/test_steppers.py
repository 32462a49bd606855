"""Single steps: identities between steppers, the last step, the structure of noise."""

import jax.numpy as jnp
import numpy as np
import pytest
from einops import repeat

from dit_jax.core import rng
from dit_jax.core.errors import UserError
from dit_jax.diffusion import process
from dit_jax.diffusion.process import Denoised, Process
from dit_jax.diffusion.schedules import Cosine, LinearBeta, RectifiedFlow
from dit_jax.diffusion.steppers import DDIM, DDPM

SHAPE = (4, 4, 2)
KEYS = rng.sample_keys(0, jnp.arange(3))
SCHEDULES = [LinearBeta(), Cosine(), RectifiedFlow()]
IDS = ["linear", "cosine", "flow"]


def noise_fn(keys):
  return rng.normal(keys, SHAPE)


def _denoiser(schedule, mix=None):
  """Any pointwise function, consistent with z."""

  def denoise(z, t):
    d = Denoised(None, None, None if mix is None else jnp.full_like(z, mix))
    return process.with_x0(schedule, d, jnp.tanh(z), z, t)

  return denoise


def _z():
  return noise_fn(rng.sample_keys(1, jnp.arange(3)))


def _step(stepper, t, s, mix=None):
  t, s = jnp.float32(t), jnp.float32(s)
  return stepper.step(_denoiser(stepper.schedule, mix), _z(), t, s, KEYS)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
@pytest.mark.parametrize(("t", "s"), [(0.9, 0.6), (0.3, 0.299), (0.2, 0.0)])
def test_ddim_with_eta_one_is_ddpm_with_the_posterior_variance(schedule, t, s):
  ddim, ddpm = DDIM(schedule, noise_fn, eta=1.0), DDPM(schedule, noise_fn, "small")
  np.testing.assert_allclose(_step(ddim, t, s), _step(ddpm, t, s), atol=2e-5)


@pytest.mark.parametrize(("mix", "var"), [(0.0, "small"), (1.0, "large")])
def test_learned_variance_meets_both_fixed_ones(mix, var):
  learned = _step(DDPM(LinearBeta(), noise_fn, "learned"), 0.8, 0.7, mix)
  fixed = _step(DDPM(LinearBeta(), noise_fn, var), 0.8, 0.7)
  np.testing.assert_allclose(learned, fixed, atol=2e-5)


def test_ddpm_step_is_the_classic_one_with_its_betas():
  """One spaced step against DDPM Algorithm 2 written with beta and alpha-bar."""
  abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
  a, prev = abar[799], abar[699]
  beta, z = 1 - a / prev, np.asarray(_z(), np.float64)
  eps = (z - np.sqrt(a) * np.tanh(z)) / np.sqrt(1 - a)
  mean = (z - beta / np.sqrt(1 - a) * eps) / np.sqrt(1 - beta)
  want = mean + np.sqrt(beta) * np.asarray(noise_fn(KEYS))
  got = _step(DDPM(LinearBeta(), noise_fn, "large"), 0.8, 0.7)
  np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
@pytest.mark.parametrize(
  "make",
  [
    lambda s: DDPM(s, noise_fn, "small"),
    lambda s: DDPM(s, noise_fn, "large"),
    lambda s: DDPM(s, noise_fn, "learned"),
    lambda s: DDIM(s, noise_fn),
    lambda s: DDIM(s, noise_fn, 1.0),
  ],
  ids=["small", "large", "learned", "ddim", "eta1"],
)
def test_the_last_step_gives_the_predicted_data(schedule, make):
  got = _step(make(schedule), 0.1, 0.0, mix=0.4)
  np.testing.assert_allclose(got, jnp.tanh(_z()), atol=1e-6)


def test_ddim_under_rectified_flow_is_eulers_method():
  p = Process(RectifiedFlow(), "flow")
  velocity = lambda z, t: jnp.sin(3 * z)
  z, t, s = _z(), jnp.float32(0.7), jnp.float32(0.45)
  got = DDIM(RectifiedFlow(), noise_fn).step(p.denoiser(velocity), z, t, s, KEYS)
  np.testing.assert_allclose(got, z + (s - t) * jnp.sin(3 * z), atol=1e-6)


def test_deterministic_ddim_draws_no_noise():
  def never(keys):
    raise AssertionError("noise drawn")

  _step(DDIM(Cosine(), never), 0.7, 0.5)


def _cell_noise(keys):
  """One draw for every 2 x 2 cells."""
  return repeat(rng.normal(keys, (2, 2, 2)), "b h w c -> b (h p) (w q) c", p=2, q=2)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
@pytest.mark.parametrize("kind", ["learned", "small", "large", 0.0, 0.5])
def test_structured_noise_keeps_z_constant_inside_cells(schedule, kind):
  if isinstance(kind, str):
    stepper = DDPM(schedule, _cell_noise, kind)
  else:
    stepper = DDIM(schedule, _cell_noise, kind)
  times = schedule.times(4)
  carry = stepper.init(_cell_noise(rng.stream(KEYS, "start")))
  for i in range(4):
    keys = rng.stream(KEYS, i)
    before = carry
    carry = stepper.step(_denoiser(schedule, 0.3), carry, times[i], times[i + 1], keys)
    z = stepper.finish(carry)
    assert not np.array_equal(z, before)
    np.testing.assert_array_equal(z, repeat(z[:, ::2, ::2], "b h w c -> b (h 2) (w 2) c"))


def test_user_errors():
  with pytest.raises(UserError, match="wanted one of"):
    DDPM(LinearBeta(), noise_fn, "tiny")
  with pytest.raises(UserError, match=r"wanted 0\.\.1"):
    DDIM(LinearBeta(), noise_fn, eta=2.0)
  with pytest.raises(UserError, match="learn_sigma"):
    _step(DDPM(LinearBeta(), noise_fn, "learned"), 0.5, 0.4)
