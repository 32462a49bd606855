"""Second-order steppers: their orders, their ends, what they keep and how often they call."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import repeat

from dit_jax.core import rng
from dit_jax.diffusion import guidance, process, sampler, solvers, spacing
from dit_jax.diffusion.process import Denoised, Process
from dit_jax.diffusion.schedules import Cosine, LinearBeta, RectifiedFlow

SHAPE = (4, 4, 2)
MU, STD = 0.7, 0.4
KEYS = rng.sample_keys(0, jnp.arange(2))
SCHEDULES = [LinearBeta(), Cosine(), RectifiedFlow()]
IDS = ["linear", "cosine", "flow"]
SOLVERS = ("unipc", "heun", "dpmpp_2m")
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)


def noise_fn(keys):
  return rng.normal(keys, SHAPE)


def make(name, schedule, noise=noise_fn):
  return solvers.make(name, Process(schedule, "v"), noise)


def alpha_sigma(schedule, z, t):
  return process.spread(schedule.alpha(t), z), process.spread(schedule.sigma(t), z)


def gaussian(schedule):
  """The ideal denoiser of x0 ~ N(MU, STD^2)."""

  def denoise(z, t):
    alpha, sigma = alpha_sigma(schedule, z, t)
    score = (z - alpha * MU) / (alpha**2 * STD**2 + sigma**2)
    return Denoised(MU + alpha * STD**2 * score, sigma * score)

  return denoise


def run(denoise, stepper, times, **kwargs):
  start = noise_fn(rng.stream(KEYS, "start"))
  return np.asarray(
    jax.jit(functools.partial(sampler.sample, denoise, stepper, **kwargs))(times, start, KEYS)
  )


@pytest.mark.parametrize(
  "schedule", [LinearBeta(16_000, 1e-4 / 16, 0.02 / 16), Cosine(), RectifiedFlow()], ids=IDS
)
@pytest.mark.parametrize(
  ("name", "least", "most"),
  [("ddim", 1.9, 2.1), ("heun", 3.6, 4.4), ("dpmpp_2m", 3.6, 6.0), ("unipc", 6.0, 9.0)],
)
def test_half_the_step_divides_the_error_as_the_order_says(schedule, name, least, most):
  """The flow of a Gaussian keeps (z - alpha mu) / std(z); UniPC's corrector adds an order."""
  start = np.asarray(noise_fn(rng.stream(KEYS, "start")), np.float64)
  alpha, sigma = (float(f(jnp.float32(1))) for f in (schedule.alpha, schedule.sigma))
  want = MU + STD * (start - alpha * MU) / np.sqrt(alpha**2 * STD**2 + sigma**2)
  errors = [
    np.abs(
      run(gaussian(schedule), make(name, schedule), spacing.times(schedule, n, "quadratic")) - want
    ).max()
    for n in (24, 48)
  ]
  assert least < errors[0] / errors[1] < most
  assert errors[1] < (0.04 if name == "ddim" else 0.006)


@each_schedule
@pytest.mark.parametrize("name", solvers.NAMES)
@pytest.mark.parametrize("steps", [1, 3])
def test_a_point_mass_is_met(schedule, name, steps):
  point = jax.random.normal(jax.random.key(9), SHAPE)
  denoise = Process(schedule, "x0").denoiser(lambda z, t: jnp.broadcast_to(point, z.shape))
  x = run(denoise, make(name, schedule), spacing.times(schedule, steps, "trailing"))
  np.testing.assert_allclose(x, np.stack([point, point]), atol=2e-6)


def test_euler_is_ddim():
  assert make("euler", Cosine()) == make("ddim", Cosine())


@pytest.mark.parametrize("name", solvers.NAMES)
def test_the_calls_are_as_many_as_told_and_traced_once(name):
  """One scan over one call: no sampler compiles the model twice."""
  seen, ideal, traces = [], gaussian(Cosine()), []

  def denoise(z, t):
    traces.append(1)
    jax.debug.callback(lambda t: seen.append(float(t[0])), t)
    return ideal(z, t)

  for steps in (1, 4):
    seen.clear(), traces.clear()
    run(denoise, make(name, Cosine()), Cosine().times(steps))
    jax.effects_barrier()
    assert len(seen) == solvers.num_calls(name, steps)
    assert len(traces) == 1
    np.testing.assert_allclose(sorted(set(seen))[::-1], Cosine().times(steps)[:-1], atol=1e-7)


def cell_noise(keys):
  """One draw for every 2 x 2 cells."""
  return repeat(rng.normal(keys, (2, 2, 2)), "b h w c -> b (h p) (w q) c", p=2, q=2)


