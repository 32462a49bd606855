"""Autoencoder blocks: against numpy transcriptions, and what each must leave alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal, special

from dit_jax.nn import conv


def params_of(module, x, seed=0):
  """Random parameters, norms and biases included, made without compiling an initialiser."""
  r = np.random.default_rng(seed)
  shapes = jax.eval_shape(module.init, jax.random.key(0), x)
  return jax.tree.map(lambda s: jnp.asarray(0.3 * r.normal(size=s.shape), s.dtype), shapes)


def run(module, params, x):
  return np.asarray(module.apply(params, jnp.asarray(x)))


def images(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def np_conv(x, p, stride=1, pad=((1, 1), (1, 1))):
  """Cross-correlation in float64, channel by channel."""
  x = np.pad(x.astype(np.float64), ((0, 0), *pad, (0, 0)))
  kernel = np.asarray(p["kernel"], np.float64)
  out = [
    sum(
      signal.correlate2d(row[..., i], kernel[:, :, i, o], "valid") for i in range(kernel.shape[2])
    )
    for row in x
    for o in range(kernel.shape[3])
  ]
  out = np.stack(out).reshape(len(x), kernel.shape[3], *out[0].shape).transpose(0, 2, 3, 1)
  return out[:, ::stride, ::stride] + np.asarray(p["bias"])


def np_norm(x, p):
  b, h, w, c = x.shape
  groups = x.reshape(b, h * w, conv.num_groups(c), -1)
  mean, var = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
  y = ((groups - mean) / np.sqrt(var + 1e-6)).reshape(x.shape)
  return y * np.asarray(p["scale"]) + np.asarray(p["bias"])


def np_swish(x):
  return x * special.expit(x)


def test_groups_divide_and_keep_four_channels():
  assert [conv.num_groups(c) for c in (128, 256, 512)] == [32, 32, 32]
  for c in range(1, 200):
    n = conv.num_groups(c)
    assert c % n == 0
    assert n == 1 or (c // n >= 4 and n <= 32)


def test_res_block_matches_numpy():
  x = images(2, 4, 6, 8)
  block = conv.ResBlock(12)
  params = params_of(block, x)
  p = params["params"]
  h = np_conv(np_swish(np_norm(x, p["norm1"])), p["conv1"])
  h = np_conv(np_swish(np_norm(h, p["norm2"])), p["conv2"])
  shortcut = x @ np.asarray(p["shortcut"]["kernel"])[0, 0] + np.asarray(p["shortcut"]["bias"])
  np.testing.assert_allclose(run(block, params, x), shortcut + h, atol=2e-5)


def test_attention_block_matches_numpy():
  x = images(2, 3, 4, 8)
  block = conv.AttnBlock()
  params = params_of(block, x)
  p = params["params"]
  y = np_norm(x, p["norm"]).reshape(2, 12, 8)
  dense = lambda y, name: y @ np.asarray(p[name]["kernel"]) + np.asarray(p[name]["bias"])
  q, k, v = (dense(y, name) for name in "qkv")
  weights = special.softmax(q @ k.transpose(0, 2, 1) / np.sqrt(8), axis=-1)
  want = x + dense(weights @ v, "proj_out").reshape(x.shape)
  np.testing.assert_allclose(run(block, params, x), want, atol=2e-5)


def test_attention_is_blind_to_the_order_of_cells():
  x = images(1, 4, 4, 8)
  params = params_of(conv.AttnBlock(), x)
  apply = lambda x: run(conv.AttnBlock(), params, x)
  np.testing.assert_allclose(apply(x[:, ::-1]), apply(x)[:, ::-1], atol=1e-5)
  np.testing.assert_allclose(
    apply(x.transpose(0, 2, 1, 3)), apply(x).transpose(0, 2, 1, 3), atol=1e-5
  )


def test_down_pads_below_and_on_the_right():
  x = images(1, 4, 6, 3)
  params = params_of(conv.Down(), x)
  want = np_conv(x, params["params"]["conv"], stride=2, pad=((0, 1), (0, 1)))
  got = run(conv.Down(), params, x)
  assert got.shape == (1, 2, 3, 3)
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_up_is_nearest_then_conv():
  x = images(1, 2, 3, 3)
  params = params_of(conv.Up(), x)
  want = np_conv(x.repeat(2, 1).repeat(2, 2), params["params"]["conv"])
  np.testing.assert_allclose(run(conv.Up(), params, x), want, atol=1e-5)


@pytest.mark.parametrize("attention", [True, False])
def test_mid_block_names(attention):
  names = set(params_of(conv.MidBlock(attention), images(1, 2, 2, 8))["params"])
  assert names == {"block_1", "block_2"} | ({"attn_1"} if attention else set())


def test_bfloat16_computes_near_f32_with_f32_parameters():
  x = images(1, 4, 4, 8)
  params = params_of(conv.MidBlock(), x)
  got = conv.MidBlock(dtype=jnp.bfloat16).apply(params, jnp.asarray(x, jnp.bfloat16))
  assert got.dtype == jnp.bfloat16
  shapes = jax.eval_shape(conv.MidBlock(dtype=jnp.bfloat16).init, jax.random.key(0), x)
  assert {s.dtype for s in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
  want = run(conv.MidBlock(), params, x)
  assert np.abs(np.asarray(got, np.float32) - want).max() < 0.05 * np.abs(want).max()


@pytest.mark.parametrize("s", [1, 2, 4])
def test_space_to_depth_round_trip(s):
  x = jnp.asarray(images(2, 4, 8, 3))
  y = conv.space_to_depth(x, s)
  assert y.shape == (2, 4 // s, 8 // s, 3 * s * s)
  np.testing.assert_array_equal(conv.depth_to_space(y, s), x)
  np.testing.assert_array_equal(y[0, 0, 1, :3], x[0, 0, s])
