"""Spacings: the published lists, the ends, distinct steps of the chain, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.core.errors import UserError
from dit_jax.diffusion import spacing
from dit_jax.diffusion.schedules import Cosine, LinearBeta, RectifiedFlow

SCHEDULES = [LinearBeta(), Cosine(), RectifiedFlow()]
HAVE = (
  {  # the schedules that have a spacing
    name: SCHEDULES if name in ("linspace", "trailing", "quadratic") else SCHEDULES[:2]
    for name in spacing.SPACINGS
  }
  | {"leading": SCHEDULES[:1]}
)
PAIRS = [(name, schedule) for name, schedules in HAVE.items() for schedule in schedules]


@pytest.mark.parametrize(("name", "schedule"), PAIRS, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 7, 60, 999, 1000])
def test_times_descend_and_are_as_many_as_asked(name, schedule, steps):
  times = np.asarray(spacing.times(schedule, steps, name))
  assert times.shape == (steps + 1,)
  assert times[-1] == 0
  assert times[0] == (
    1 if name != "leading" else np.float32((1 + 1000 // steps * (steps - 1)) / 1e3)
  )
  assert (np.diff(times) < 0).all()
  if schedule == LinearBeta():
    index = np.round(times * 1000)
    np.testing.assert_allclose(times * 1000, index, atol=1e-4)
    assert (np.diff(index) < 0).all()


@pytest.mark.parametrize(
  ("name", "steps", "want"),
  [
    ("linspace", 4, [999, 666, 333, 0]),
    ("trailing", 4, [999, 749, 499, 249]),
    ("trailing", 3, [999, 666, 332]),
    ("trailing", 16, np.arange(1000, 0, -62.5).round() - 1),
    ("leading", 4, [750, 500, 250, 0]),
    ("leading", 30, np.arange(30)[::-1] * 33),
    ("quadratic", 4, np.round(1000 * np.array([1, 9 / 16, 4 / 16, 1 / 16])) - 1),
  ],
)
def test_the_chain_is_seen_at_the_published_timesteps(name, steps, want):
  times = spacing.times(LinearBeta(), steps, name)
  np.testing.assert_array_equal(LinearBeta().model_time(times[:-1]), want)


def test_trailing_is_linspace_on_continuous_schedules():
  for schedule in SCHEDULES[1:]:
    np.testing.assert_array_equal(spacing.times(schedule, 6, "trailing"), schedule.times(6))


@pytest.mark.parametrize("schedule", SCHEDULES[:2], ids=["linear", "cosine"])
@pytest.mark.parametrize(
  ("name", "even"), [("karras", lambda r: r ** (1 / 7)), ("logsnr", lambda r: np.log(r))]
)
def test_noise_falls_evenly(schedule, name, even):
  times = spacing.times(schedule, 10, name)[:-1]
  alpha, sigma = (np.asarray(f(times), np.float64) for f in (schedule.alpha, schedule.sigma))
  steps = np.diff(even(sigma / alpha))
  assert times[-1] == np.float32(1e-3)
  # Steps of the chain are coarse where there is little noise.
  np.testing.assert_allclose(steps, steps.mean(), rtol=0.35 if schedule == LinearBeta() else 1e-3)
  np.testing.assert_allclose(steps[:5], steps.mean(), rtol=0.02)


def test_steps_that_meet_move_apart_and_no_further():
  times = spacing.times(LinearBeta(), 100, "quadratic")
  index = np.round(np.asarray(times) * 1000)[:-1][::-1]
  free = np.round(1000 * (np.arange(1, 101) / 100) ** 2)
  moved = index != free
  assert moved.any()
  assert (index >= free).all()
  last = np.flatnonzero(moved)[-1]
  np.testing.assert_array_equal(index[: last + 1], np.arange(1, last + 2))
  np.testing.assert_array_equal(
    spacing.times(LinearBeta(), 1000, "karras"), LinearBeta().times(1000)
  )


def test_every_time_of_a_schedule_has_noise_but_the_last():
  """The ends as limits: log-SNR is +inf at 0, never -inf or nan."""
  for schedule in SCHEDULES:
    log_snr = jnp.log(schedule.alpha(jnp.float32(0)) / schedule.sigma(jnp.float32(0)))
    assert log_snr == jnp.inf


def test_host_functions_agree_with_alpha_and_sigma():
  for schedule in SCHEDULES[:2]:
    for t in (0.001, 0.3, 1.0):
      ratio = float(schedule.sigma(jnp.float32(t)) / schedule.alpha(jnp.float32(t)))
      assert schedule.noise_ratio(t) == pytest.approx(ratio, rel=1e-3 if t == 1 else 1e-5)
      assert schedule.time_of(np.array([ratio])) == pytest.approx(t, rel=1e-4)


@pytest.mark.parametrize(
  ("schedule", "steps", "name", "told"),
  [
    (RectifiedFlow(), 4, "karras", "log-SNR is infinite at t = 1, so wanted 'linspace'"),
    (RectifiedFlow(), 4, "logsnr", "log-SNR is infinite"),
    (Cosine(), 4, "leading", "its last time would be 0"),
    (RectifiedFlow(), 4, "leading", "its last time would be 0"),
    (LinearBeta(), 4, "cubic", "spacing='cubic' is unknown; choose one of"),
    (LinearBeta(), 1001, "quadratic", "1..1000"),
    (Cosine(), 0, "trailing", "at least 1"),
  ],
  ids=str,
)
def test_user_errors(schedule, steps, name, told):
  with pytest.raises(UserError, match=told):
    spacing.times(schedule, steps, name)


def test_times_are_known_while_tracing():
  got = jax.jit(lambda: spacing.times(LinearBeta(), 5, "karras"))()
  np.testing.assert_array_equal(got, spacing.times(LinearBeta(), 5, "karras"))
