"""The bound against numpy and scipy; the multi-grained reductions against lists of codes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dit_jax.core.errors import UserError
from dit_jax.diffusion import losses
from dit_jax.diffusion.process import Process
from dit_jax.diffusion.schedules import Cosine, LinearBeta

LEARNED = Process(LinearBeta(), "eps", learn_sigma=True)


def _vlb(p, raw, x0, z, t):
  """The bound as a task computes it from a model's raw output."""
  pred, mix = p.split(raw)
  return losses.vlb_terms(p.schedule, x0, z, t, p.to_x0_eps(pred, z, t)[0], mix)


def _vlb_numpy(x0, z, i, x0_hat, logits):
  """iDDPM's term at step i = 1..1000, per element, bits, in float64 from the betas."""
  betas = np.linspace(1e-4, 0.02, 1000)
  abar = np.cumprod(1 - betas)
  prev = np.append(1.0, abar[:-1])
  var = betas * (1 - prev) / (1 - abar)
  log_var = np.log(np.append(var[1], var[1:]))
  n = i - 1
  mean = lambda x: (
    betas[n] * np.sqrt(prev[n]) / (1 - abar[n]) * x
    + (1 - prev[n]) * np.sqrt(1 - betas[n]) / (1 - abar[n]) * z
  )
  share = (logits + 1) / 2
  model_log_var = share * np.log(betas[n]) + (1 - share) * log_var[n]
  if i > 1:
    q, p = np.exp(log_var[n]), np.exp(model_log_var)
    kl = 0.5 * (q / p - 1 + np.log(p / q) + (mean(x0) - mean(x0_hat)) ** 2 / p)
    return kl / np.log(2)
  std, m = np.exp(0.5 * model_log_var), mean(x0_hat)
  mass = stats.norm.cdf(x0 + 1 / 255, m, std) - stats.norm.cdf(x0 - 1 / 255, m, std)
  mass = np.where(x0 < -0.999, stats.norm.cdf(x0 + 1 / 255, m, std), mass)
  mass = np.where(x0 > 0.999, stats.norm.sf(x0 - 1 / 255, m, std), mass)
  return -np.log2(np.maximum(mass, 1e-12))


@pytest.mark.parametrize("i", [1, 2, 40, 500, 1000])
def test_vlb_is_iddpms(i):
  draw = np.random.default_rng(i)
  x0, eps, noise, logits = draw.normal(size=(4, 3, 4, 4, 2))
  x0 = np.clip(x0, -1, 1)  # with values in both outer bins
  eps_hat = eps + 0.1 * noise
  abar = np.prod(1 - np.linspace(1e-4, 0.02, 1000)[:i])
  z = np.sqrt(abar) * x0 + np.sqrt(1 - abar) * eps
  x0_hat = (z - np.sqrt(1 - abar) * eps_hat) / np.sqrt(abar)
  want = _vlb_numpy(x0, z, i, x0_hat, logits).mean(-1)
  raw = np.concatenate([eps_hat, logits], -1)
  args = (jnp.asarray(a, jnp.float32) for a in (raw, x0, z, np.full(3, i / 1000)))
  got = jax.jit(functools.partial(_vlb, LEARNED))(*args)
  np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine()])
def test_vlb_of_the_truth_is_zero_and_trains_the_variance_alone(schedule):
  p = Process(schedule, "x0", learn_sigma=True)
  x0, eps = jax.random.normal(jax.random.key(0), (2, 4, 2, 2, 3))
  t = jnp.asarray([0.002, 0.1, 0.5, 1.0])
  z = p.add_noise(x0, eps, t)
  raw = jnp.concatenate([x0, jnp.full_like(x0, -1.0)], axis=-1)
  loss = lambda raw: _vlb(p, raw, x0, z, t).sum()
  value_and_grad = jax.jit(jax.value_and_grad(loss))
  assert float(value_and_grad(raw)[0]) == pytest.approx(0, abs=1e-4)
  grad = value_and_grad(raw + 0.3)[1]
  assert not grad[..., :3].any()
  assert np.all(np.abs(grad[..., 3:]) > 0)


@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine()])
def test_vlb_and_its_gradient_are_finite_at_the_ends(schedule):
  p = Process(schedule, "eps", learn_sigma=True)
  t = jnp.asarray([0.0, 1e-4, 1e-3, 1.0])
  x0, eps = jax.random.normal(jax.random.key(1), (2, 4, 2, 2, 2))
  z = p.add_noise(x0, eps, t)
  raw = jnp.concatenate([0 * eps, 3 * eps], axis=-1)
  loss = lambda raw: _vlb(p, raw, x0, z, t).sum()
  value, grad = jax.jit(jax.value_and_grad(loss))(raw)
  assert np.isfinite(value)
  assert np.isfinite(grad).all()


