"""Counts of queries and keys, and what is refused before anything is computed."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.kernels.pro_attention.settings import (
  UNIFORMS,
  ProSettings,
  check,
  floor_product,
  sampled_keys,
  uniforms,
)


def test_counts_follow_the_logarithm_of_the_length():
  settings, n = ProSettings(c=5), np.arange(20_000)
  want = [max(1, min(i, 5 * math.ceil(math.log(max(i, 2))))) for i in n]
  assert [settings.num_keys(int(i)) for i in n] == want
  np.testing.assert_array_equal(settings.num_keys(jnp.asarray(n)), want)
  np.testing.assert_array_equal(settings.num_queries(jnp.asarray(n)), want)


@pytest.mark.parametrize("part", [1, 2, 3, 8])
def test_annealing_takes_at_least_a_part_of_the_queries(part):
  settings, plain = ProSettings(part=part), ProSettings()
  for n in (1, 2, 16, 100, 1000):
    want = max(plain.num_queries(n), math.ceil(n / part))
    assert settings.num_queries(n) == min(n, want)
    assert int(settings.num_queries(jnp.int32(n))) == min(n, want)
    assert settings.num_keys(n) == plain.num_keys(n)
  assert ProSettings(part=1).num_queries(777) == 777


def test_sampled_keys_lie_inside_and_belong_to_head_and_length():
  r = uniforms(jax.random.key(3), 4)
  assert r.shape == (4, UNIFORMS)
  lengths = jnp.array([7, 100, 7, 0, 1])
  index = np.asarray(sampled_keys(r, lengths, 20))
  assert index.shape == (5, 4, 20)
  np.testing.assert_array_equal(index[0], index[2])
  assert (index[0] < 7).all()
  assert (index[3:] == 0).all()
  assert index.min() == 0
  assert len({row.tobytes() for row in index[1]}) == 4  # heads differ
  np.testing.assert_array_equal(index[1], np.floor(np.asarray(r)[:, :20] * 100))
  larger = np.asarray(sampled_keys(r, lengths, 30))
  np.testing.assert_array_equal(larger[..., :20], index)


def test_the_largest_uniform_stays_inside():
  r = jnp.float32(1 - 2**-23)
  for n in (1, 3, 1000, 16_383, 16_384):
    assert int(floor_product(r, jnp.int32(n))) == n - 1


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(c=0), r"c=0 must be 1 or more"),
    (dict(c=-2), r"c=-2"),
    (dict(keys="some"), r"keys='some' is unknown; expected one of \['shared', 'per_query'\]"),
    (dict(part=-1), r"part=-1"),
  ],
)
def test_settings_that_make_no_sense_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    ProSettings(**fields)


def arrays(n=16, h=2, d=8):
  return [jnp.zeros((2, n, h, d))] * 3


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda q, k, v: (q, k[:, :, :1], v), r"k is float32\[2, 16, 1, 8\] where q is"),
    (lambda q, k, v: (q, k, v[..., :4]), r"v is float32\[2, 16, 2, 4\]"),
    (lambda q, k, v: (q, k.astype(jnp.bfloat16), v), r"k is bfloat16"),
    (lambda q, k, v: (q[0], k[0], v[0]), r"q has shape \[16, 2, 8\]"),
  ],
)
def test_arrays_that_do_not_agree_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    check(*change(*arrays()), uniforms(jax.random.key(0), 2), None, ProSettings())


@pytest.mark.parametrize(
  ("lengths", "message"),
  [
    ([3, 17], r"lengths has values from 3 to 17; allowed are 0 to 16"),
    ([-1, 3], r"from -1 to 3"),
    ([3], r"lengths is int32\[1\]"),
    ([0.5, 3.0], r"lengths is float32\[2\]; expected one integer an image, \[2\]"),
  ],
)
def test_lengths_that_do_not_fit_are_refused(lengths, message):
  with pytest.raises(ValueError, match=message):
    check(*arrays(), uniforms(jax.random.key(0), 2), jnp.array(lengths), ProSettings())


def test_a_c_beyond_the_uniforms_is_refused_with_the_largest_that_fits():
  with pytest.raises(ValueError, match=r"c=30 samples 210 of 1000 keys.*choose c of 9 or less"):
    check(*arrays(n=1000), uniforms(jax.random.key(0), 2), None, ProSettings(c=30))
  check(*arrays(n=1000), uniforms(jax.random.key(0), 2), None, ProSettings(c=9))


def test_uniforms_of_other_heads_are_refused():
  with pytest.raises(ValueError, match=r"r has shape \[3, 64\]; expected \[2, 64\]"):
    check(*arrays(), uniforms(jax.random.key(0), 3), None, ProSettings())
