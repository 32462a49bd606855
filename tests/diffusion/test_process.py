"""Round trips of every parameterisation, and the posterior against the classic beta formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.core.errors import UserError
from dit_jax.diffusion import process
from dit_jax.diffusion.process import Process
from dit_jax.diffusion.schedules import Cosine, LinearBeta, RectifiedFlow

LEGAL = [
  *[(s, p) for s in (LinearBeta(), Cosine()) for p in ("eps", "x0", "v")],
  *[(RectifiedFlow(), p) for p in ("x0", "v", "flow")],
]
IDS = [f"{type(s).__name__}-{p}" for s, p in LEGAL]
T5 = jnp.asarray([0.001, 0.2, 0.5, 0.8, 0.95])


def _data(channels=3):
  x0, eps = jax.random.normal(jax.random.key(0), (2, 5, 2, 2, channels))
  return x0, eps


@pytest.mark.parametrize(("schedule", "prediction"), LEGAL, ids=IDS)
def test_target_determines_data_and_noise(schedule, prediction):
  p = Process(schedule, prediction)
  x0, eps = _data()
  z = p.add_noise(x0, eps, T5)
  got_x0, got_eps = p.to_x0_eps(p.target(x0, eps, T5), z, T5)
  # x0 = (z - sigma eps) / alpha and eps = (z - alpha x0) / sigma amplify f32 rounding.
  scale_x0 = 1 / process.spread(schedule.alpha(T5), z)
  scale_eps = 1 / process.spread(schedule.sigma(T5), z)
  assert np.all(np.abs(got_x0 - x0) < 2e-6 * scale_x0)
  assert np.all(np.abs(got_eps - eps) < 2e-6 * scale_eps)


@pytest.mark.parametrize(("schedule", "prediction"), LEGAL, ids=IDS)
def test_any_prediction_is_consistent_with_z_and_is_its_own_target(schedule, prediction):
  p = Process(schedule, prediction)
  z, pred = _data()
  x0, eps = p.to_x0_eps(pred, z, T5)
  np.testing.assert_allclose(p.add_noise(x0, eps, T5), z, atol=1e-5)
  np.testing.assert_allclose(p.target(x0, eps, T5), pred, atol=5e-4)


def test_flow_target_is_the_derivative_of_the_path():
  p = Process(RectifiedFlow(), "flow")
  x0, eps = _data()
  path = lambda t: p.add_noise(x0, eps, t)
  _, velocity = jax.jvp(path, (T5,), (jnp.ones(5),))
  np.testing.assert_allclose(velocity, p.target(x0, eps, T5), atol=1e-5)


def test_v_target_is_the_derivative_by_angle():
  """Under alpha = cos phi, sigma = sin phi, v = dz / dphi (Salimans & Ho 2022, appendix D)."""
  p = Process(Cosine(), "v")
  x0, eps = _data()
  _, dz_dt = jax.jvp(lambda t: p.add_noise(x0, eps, t), (T5,), (jnp.ones(5),))
  np.testing.assert_allclose(dz_dt / (0.4995 * np.pi), p.target(x0, eps, T5), atol=1e-5)


def _classic(betas):
  """Posterior coefficients of DDPM, Eqs. 6 and 7, in float64: (of x0, of z, variance)."""
  abar = np.cumprod(1 - betas)
  prev = np.append(1.0, abar[:-1])
  coef_x0 = betas * np.sqrt(prev) / (1 - abar)
  coef_z = (1 - prev) * np.sqrt(1 - betas) / (1 - abar)
  return coef_x0, coef_z, betas * (1 - prev) / (1 - abar)


def _spaced_betas(count):
  betas = np.linspace(1e-4, 0.02, 1000)
  abar = np.cumprod(1 - betas)
  use, last, new = set(np.round(np.linspace(0, 999, count)).astype(int).tolist()), 1.0, []
  for i, a in enumerate(abar):
    if i in use:
      new.append(1 - a / last)
      last = a
  return np.array(new)


@pytest.mark.parametrize("count", [1000, 250, 10])
def test_transition_is_ddpm_with_respaced_betas(count):
  betas = _spaced_betas(count)
  coef_x0, coef_z, var = _classic(betas)
  times = LinearBeta().times(count)
  got = process.transition(LinearBeta(), times[:-1], times[1:])
  for mine, theirs in [
    (got.from_x0, coef_x0),
    (got.from_z, coef_z),
    (got.var, var),
    (got.var_ts, betas),
  ]:
    np.testing.assert_allclose(np.asarray(mine)[::-1], theirs, rtol=2e-4, atol=1e-9)
  assert float(got.var[-1]) == 0


@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine(), RectifiedFlow()])
def test_posterior_keeps_the_marginal(schedule):
  """If z_t has its marginal given x0, then a posterior step leaves z_s with its own."""
  t, s = jnp.asarray([1.0, 0.7, 0.3]), jnp.asarray([0.8, 0.3, 0.0])
  q = process.transition(schedule, t, s)
  mean = q.from_z * schedule.alpha(t) + q.from_x0
  var = jnp.square(q.from_z * schedule.sigma(t)) + q.var
  np.testing.assert_allclose(mean, schedule.alpha(s), atol=1e-6)
  np.testing.assert_allclose(var, jnp.square(schedule.sigma(s)), atol=1e-6)


def test_log_var_between_meets_both_ends_and_is_geometric():
  small, large = jnp.asarray([0.01, 0.04]), jnp.asarray([0.04, 0.16])
  mix = jnp.broadcast_to(jnp.asarray([0.0, 0.5, 1.0]), (2, 1, 1, 3))
  var = np.exp(process.log_var_between(small, large, mix))[:, 0, 0]
  np.testing.assert_allclose(var, [[0.01, 0.02, 0.04], [0.04, 0.08, 0.16]], rtol=1e-5)


def test_split_halves_the_channels_and_maps_logits_to_a_share():
  p = Process(LinearBeta(), "eps", learn_sigma=True)
  raw = jnp.asarray([7.0, 8.0, -1.0, 1.0], jnp.bfloat16).reshape(1, 1, 1, 4)
  pred, mix = p.split(raw)
  assert pred.dtype == mix.dtype == jnp.float32
  assert pred.ravel().tolist() == [7, 8]
  assert mix.ravel().tolist() == [0, 1]
  assert Process(LinearBeta()).split(raw)[1] is None


def test_denoiser_gives_the_model_its_time_and_reads_its_output():
  p = Process(LinearBeta(), "eps", learn_sigma=True)
  x0, eps = _data()
  seen = []

  def model_fn(z, model_time):
    seen.append(model_time)
    return jnp.concatenate([eps, jnp.ones_like(z)], axis=-1)

  d = p.denoiser(model_fn)(p.add_noise(x0, eps, T5), T5)
  np.testing.assert_array_equal(seen[0], [0, 199, 499, 799, 949])
  np.testing.assert_allclose(d.x0, x0, atol=1e-4)
  np.testing.assert_array_equal(d.eps, eps)
  np.testing.assert_array_equal(d.log_var_mix, jnp.ones_like(eps))


def test_clip_bounds_the_data_and_keeps_z():
  p = Process(Cosine(), "v", clip=0.5)
  z, v = _data()
  d = p.denoiser(lambda z, t: v)(z, T5)
  assert float(jnp.abs(d.x0).max()) == 0.5
  np.testing.assert_allclose(p.add_noise(d.x0, d.eps, T5), z, atol=1e-5)
  free = Process(Cosine(), "v").denoiser(lambda z, t: v)(z, T5)
  np.testing.assert_array_equal(d.x0, jnp.clip(free.x0, -0.5, 0.5))


@pytest.mark.parametrize(
  "fields",
  [
    dict(prediction="score"),
    dict(prediction="flow"),
    dict(prediction="v", learn_sigma=True),
    dict(schedule=RectifiedFlow(), prediction="flow", learn_sigma=True),
    dict(schedule=RectifiedFlow(), prediction="x0", learn_sigma=True),
    dict(schedule=RectifiedFlow(), prediction="eps"),
    dict(clip=0.0),
  ],
  ids=str,
)
def test_contradictions_are_user_errors(fields):
  with pytest.raises(UserError):
    Process(**{"schedule": LinearBeta(), **fields})