def test_mse_terms_average_channels_in_float32():
  pred = jnp.asarray([[[[1.0, 3.0]]]], jnp.bfloat16)
  e = losses.mse_terms(pred, jnp.zeros((1, 1, 1, 2)))
  assert e.dtype == jnp.float32
  assert e.tolist() == [[[5.0]]]


def _structured(regions, p=2):
  """Grains, weights and an error per code of [b, rows, cols] regions of p x p cells."""
  grains = np.kron(regions, np.ones((1, p, p), int))
  draw = np.random.default_rng(0)
  fine = draw.uniform(size=grains.shape)
  coarse = np.kron(draw.uniform(size=regions.shape), np.ones((1, p, p)))
  e = np.where(grains == 1, fine, coarse)
  weights = np.where(grains == 1, 1.0, 1 / p**2)
  return jnp.asarray(e, jnp.float32), jnp.asarray(weights, jnp.float32), jnp.asarray(grains)


HALF = np.array([[[0, 1], [1, 0]], [[1, 1], [0, 0]]])
MIXED = np.array([[[0, 1], [0, 0]], [[1, 1], [1, 0]], [[0, 0], [0, 0]], [[1, 1], [1, 1]]])


def _reduce(e, unique, cells, kind, norm=None, weights=(1.0, 1.0)):
  norm = losses.norms(cells, unique, 2) if norm is None else norm
  return float(losses.reduce_terms(e, cells, unique, kind, norm, weights))


def _codes(e, cells):
  """Errors of the unique codes: one a coarse region, one a cell of a fine one."""
  e, cells = np.asarray(e, float), np.asarray(cells)
  fine = e[cells == 1]
  coarse = e[:, ::2, ::2][cells[:, ::2, ::2] == 0]
  return coarse, fine


def test_each_reduction_is_what_it_says():
  e, weights, cells = _structured(MIXED)
  coarse, fine = _codes(e, cells)
  unique = np.concatenate([coarse, fine]).mean()
  assert _reduce(e, weights, cells, "unique") == pytest.approx(unique, rel=1e-5)
  assert _reduce(e, weights, cells, "copied") == pytest.approx(float(e.mean()), rel=1e-5)
  want = 0.5 * coarse.mean() + 2.0 * fine.mean()
  got = _reduce(e, weights, cells, "grain_means", weights=(0.5, 2.0))
  assert got == pytest.approx(want, rel=1e-5)


def test_grain_means_are_twice_the_copied_loss_at_half_fine():
  e, weights, cells = _structured(HALF)
  twice = 2 * _reduce(e, weights, cells, "copied")
  assert _reduce(e, weights, cells, "grain_means") == pytest.approx(twice, rel=1e-5)


def test_norms_count_codes():
  _, weights, cells = _structured(MIXED)
  norm = losses.norms(cells, weights, 2)
  assert norm["per_grain"].tolist() == [8, 32]
  assert float(norm["codes"]) == 40
  assert float(norm["cells"]) == 64


@pytest.mark.parametrize("kind", losses.KINDS)
def test_micro_batches_add_up_to_the_batch(kind):
  e, weights, cells = _structured(MIXED)
  norm = losses.norms(cells, weights, 2)
  parts = [_reduce(e[i], weights[i], cells[i], kind, norm) for i in (slice(0, 1), slice(1, 4))]
  assert sum(parts) == pytest.approx(_reduce(e, weights, cells, kind), rel=1e-5)


@pytest.mark.parametrize("grain", [0, 1])
def test_an_absent_grain_adds_nothing(grain):
  e, weights, cells = _structured(np.full((2, 2, 2), grain))
  only = np.mean(_codes(e, cells)[grain])
  assert _reduce(e, weights, cells, "grain_means") == pytest.approx(only, rel=1e-5)


def test_no_cells_give_zero_not_nan():
  none = jnp.zeros((0, 2, 2))
  for kind in losses.KINDS:
    assert _reduce(none, none, none.astype(int), kind) == 0


def test_a_plain_latent_has_one_grain_and_all_but_one_name():
  e = jax.random.uniform(jax.random.key(0), (2, 4, 4))
  cells, ones = jnp.zeros((2, 4, 4), int), jnp.ones((2, 4, 4))
  norm = losses.norms(cells, ones, 1)
  values = [_reduce(e, ones, cells, kind, norm, weights=(1.0,)) for kind in losses.KINDS]
  assert values == pytest.approx([float(e.mean())] * 3, rel=1e-5)


def test_user_errors():
  e, weights, cells = _structured(HALF)
  with pytest.raises(UserError, match="wanted one of"):
    _reduce(e, weights, cells, "focal")
  with pytest.raises(UserError, match="3 grains"):
    _reduce(e, weights, cells, "grain_means", losses.norms(cells, weights, 3))
