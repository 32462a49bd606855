"""HRIG's window, loss, correction and the choice of its strength, on the operators that it uses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.core import rng
from dit_jax.core.errors import UserError
from dit_jax.diffusion import hrig, process, sampler, schedules, steppers
from dit_jax.nn import fourier_pair as pair
from dit_jax.nn import grains as structure

SHAPE = (3, 8, 8, 4)
LINEAR = schedules.LinearBeta()
PARAMS = {"low": jnp.float32(0.7), "noisy": jnp.float32(-0.4), "time": jnp.float32(0.5)}


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def enhance(params, y, z, t):
  """An E in which every parameter and every input matters."""
  u, t = pair.up(y), t[:, None, None, None] / 1000
  wave = jnp.sin(3 * params["low"] * u + params["noisy"] * z + params["time"] * t)
  return u + pair.high_pass(wave)


def make(schedule=LINEAR, **fields) -> hrig.HRIG:
  return hrig.HRIG(schedule, enhance, pair.down, pair.high_pass, **fields)


X0, X0_HAT, Z = normal(1, *SHAPE), normal(2, *SHAPE), normal(3, *SHAPE)
T = np.float32([10, 200, 259]) / 1000  # steps of the chain, all inside
LATE = np.float32([260, 500, 1000]) / 1000
PROJECT_FACTORS = (4, 8, 16)
down, high_pass = jax.jit(pair.down), jax.jit(pair.high_pass)
enhanced = jax.jit(lambda x, t: enhance(PARAMS, pair.down(x), Z, LINEAR.model_time(t)))


@functools.cache
def compiled(**fields):
  one = make(**fields)

  @jax.jit
  def fn(params, x0_hat, x0, z, t, count):
    value = lambda params, x0_hat: one.loss(params, x0, x0_hat, z, t, count)
    return jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(params, x0_hat)

  return fn


def loss(t=T, x0_hat=X0_HAT, x0=X0, z=Z, count=3.0, **fields):
  """((loss, metrics), (gradients of the parameters, gradient of x0_hat))."""
  return jax.device_get(compiled(**fields)(PARAMS, x0_hat, x0, z, t, jnp.float32(count)))


def test_the_window_ends_at_258_of_1000_and_holds_65_of_250_steps():
  every = np.arange(1, 1001, dtype=np.float32) / 1000
  windows = jax.jit(lambda t: (make().inside(t), make(snr=4.0).inside(t), LINEAR.model_time(t)))
  inside, strict, model_time = map(np.asarray, windows(every))
  assert model_time[inside].tolist() == list(range(259))
  assert inside[np.rint(np.asarray(LINEAR.times(250)[:-1]) * 1000).astype(int) - 1].sum() == 65
  assert 0 < strict.sum() < inside.sum()
  assert not (strict & ~inside).any()


def test_the_loss_is_its_definition():
  (value, metrics), _ = loss(weight=0.3, frequency_weight=0.7)
  spectrum = lambda x: np.fft.rfft2(np.asarray(x, np.float64), axes=(1, 2)) / 8  # sqrt(8 * 8)
  data = np.abs(enhanced(X0, T) - X0).mean()
  frequency = np.abs(spectrum(enhanced(X0_HAT, T)) - spectrum(X0)).mean()
  np.testing.assert_allclose(metrics["hrig"], data, rtol=1e-5)
  np.testing.assert_allclose(metrics["hrig_frequency"], frequency, rtol=1e-5)
  np.testing.assert_allclose(value, 0.3 * (data + 0.7 * frequency), rtol=1e-5)


def test_no_gradient_comes_from_outside_the_window():
  (value, metrics), grads = loss(LATE)
  assert (value, metrics["hrig"], metrics["hrig_frequency"]) == (0, 0, 0)
  assert all((g == 0).all() for g in jax.tree.leaves(grads))
  (value, _), (of_params, of_x0_hat) = loss(np.float32([0.9, 0.9, 0.259]))  # at model time 258
  assert value > 0
  assert all(np.abs(g) > 0 for g in of_params.values())
  assert not of_x0_hat[:2].any()
  assert of_x0_hat[2].any()


def test_micro_batches_add_up_over_the_full_batch_size():
  (whole, metrics), _ = loss()
  parts = [loss(np.where(np.arange(3) % 2 == k, T, LATE))[0] for k in range(2)]
  total = jax.tree.map(np.add, *parts)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), total, (whole, metrics))
  np.testing.assert_allclose(2 * loss(count=6.0)[0][0], whole, rtol=1e-6)


def test_the_gradient_can_be_stopped_at_the_prediction():
  flows, stops = loss(), loss(stop_gradient=True)
  np.testing.assert_allclose(stops[0][0], flows[0][0])
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), stops[1][0], flows[1][0])
  assert np.abs(flows[1][1]).max() > 1e-6
  assert not stops[1][1].any()


def test_where_everything_is_flat_the_gradient_is_finite():
  """The modulus of 0 has no slope."""
  flat = np.zeros(SHAPE, np.float32)
  (value, _), grads = loss(x0_hat=flat, x0=flat, z=flat)
  assert np.isfinite(value)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_the_correction_is_its_definition_and_leaves_the_low_band():
  correct, t = jax.jit(make().correct_x0(PARAMS, 0.4)), np.float32([0.01, 0.3, 0.259])
  got = correct(X0_HAT, Z, t)
  want = X0_HAT + 0.4 * high_pass(enhanced(X0_HAT, t) - X0_HAT)
  np.testing.assert_allclose(got[::2], want[::2], atol=1e-5)
  np.testing.assert_array_equal(got[1], X0_HAT[1])  # outside the window
  np.testing.assert_allclose(down(got), down(X0_HAT), atol=1e-5)
  assert np.abs(got[0] - X0_HAT[0]).max() > 0.1
  np.testing.assert_array_equal(correct(X0_HAT, Z, LATE), X0_HAT)


def test_strength_zero_corrects_nothing_and_others_do():
  schedule = schedules.Cosine()
  one, p = make(schedule), process.Process(schedule)
  denoise = p.denoiser(lambda z, t: 0.3 * z)
  keys = rng.sample_keys(0, jnp.arange(3))
  stepper = steppers.DDPM(schedule, lambda keys: rng.normal(keys, SHAPE[1:]), var="small")

  def draw(correct):
    return jax.jit(
      lambda: sampler.sample(
        denoise, stepper, schedule.times(6), jnp.asarray(Z), keys, correct_x0=correct
      )
    )()

  plain = draw(None)
  assert one.correct_x0(PARAMS, 0.0) is None  # which is how plain sampling is asked for
  got = draw(one.correct_x0(PARAMS, 0.5))
  assert np.isfinite(got).all()
  assert np.abs(got - plain).max() > 1e-3


def test_with_grains_the_correction_has_their_structure_and_no_coarse_cell():
  grains = jnp.asarray(np.random.default_rng(0).integers(0, 3, (3, 2, 2)), jnp.int32)
  coarse = structure.cell_grains(grains, PROJECT_FACTORS)[..., None] == 0
  structured = jax.jit(lambda x: structure.project(x, grains, PROJECT_FACTORS))
  project = lambda x: jnp.where(coarse, 0.0, structured(x))
  x0 = structured(X0_HAT)
  got = jax.jit(make().correct_x0(PARAMS, 0.5, project))(x0, Z, T)
  np.testing.assert_allclose(structured(got), got, atol=1e-6)
  coarse = np.broadcast_to(coarse, SHAPE)
  np.testing.assert_array_equal(np.asarray(got)[coarse], np.asarray(x0)[coarse])
  assert np.abs(got - x0)[~coarse].max() > 0.01
  plain = jax.jit(make().correct_x0(PARAMS, 0.5))(x0, Z, T)
  assert np.abs(structured(plain) - plain).max() > 0.01


def test_the_strength_is_the_one_with_the_least_error():
  """Where E overshoots a known high band 2.5 times, the error vanishes at 1 / 2.5."""
  u = np.asarray(high_pass(normal(5, *SHAPE)))
  overshoots = lambda params, y, z, t: pair.up(y) + 2.5 * u
  one = hrig.HRIG(LINEAR, overshoots, pair.down, pair.high_pass)
  x0_hat = X0 - np.asarray(high_pass(X0))
  errors = np.asarray(jax.jit(one.errors)({}, x0_hat + u, x0_hat, Z, T))
  want = np.abs(u).mean((1, 2, 3))[:, None] * np.abs(1 - 2.5 * np.asarray(hrig.STRENGTHS))
  np.testing.assert_allclose(errors, want, atol=1e-5)
  chosen = hrig.choose_strength(errors)
  assert chosen["strength"] == 0.4
  assert chosen["error"] < 1e-5 < chosen["error_plain"]


def test_a_useless_enhancement_gets_strength_zero():
  errors = np.asarray(jax.jit(make().errors)(PARAMS, X0, X0, Z, T))  # nothing to mend
  chosen = hrig.choose_strength(errors)
  assert chosen["strength"] == 0.0
  assert chosen["error"] == chosen["error_plain"] < 1e-6
  assert hrig.choose_strength(np.ones((4, len(hrig.STRENGTHS))))["strength"] == 0.0  # a tie


def test_times_spread_over_the_window():
  t = np.rint(hrig.window_times(LINEAR, 1.0, 5) * 1000)
  np.testing.assert_allclose(t, [1, 66, 130, 194, 259], atol=1)
  assert (t[0], t[-1]) == (1, 259)
  flow = hrig.window_times(schedules.RectifiedFlow(), 1.0, 3)
  assert 0 < flow[0] < flow[-1] == 0.5
  with pytest.raises(UserError, match="lower it"):
    hrig.window_times(LINEAR, 1e9, 3)


@pytest.mark.parametrize(
  ("field", "value"), [("snr", 0.0), ("weight", -1.0), ("frequency_weight", float("nan"))]
)
def test_numbers_out_of_range_are_refused(field, value):
  with pytest.raises(UserError, match=f"hrig.{field}="):
    make(**{field: value})
