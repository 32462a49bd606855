"""The PyTorch side of the training benchmark: the same model, the same objective, real steps."""

import benchmark_module
import jax
import jax.numpy as jnp
import numpy as np
import numpy_dit
import pytest
from einops import rearrange

from dit_jax.core import tree as trees
from dit_jax.diffusion import losses, process, schedules
from dit_jax.models import dit

pytestmark = pytest.mark.all
torch = pytest.importorskip("torch", reason="torch is not installed: parity")

SMALL = dict(depth=3, width=48, num_heads=3, patch=2, num_classes=7)
GRID, CHANNELS, BATCH = 8, 4, 6
BLOCK = {
  "adaln": "adaln/proj",
  "qkv": "attn/qkv",
  "proj": "attn/proj",
  "mlp_in": "mlp/in",
  "mlp_out": "mlp/out",
}
TOP = {
  "patch": "patch_embed/proj",
  "time.0": "time/in",
  "time.2": "time/out",
  "final_adaln": "final/adaln/proj",
  "final": "final/linear",
}


@pytest.fixture(scope="module")
def ours():
  """The benchmark's module."""
  return benchmark_module.load("torch_dit")


@pytest.fixture(scope="module")
def data():
  """z, model time, label: numpy, channels last; one label is the null class."""
  rng = np.random.default_rng(0)
  z = rng.normal(size=(BATCH, GRID, GRID, CHANNELS)).astype(np.float32)
  t = np.array([0, 1, 10, 250, 800, 999], np.float32)
  return z, t, np.array([0, 3, 6, 7, 1, 5], np.int32)


def jax_model(grid: int, **fields) -> dit.DiT:
  return dit.DiT(**fields, grid=(grid, grid), z_channels=CHANNELS)


def shapes(model: dit.DiT):
  z = jnp.zeros((1, *model.grid, CHANNELS))
  return jax.eval_shape(model.init, jax.random.key(0), z, jnp.zeros(1), jnp.zeros(1, jnp.int32))[
    "params"
  ]


def numbers(x) -> "torch.Tensor":
  return torch.from_numpy(np.array(x))


def to_torch(x) -> "torch.Tensor":
  """[b, h, w, c] as [b, c, h, w]."""
  return numbers(rearrange(np.asarray(x), "b h w c -> b c h w"))


def source(name: str) -> str:
  """Our name of the layer that torch calls `name`."""
  if name in ("position", "label"):
    return f"{name}/table"
  _, _, inner = name.partition("blocks.")
  if not inner:
    return TOP[name]
  number, _, layer = inner.partition(".")
  return f"blocks/block_{int(number):02d}/{BLOCK[layer]}"


