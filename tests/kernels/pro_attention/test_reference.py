"""The definition: laws of ProAttention, and a second implementation in loops."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.kernels import dense
from dit_jax.kernels.pro_attention import reference
from dit_jax.kernels.pro_attention.settings import ProSettings, sampled_keys, uniforms

R = uniforms(jax.random.key(7), 2)
SETTINGS = {
  "plain": ProSettings(c=2),
  "informer": ProSettings(c=2, informer_denominator=True),
  "annealed": ProSettings(c=2, part=4),
  "per_query": ProSettings(c=2, keys="per_query"),
}


def draw(n, b=3, h=2, d=8, seed=0):
  keys = jax.random.split(jax.random.key(seed), 4)
  return [jax.random.normal(key, (b, n, h, d)) for key in keys]


def chosen_rows(q, k, lengths, settings):
  """Boolean [b, h, n]: which queries attend."""
  m = reference.measure(q, k, R, lengths, settings)
  index, kept = reference.select(m, lengths, settings)
  hits = np.zeros(m.shape, bool)
  for i, j, slot in zip(*np.nonzero(np.asarray(kept)), strict=True):
    hits[i, j, index[i, j, slot]] = True
  return hits


def in_loops(q, k, v, lengths, settings):
  """ProAttention with shared keys as the paper's text has it, an image and a head at a time."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  out = np.zeros_like(q)
  for i, length in enumerate(np.asarray(lengths)):
    if length == 0:
      continue
    used, wanted = settings.num_keys(int(length)), settings.num_queries(int(length))
    for j in range(q.shape[2]):
      drawn = np.asarray(sampled_keys(R, lengths, used))[i, j]
      rows, keys, values = q[i, :length, j], k[i, :length, j], v[i, :length, j]
      s = rows @ keys[drawn].T
      if settings.informer_denominator:
        m = s.max(1) - s.sum(1) / length
      else:
        m = (s.max(1) - s.mean(1)) / np.sqrt(q.shape[-1])
      top = np.argsort(-m, kind="stable")[:wanted]
      out[i, :length, j] = values.mean(0)
      p = np.exp(rows[top] @ keys.T / np.sqrt(q.shape[-1]))
      out[i, top, j] = p / p.sum(1, keepdims=True) @ values
  return out


@pytest.mark.parametrize("name", ["plain", "informer", "annealed"])
def test_the_same_in_loops(name):
  q, k, v, _ = draw(50)
  lengths = jnp.array([50, 17, 0])
  got = jax.jit(reference.pro_attention, static_argnums=5)(q, k, v, R, lengths, SETTINGS[name])
  np.testing.assert_allclose(got, in_loops(q, k, v, lengths, SETTINGS[name]), atol=2e-6)


@pytest.mark.parametrize("name", SETTINGS)
def test_selected_rows_are_dense_and_the_others_the_mean(name):
  q, k, v, _ = draw(40)
  lengths = jnp.array([40, 23, 5])
  out = reference.pro_attention(q, k, v, R, lengths, SETTINGS[name])
  full = dense.xla(q, k, v, lengths)
  hits = chosen_rows(q, k, lengths, SETTINGS[name])
  for i, length in enumerate([40, 23, 5]):
    assert hits[i].sum(1).tolist() == [SETTINGS[name].num_queries(length)] * 2
    for j in range(2):
      hit = hits[i, j]
      np.testing.assert_allclose(out[i, hit, j], full[i, hit, j], atol=1e-6)
      rest = out[i, :length, j][~hit[:length]]
      mean = np.broadcast_to(v[i, :length, j].mean(0), rest.shape)
      np.testing.assert_allclose(rest, mean, atol=1e-6)
  assert not np.asarray(out[1, 23:]).any()


def test_all_queries_selected_is_dense_attention_with_its_gradients():
  q, k, v, g = draw(32)
  lengths, settings = jnp.array([32, 9, 1]), ProSettings(part=1)
  there = (jnp.arange(32) < lengths[:, None])[..., None, None]
  of = lambda fn: jax.vjp(lambda *qkv: jnp.where(there, fn(*qkv), 0), q, k, v)
  got, pull = of(lambda *qkv: reference.pro_attention(*qkv, R, lengths, settings))
  want, dense_pull = of(lambda *qkv: dense.xla(*qkv, lengths))
  chex.assert_trees_all_close((got, pull(g)), (want, dense_pull(g)), atol=1e-5)


def test_gradients_skip_the_choice():
  """The vector-Jacobian product against finite differences while the choice stands still."""
  q, k, v, g = (x.astype(jnp.float32) for x in draw(24, b=1))
  lengths, settings = jnp.array([20]), ProSettings(c=2)
  f = lambda *qkv: (reference.pro_attention(*qkv, R, lengths, settings) * g).sum()
  grads = jax.grad(f, (0, 1, 2))(q, k, v)
  hit = chosen_rows(q, k, lengths, settings)[0]
  for j in range(2):
    assert not np.asarray(grads[0][0, ~hit[j], j]).any()
    assert np.asarray(grads[0][0, hit[j], j]).any(-1).all()
  assert all(not np.asarray(x[0, 20:]).any() for x in grads)
  step = [jax.random.normal(jax.random.key(i), q.shape) for i in range(3)]
  h = 1e-3
  ahead, behind = (
    f(*(x + sign * h * s for x, s in zip((q, k, v), step, strict=True))) for sign in (1, -1)
  )
  slope = sum((a * s).sum() for a, s in zip(grads, step, strict=True))
  np.testing.assert_allclose((ahead - behind) / (2 * h), slope, rtol=5e-3)


