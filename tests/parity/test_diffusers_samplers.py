"""Samplers against diffusers' schedulers: the same model, the same timesteps, the same pictures."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.core import rng
from dit_jax.diffusion import sampler, solvers, spacing
from dit_jax.diffusion.process import Process
from dit_jax.diffusion.schedules import LinearBeta, RectifiedFlow

pytestmark = pytest.mark.all
torch = pytest.importorskip("torch", reason="torch is not installed: parity")
diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: parity")

SHAPE = (2, 4, 4, 3)
LINEAR = dict(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
FLOW = dict(
  num_train_timesteps=1000, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0
)
LINEAR_EPS, STRAIGHT = Process(LinearBeta(), "eps"), Process(RectifiedFlow(), "flow")


def model(z, model_time):
  """Some function of z and its time; of NumPy and of JAX."""
  return np.float32(0.9) * z - np.float32(0.3) * z / (1 + z * z) + np.float32(1e-4) * model_time


def start() -> np.ndarray:
  return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def ours(name: str, process: Process, times) -> np.ndarray:
  denoise = process.denoiser(lambda z, t: model(z, t[:, None, None, None]))
  stepper = solvers.make(name, process, lambda keys: rng.normal(keys, SHAPE[1:]))
  run = jax.jit(functools.partial(sampler.sample, denoise, stepper))
  return np.asarray(
    run(jnp.asarray(times, jnp.float32), start(), rng.sample_keys(0, jnp.arange(2)))
  )


def theirs(scheduler, model_times=None) -> np.ndarray:
  """Their loop; the model is shown `model_times` where theirs are rounded to whole numbers."""
  z = torch.from_numpy(start())
  for i, t in enumerate(scheduler.timesteps):
    shown = float(t) if model_times is None else float(model_times[i])
    out = torch.from_numpy(np.asarray(model(z.numpy(), shown), np.float32))
    z = scheduler.step(out, t, z).prev_sample
  return z.numpy()


def close(got: np.ndarray, want: np.ndarray) -> None:
  error = np.abs(got - want).max() / np.abs(want).max()
  print(f"largest error {error:.1e} of the largest value")
  assert np.abs(want).max() > 0.1
  assert error <= 1e-5


def of_chain(timesteps) -> np.ndarray:
  """Their whole timesteps as our times."""
  return np.append((np.asarray(timesteps, np.float64) + 1) / 1000, 0)


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize(
  ("name", "kind", "how"),
  [
    ("dpmpp_2m", "DPMSolverMultistepScheduler", {}),
    ("unipc", "UniPCMultistepScheduler", {}),
    ("unipc", "UniPCMultistepScheduler", dict(timestep_spacing="trailing")),
    ("ddim", "DDIMScheduler", dict(clip_sample=False, set_alpha_to_one=True)),
  ],
  ids=str,
)
def test_linear_betas_and_predicted_noise(name, kind, how, steps):
  scheduler = getattr(diffusers, kind)(**LINEAR, **how)
  scheduler.set_timesteps(steps)
  times = of_chain(scheduler.timesteps)
  if how.get("timestep_spacing") == "trailing":
    np.testing.assert_allclose(times, spacing.times(LinearBeta(), steps, "trailing"), atol=1e-7)
  close(ours(name, LINEAR_EPS, times), theirs(scheduler))


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize(
  ("name", "kind"),
  [("dpmpp_2m", "DPMSolverMultistepScheduler"), ("unipc", "UniPCMultistepScheduler")],
)
def test_flow_of_the_multistep_solvers(name, kind, steps):
  """They start a little below t = 1, and so do we here; their times are in `sigmas`."""
  scheduler = getattr(diffusers, kind)(**FLOW)
  scheduler.set_timesteps(steps)
  sigmas = scheduler.sigmas.numpy()
  close(ours(name, STRAIGHT, sigmas), theirs(scheduler, 1000 * sigmas))


@pytest.mark.parametrize("steps", [1, 5, 20])
@pytest.mark.parametrize(
  ("name", "kind"),
  [
    ("euler", "FlowMatchEulerDiscreteScheduler"),
    ("heun", "FlowMatchHeunDiscreteScheduler"),
  ],
)
def test_flow_of_euler_and_heun(name, kind, steps):
  scheduler = getattr(diffusers, kind)(num_train_timesteps=1000, shift=1.0)
  scheduler.set_timesteps(steps)
  sigmas = scheduler.sigmas.numpy()
  times = np.append(sigmas[:1], sigmas[1:-1:2]) if name == "heun" else sigmas[:-1]
  close(ours(name, STRAIGHT, np.append(times, 0.0)), theirs(scheduler, 1000 * sigmas))


def test_heun_meets_theirs_where_steps_are_many():
  """Theirs integrates z / alpha over sigma / alpha, ours an angle: one limit, two ways there."""
  scheduler = diffusers.HeunDiscreteScheduler(**LINEAR, timestep_spacing="linspace")
  scheduler.set_timesteps(334)  # every third step of the chain
  z = torch.from_numpy(start()) * (float(scheduler.sigmas[0]) ** 2 + 1) ** 0.5  # z / alpha
  for t in scheduler.timesteps:
    shown = scheduler.scale_model_input(z, t)
    out = torch.from_numpy(np.asarray(model(shown.numpy(), float(t)), np.float32))
    z = scheduler.step(out, t, z).prev_sample
  got, want = ours("heun", LINEAR_EPS, LinearBeta().times(334)), z.numpy()
  assert np.abs(got - want).max() < 1e-3 * np.abs(want).max()