def carried(params, net) -> None:
  """Puts our weights into the modules; every leaf is used once."""
  flat = {
    trees.path_name(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  with torch.no_grad():
    for name, p in net.named_parameters():
      layer, _, kind = name.rpartition(".")
      ours = source(layer)
      if layer == "position":
        value = flat.pop(ours)
      elif layer == "label":
        value = flat.pop(f"{ours}/embedding")
      elif kind == "bias":
        value = flat.pop(f"{ours}/bias")
      elif layer == "patch":
        kernel = flat.pop(f"{ours}/kernel")
        value = rearrange(kernel, "(p q c) d -> d c p q", p=SMALL["patch"], q=SMALL["patch"])
      else:
        value = flat.pop(f"{ours}/kernel").T
      assert p.shape == value.shape, (name, p.shape, value.shape)
      p.copy_(numbers(value))
  assert not flat, sorted(flat)


@pytest.fixture(scope="module")
def pair(ours, data):
  """Our output under random weights, and torch's modules with the same weights."""
  model = jax_model(GRID, **SMALL)
  params = numpy_dit.random_params(shapes(model), scale=0.1)
  z, t, label = data
  want = np.asarray(jax.jit(model.apply)({"params": params}, z, t, label))
  sizes = {k: v for k, v in SMALL.items() if k != "num_heads"}
  net = ours.network(**sizes, grid=GRID, channels=CHANNELS)
  carried(params, net)
  return want, net


def outputs(ours, net, data) -> np.ndarray:
  z, t, label = data
  with torch.no_grad():
    out = ours.forward(net, to_torch(z), numbers(t), numbers(label), SMALL["num_heads"])
  return rearrange(out.numpy(), "b c h w -> b h w c")


def test_as_many_parameters_as_ours(ours):
  xl = dict(dit.decode_variant("XL/2"), num_classes=1000)
  for grid, fields in ((GRID, SMALL), (32, xl)):
    got = ours.parameters(**fields, grid=grid, channels=CHANNELS)
    assert got == trees.count(shapes(jax_model(grid, **fields)))
  print(f"XL/2: {got:,} parameters")
  assert round(got / 1e6, 1) == 675.1  # as published, with the position table


def test_the_same_weights_give_the_same_output(ours, pair, data):
  want, net = pair
  got = outputs(ours, net, data)
  print(f"largest error {np.abs(got - want).max():.2e}, sd of the output {want.std():.3f}")
  assert want.std() > 0.1
  np.testing.assert_allclose(got, want, atol=1e-4)  # float32 on both sides


def test_no_leaf_is_idle(ours, pair, data):
  """Any parameter that moves moves the output by far more than the tolerance above."""
  want, net = pair
  generator = torch.Generator().manual_seed(0)
  for name, p in net.named_parameters():
    kept = p.detach().clone()
    with torch.no_grad():
      p.add_(0.1 * torch.randn(p.shape, generator=generator))
      assert np.abs(outputs(ours, net, data) - want).max() > 1e-2, name
      p.copy_(kept)


def test_the_objective_is_ours(ours):
  """Terms and the gradient into the output, over the whole chain, first step and outer bins too."""
  rng = np.random.default_rng(1)
  steps = np.array([0, 0, 1, 2, 500, 999], np.int32)
  shape = (len(steps), GRID, GRID, CHANNELS)
  x0 = jnp.asarray(np.clip(rng.normal(size=shape), -1, 1), jnp.float32)
  eps = jnp.asarray(rng.normal(size=shape), jnp.float32)
  raw = jnp.asarray(rng.normal(size=(*shape[:-1], 2 * CHANNELS)), jnp.float32)
  t = jnp.asarray((steps + 1) / 1000, jnp.float32)
  gaussian = process.Process(schedules.LinearBeta(), learn_sigma=True)
  z = gaussian.add_noise(x0, eps, t)

  def terms(raw):
    pred, mix = gaussian.split(raw)
    x0_hat, _ = gaussian.to_x0_eps(pred, z, t)
    vlb = losses.vlb_terms(gaussian.schedule, x0, z, t, x0_hat, mix)
    return losses.mse_terms(pred, eps), vlb

  want, pull = jax.vjp(terms, raw)
  (want_grad,) = pull((jnp.ones(shape[:-1]), jnp.ones(shape[:-1])))

  now = {k: v[numbers(steps)][:, None, None, None] for k, v in ours.chain("cpu").items()}
  theirs = to_torch(raw).requires_grad_()
  arrays = (to_torch(x) for x in (x0, z, eps))
  got = [term.mean(1) for term in ours.objective(theirs, *arrays, numbers(steps), now)]
  sum(term.sum() for term in got).backward()
  got_grad = rearrange(theirs.grad.numpy(), "b c h w -> b h w c")
  for term, wanted in zip(got, want, strict=True):
    np.testing.assert_allclose(term.detach().numpy(), wanted, rtol=2e-3, atol=1e-4)
  np.testing.assert_allclose(got_grad, want_grad, rtol=2e-3, atol=1e-4)


def training(ours, **changes):
  common = dict(grid=GRID, channels=CHANNELS, batch=BATCH, device="cpu", compile=False)
  return ours.make(**{**SMALL, **common, **changes})


def test_a_step_moves_every_parameter_and_its_average(ours):
  step = training(ours)
  with torch.no_grad():
    for p in step.net.parameters():  # at the start zeros keep most gradients at zero
      p.normal_(std=0.1)
  before = [p.detach().clone() for p in step.net.parameters()]
  ema = [p.clone() for p in step.ema]
  value = step()
  assert (value.shape, value.requires_grad) == ((), False)
  rows = zip(step.net.named_parameters(), before, step.ema, ema, strict=True)
  for (name, p), old, average, old_average in rows:
    assert not torch.equal(p, old), name
    assert not torch.equal(average, old_average), name


def test_forward_and_loss_are_one_graph(ours):
  """A compiled step has no graph break; tried without the compiler that a CPU may lack."""
  step = training(ours)
  compiled = torch.compile(ours.loss, backend="eager", fullgraph=True)
  values = []
  for fn in (ours.loss, compiled):
    torch.manual_seed(1)
    values.append(fn(step.net, *step._args).item())
  assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_the_loss_falls(ours):
  step = training(ours, lr=2e-3)
  values = [float(step()) for _ in range(150)]
  first, last = np.mean(values[:15]), np.mean(values[-15:])
  print(f"loss {first:.2f} -> {last:.2f}")
  assert last < 0.7 * first