@each_schedule
@pytest.mark.parametrize("name", solvers.NAMES)
def test_z_is_constant_inside_cells_and_finite_at_every_step(schedule, name):
  stepper = make(name, schedule, cell_noise)

  def denoise(z, t):
    x0 = jnp.where(process.spread(t, z) < 0.6, jnp.tanh(2 * z), jnp.sin(z))  # jumps on the way
    return process.with_x0(schedule, Denoised(None, None), x0, z, t)

  times = stepper.visits(spacing.times(schedule, 4))
  step = jax.jit(functools.partial(stepper.step, denoise))
  carry = stepper.init(cell_noise(rng.stream(KEYS, "start")))
  for i in range(len(times) - 1):
    before = stepper.finish(carry)
    carry = step(carry, times[i], times[i + 1], rng.stream(KEYS, i))
    z = np.asarray(stepper.finish(carry))
    assert np.isfinite(z).all()
    assert not np.array_equal(z, before)
    np.testing.assert_array_equal(z, repeat(z[:, ::2, ::2], "b h w c -> b (h 2) (w 2) c"))


@pytest.mark.parametrize(
  ("name", "schedule", "predictions"),
  [
    ("unipc", LinearBeta(), ("eps", "x0", "v")),
    ("heun", RectifiedFlow(), ("x0", "v", "flow")),
    ("dpmpp_2m", Cosine(), ("eps",)),
  ],
  ids=SOLVERS,
)
def test_every_prediction_gives_the_same_pictures(name, schedule, predictions):
  ideal, times = gaussian(schedule), spacing.times(schedule, 5, "trailing")
  want = run(ideal, make(name, schedule), times)
  for prediction in predictions:
    p = Process(schedule, prediction)

    def model(z, model_time, p=p):
      t = (model_time + 1) / 1000 if schedule == LinearBeta() else model_time / 1000
      return p.target(*ideal(z, t)[:2], t)

    # Turned back with float32's alpha and sigma, which are small at the ends.
    np.testing.assert_allclose(
      run(p.denoiser(model), make(name, schedule), times), want, atol=3e-4, err_msg=prediction
    )


@pytest.mark.parametrize("name", SOLVERS)
def test_correct_x0_has_the_last_word(name):
  schedule = RectifiedFlow()
  correct = lambda x0, z, t: x0.at[:, :2].set(0.25)
  plain, mended = (
    run(gaussian(schedule), make(name, schedule), schedule.times(5), correct_x0=fn)
    for fn in (None, correct)
  )
  np.testing.assert_allclose(mended[:, :2], 0.25, atol=1e-6)
  np.testing.assert_allclose(mended[:, 2:], plain[:, 2:], atol=1e-5)
  assert np.abs(plain[:, :2] - 0.25).max() > 0.1


@pytest.mark.parametrize("name", SOLVERS)
def test_guidance_acts_by_the_time_of_each_call(name):
  """Against both branches at every time, one chosen by the time of the row."""
  schedule, interval = RectifiedFlow(), (260.0, 740.0)
  label, null, scale = jnp.array([0, 1]), 2, 3.0
  row = lambda a: a[:, None, None, None].astype(jnp.float32)

  def model(z, model_time, label):
    return jnp.sin(z + row(label)) * (1 + row(model_time) / 1000)

  def chosen(z, model_time):
    cond, base = model(z, model_time, label), model(z, model_time, jnp.full(2, null))
    inside = (model_time >= interval[0]) & (model_time <= interval[1])
    return jnp.where(row(inside) > 0, base + scale * (cond - base), cond)

  p, times = Process(schedule, "flow"), schedule.times(4)  # model times 1000, 750, 500, 250
  guided = guidance.guided(model, label, null, scale, interval=interval)
  got, want, always = (
    run(p.denoiser(fn), make(name, schedule), times)
    for fn in (guided, chosen, guidance.guided(model, label, null, scale))
  )
  np.testing.assert_allclose(got, want, atol=1e-5)
  assert np.abs(got - always).max() > 0.05


def test_the_corrector_is_exact_to_second_order():
  """Its weights integrate 1, lambda and lambda^2 against exp(lambda), over steps of any length."""
  for h in (1e-3, 0.1, 0.49, 0.51, 2.0, 30.0):
    for g in (0.3, 1.0, 4.0):
      rho, rho_s = (float(w) for w in solvers._corrector_weights(jnp.float32(h), jnp.float32(g)))
      x = np.linspace(0, 1, 20_001)  # share of the step; the weight falls away from its end
      weight = np.exp(h * (x - 1))
      mean = [np.trapezoid(weight * x**k, x) / np.trapezoid(weight, x) for k in (1, 2)]
      # m(x) = x and x^2 are 1 at s, and -1 / g and 1 / g^2 at the time before t.
      got = rho + rho_s, rho * g * (-1 / g**2) + rho_s
      np.testing.assert_allclose(got, mean, rtol=1e-4, atol=1e-5)
