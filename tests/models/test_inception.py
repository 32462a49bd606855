"""The FID's Inception: sizes as published, its own pools and norm, and TensorFlow 1's resize.

Parity of the whole with PyTorch is in tests/parity/test_torch_inception.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.core import tree as trees
from dit_jax.models import inception


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


ROWS = (*range(0, 299, 13), 298)


def legacy_bilinear(x, size, rows):
  """TensorFlow 1's kernel as a loop over places, in float32: no half-pixel centres, no filter."""
  f = np.float32
  height, width, channels = x.shape
  scale_y, scale_x = f(height) / f(size), f(width) / f(size)
  out = np.empty((len(rows), size, channels), f)
  for k, i in enumerate(rows):
    y = f(i) * scale_y
    top = int(np.floor(y))
    bottom, v = min(top + 1, height - 1), f(y - f(top))
    for j in range(size):
      at = f(j) * scale_x
      left = int(np.floor(at))
      right, u = min(left + 1, width - 1), f(at - f(left))
      above = x[top, left] + (x[top, right] - x[top, left]) * u
      below = x[bottom, left] + (x[bottom, right] - x[bottom, left]) * u
      out[k, j] = above + (below - above) * v
  return out


@pytest.fixture(scope="module")
def network():
  """Parameters and outputs, as shapes."""
  model, x = inception.InceptionV3(), jax.ShapeDtypeStruct((2, 299, 299, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), x)
  return variables["params"], jax.eval_shape(model.apply, variables, x)


def test_as_many_parameters_as_published(network):
  """Without the last layer: 21,785,568 and two running numbers for each of 17,216 channels."""
  leaves = trees.flatten(network[0])
  last = leaves.pop("fc/kernel")
  assert last.shape == (2048, 1008)
  running = {k: v for k, v in leaves.items() if k.endswith(("/mean", "/var"))}
  assert trees.count(running) == 2 * 17_216
  assert trees.count(leaves) - trees.count(running) == 21_785_568
  assert len(running) == 2 * 94  # convolutions


def test_outputs_have_the_sizes_that_the_metrics_read(network):
  assert [(x.shape, x.dtype) for x in network[1]] == [
    ((2, n), jnp.float32) for n in (2048, 2023, 1008)
  ]


@pytest.mark.parametrize("shape", [(64, 64), (32, 47), (299, 299), (400, 310)], ids=str)
def test_prepare_is_the_legacy_kernel(shape):
  """Enlarged, not square, as it is, and made smaller."""
  images = np.random.default_rng(1).integers(0, 256, (2, *shape, 3), np.uint8)
  got = np.asarray(jax.jit(inception.prepare)(images))
  want = (legacy_bilinear(images[1].astype(np.float32), 299, ROWS) - 128) / 128
  assert got.shape == (2, 299, 299, 3)
  np.testing.assert_allclose(got[1, ROWS], want, atol=1e-5)
  if shape == (299, 299):
    np.testing.assert_array_equal(got, (images.astype(np.float32) - 128) / 128)


def test_prepare_does_not_centre_pixels():
  """The first pixel stays at the first place, and the last places repeat the last pixel."""
  ramp = np.broadcast_to(np.arange(23, dtype=np.uint8)[None, None, :, None], (1, 23, 23, 3))
  row = np.asarray(inception.prepare(ramp))[0, 0, :, 0] * 128 + 128
  np.testing.assert_allclose(row[:13], np.arange(13) / 13, atol=1e-5)  # 299 = 13 x 23
  np.testing.assert_array_equal(row[-13:], 22)


def test_means_do_not_count_what_is_padded():
  x = jnp.asarray(normal(2, 1, 5, 7, 2))
  got = np.asarray(inception.mean_3x3(x))
  for i in range(5):
    for j in range(7):
      window = x[0, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
      np.testing.assert_allclose(got[0, i, j], window.mean((0, 1)), atol=1e-6)


@pytest.mark.parametrize(("kernel", "stride", "valid"), [((3, 3), 1, True), ((1, 3), 1, False)])
def test_a_layer_is_convolution_norm_and_relu(kernel, stride, valid):
  layer, x = inception.Conv(4, kernel, stride, valid), jnp.asarray(normal(3, 1, 6, 5, 2))
  p = {name: normal(i, 4) for i, name in enumerate(("scale", "bias", "mean"))}
  p |= {"var": np.abs(normal(9, 4)), "kernel": normal(10, *kernel, 2, 4)}
  rows, columns = kernel
  pad = (0, 0) if valid else (rows // 2, columns // 2)
  padded = np.pad(x[0], ((pad[0],) * 2, (pad[1],) * 2, (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, (0, 1))
  y = np.einsum("hwcij,ijcd->hwd", windows, p["kernel"])
  want = np.maximum((y - p["mean"]) / np.sqrt(p["var"] + 1e-3) * p["scale"] + p["bias"], 0)
  got = layer.apply({"params": p}, x)[0]
  assert got.shape == want.shape
  np.testing.assert_allclose(got, want, atol=1e-4)


def test_only_the_last_block_takes_a_maximum():
  """One bright position: its neighbours see all of it, or a part of it."""
  x = jnp.zeros((1, 8, 8, 16)).at[0, 4, 4].set(1)
  one = lambda maximum: inception.BlockE(maximum)
  params = jax.eval_shape(one(True).init, jax.random.key(0), x)["params"]
  params = jax.tree.map(lambda s: np.ones(s.shape, np.float32), params)
  pooled = {m: one(m).apply({"params": params}, x)[0, :, :, -1] for m in (True, False)}
  lit = lambda y: y - y[0, 0]  # less what the norm adds everywhere
  np.testing.assert_allclose(lit(pooled[True])[3, 3], 9 * lit(pooled[False])[3, 3], rtol=1e-4)
  assert lit(pooled[True])[3, 3] > 10
