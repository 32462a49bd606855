"""Laws of the schedules, and the linear one against the classic recursion over betas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dit_jax.core import rng
from dit_jax.core.errors import UserError
from dit_jax.diffusion.schedules import Cosine, LinearBeta, RectifiedFlow, make_schedule

ALL = [LinearBeta(), Cosine(), RectifiedFlow()]
NAMES = ["linear", "cosine", "flow"]


@pytest.mark.parametrize("schedule", ALL, ids=NAMES)
def test_goes_from_data_to_noise(schedule):
  t = jnp.linspace(0, 1, 1001)
  alpha, sigma = schedule.alpha(t), schedule.sigma(t)
  assert float(alpha[0]) == 1
  assert float(sigma[0]) == 0
  assert np.all(np.diff(alpha) < 0)
  assert np.all(np.diff(sigma) >= 0)
  assert float(alpha[-1]) < 0.01
  assert float(sigma[-1]) > 0.99


@pytest.mark.parametrize("schedule", ALL, ids=NAMES)
def test_says_truly_whether_it_preserves_variance(schedule):
  t = jnp.linspace(0, 1, 101)
  total = schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2
  assert np.allclose(total, 1, atol=1e-6) == schedule.variance_preserving


def test_linear_is_the_product_of_one_minus_beta():
  alpha_sq, betas = 1.0, np.linspace(1e-4, 0.02, 1000)
  for i, beta in enumerate(betas, start=1):
    alpha_sq *= 1 - beta
    if i in (1, 2, 10, 500, 999, 1000):
      t = jnp.float32(i / 1000)
      np.testing.assert_allclose(LinearBeta().alpha(t), np.sqrt(alpha_sq), rtol=1e-6)
      np.testing.assert_allclose(LinearBeta().sigma(t), np.sqrt(1 - alpha_sq), rtol=1e-6)


def test_linear_looks_up_the_nearest_step():
  s = LinearBeta()
  exact, near = jnp.arange(1001) / 1000, (jnp.arange(1001) + 0.4) / 1000
  np.testing.assert_array_equal(s.alpha(exact), s.alpha(near))
  np.testing.assert_array_equal(s.model_time(exact)[1:], np.arange(1000))


def _ddpm_spaced_timesteps(num_timesteps, count):
  """iDDPM's rule, transcribed: a running float index, rounded."""
  stride = (num_timesteps - 1) / (count - 1)
  current, taken = 0.0, []
  for _ in range(count):
    taken.append(round(current))
    current += stride
  return taken


@pytest.mark.parametrize("count", [2, 50, 250, 1000])
def test_linear_times_are_the_spaced_timesteps_of_ddpm(count):
  times = LinearBeta().times(count)
  assert times.shape == (count + 1,)
  assert times[-1] == 0
  seen = np.asarray(LinearBeta().model_time(times[:-1])).astype(int)
  assert seen[::-1].tolist() == _ddpm_spaced_timesteps(1000, count)


def test_one_linear_step_starts_from_noise():
  np.testing.assert_array_equal(LinearBeta().times(1), [1.0, 0.0])


@pytest.mark.parametrize("schedule", ALL, ids=NAMES)
@pytest.mark.parametrize("count", [1, 7, 100])
def test_times_descend_from_one_to_zero(schedule, count):
  times = np.asarray(schedule.times(count))
  assert times.shape == (count + 1,)
  assert (times[0], times[-1]) == (1, 0)
  assert np.all(np.diff(times) < 0)


@pytest.mark.parametrize("schedule", ALL, ids=NAMES)
def test_training_times_belong_to_the_image(schedule):
  t = schedule.sample_times(rng.sample_keys(0, jnp.arange(8)))
  alone = schedule.sample_times(rng.sample_keys(0, jnp.arange(5, 6)))
  assert t.shape == (8,)
  assert float(alone[0]) == float(t[5])
  assert len(set(np.asarray(t).tolist())) == 8


def test_linear_training_times_are_every_step_and_never_zero():
  small = LinearBeta(T=10)
  steps = small.sample_times(rng.sample_keys(0, jnp.arange(2000))) * 10
  values, counts = np.unique(np.round(np.asarray(steps), 4), return_counts=True)
  assert values.tolist() == list(range(1, 11))
  assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("kind", [Cosine, RectifiedFlow])
def test_continuous_training_times_have_the_named_distribution(kind):
  keys = rng.sample_keys(1, jnp.arange(3000))
  uniform = np.asarray(kind().sample_times(keys))
  assert stats.kstest(uniform, "uniform").pvalue > 1e-3
  logit = np.asarray(kind(logit_normal=True).sample_times(keys))
  assert stats.kstest(np.log(logit / (1 - logit)), "norm").pvalue > 1e-3


def test_model_time_of_continuous_schedules_is_a_thousandth():
  t = jnp.asarray([0.0, 0.25, 1.0])
  np.testing.assert_allclose(Cosine().model_time(t), [0, 250, 1000])
  np.testing.assert_allclose(RectifiedFlow().model_time(t), [0, 250, 1000])


@pytest.mark.parametrize(("name", "want"), list(zip(NAMES, ALL, strict=True)))
def test_config_names(name, want):
  assert make_schedule(name) == want


def test_config_logit_normal_reaches_the_schedule():
  assert make_schedule("flow", logit_normal=True) == RectifiedFlow(logit_normal=True)


@pytest.mark.parametrize(
  "make",
  [
    lambda: make_schedule("sigmoid"),
    lambda: make_schedule("linear", logit_normal=True),
    lambda: LinearBeta(beta_min=0.1, beta_max=0.01),
    lambda: LinearBeta(T=0),
    lambda: LinearBeta().times(1001),
    lambda: Cosine().times(0),
  ],
)
def test_user_errors(make):
  with pytest.raises(UserError, match="wanted"):
    make()


@pytest.mark.parametrize("schedule", ALL, ids=NAMES)
def test_a_schedule_may_be_traced(schedule):
  t = jnp.asarray([0.1, 0.5])
  np.testing.assert_allclose(jax.jit(schedule.alpha)(t), schedule.alpha(t), rtol=1e-6)