@pytest.mark.parametrize("name", SETTINGS)
def test_what_padding_contains_changes_no_bit(name):
  q, k, v, g = draw(40)
  lengths = jnp.array([33, 12, 0])
  there = (jnp.arange(40) < lengths[:, None])[..., None, None]

  @jax.jit
  def run(q, k, v):
    fn = lambda q, k, v: reference.pro_attention(q, k, v, R, lengths, SETTINGS[name])
    out, pull = jax.vjp(fn, q, k, v)
    return jax.tree.map(lambda x: jnp.where(there, x, 0), (out, *pull(g)))

  other = [jnp.where(there, x, 100 * y) for x, y in zip((q, k, v), draw(40, seed=9), strict=False)]
  chex.assert_trees_all_equal(run(q, k, v), run(*other))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_larger_capacity_changes_no_kept_token(name):
  q, k, v, _ = draw(30)
  lengths = jnp.array([30, 21, 4])
  pad = lambda x: jnp.pad(x, ((0, 0), (0, 70), (0, 0), (0, 0)), constant_values=3)
  small = reference.pro_attention(q, k, v, R, lengths, SETTINGS[name])
  large = reference.pro_attention(pad(q), pad(k), pad(v), R, lengths, SETTINGS[name])
  np.testing.assert_allclose(large[:, :30], small, atol=2e-6)
  assert not np.asarray(large[:, 30:]).any()


def test_ties_go_to_the_lower_row():
  m = jnp.array([[[1.0, 2, 2, 0, 2, -0.0, 0]]])
  index, kept = reference.select(m, jnp.array([7]), ProSettings(c=1))
  assert index[0, 0].tolist() == [1, 2]
  assert kept.all()
  index, kept = reference.select(m, jnp.array([1]), ProSettings(c=1))
  assert index[0, 0, 0] == 0
  assert kept[0, 0].tolist() == [True, False]


def test_images_do_not_meet_and_the_key_decides():
  q, k, v, _ = draw(40)
  out = reference.pro_attention(q, k, v, R)
  alone = reference.pro_attention(q[1:2], k[1:2], v[1:2], R)
  np.testing.assert_allclose(out[1:2], alone, atol=1e-6)
  np.testing.assert_array_equal(out, reference.pro_attention(q, k, v, R))
  other = reference.pro_attention(q, k, v, uniforms(jax.random.key(8), 2))
  assert (np.asarray(out) != np.asarray(other)).any()


def test_bfloat16_keeps_its_dtype_and_comes_near_float32():
  q, k, v, _ = (x.astype(jnp.bfloat16) for x in draw(64))
  out = reference.pro_attention(q, k, v, R)
  assert out.dtype == jnp.bfloat16
  want = reference.pro_attention(*(x.astype(jnp.float32) for x in (q, k, v)), R)
  np.testing.assert_allclose(out.astype(np.float32), want, atol=2e-2)


@pytest.mark.parametrize("backward", [False, True])
def test_no_buffer_grows_with_the_square_of_the_length(backward):
  """No array of L L or L U d elements in the optimised program, as Informer's gather has."""
  n, d, settings = 1024, 72, ProSettings()
  x = jax.ShapeDtypeStruct((1, n, 1, d), jnp.float32)
  r = jax.ShapeDtypeStruct((1, 64), jnp.float32)
  fn = lambda q, k, v, r: reference.pro_attention(q, k, v, r, None, settings)
  if backward:
    forward = fn
    fn = lambda q, k, v, r: jax.vjp(lambda *a: forward(*a, r), q, k, v)[1](q)
  text = jax.jit(fn).lower(x, x, x, r).compile().as_text()
  sizes = [
    int(np.prod([int(i) for i in dims.split(",") if i] or [1]))
    for dims in re.findall(r"[a-z]+\d*\[([\d,]*)\]", text)
  ]
  assert n * d in sizes  # the pattern reads shapes
  assert max(sizes) < min(n * n, n * settings.num_keys(n) * d)


def test_a_third_of_dense_attentions_bytes_at_1024_tokens():
  x = jax.ShapeDtypeStruct((1, 1024, 2, 72), jnp.float32)
  r = jax.ShapeDtypeStruct((2, 64), jnp.float32)

  def accessed(fn, *args):
    return jax.jit(fn).lower(*args).compile().cost_analysis()["bytes accessed"]

  assert accessed(reference.pro_attention, x, x, x, r) <= 0.35 * accessed(dense.xla, x, x, x)
