"""Self-attention against numpy, with and without normed queries and keys; prob-sparse blocks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpy_dit as ref
import pytest

from dit_jax.core.errors import UserError
from dit_jax.kernels.pro_attention.settings import ProSettings
from dit_jax.nn.attention import AttentionSettings, SelfAttention, check_heads
from dit_jax.nn.block import Blocks

X = jax.random.normal(jax.random.key(0), (3, 6, 8))
LENGTHS = jnp.array([6, 2, 5])


@pytest.mark.parametrize("qk_norm", [False, True])
def test_matches_numpy_with_lengths(qk_norm):
  layer = SelfAttention(2, 8, qk_norm)
  params = ref.random_params(layer.init(jax.random.key(0), X))
  got, p = layer.apply(params, X, LENGTHS), ref.as_float64(params["params"])
  for b, n in enumerate(LENGTHS):
    want = ref.self_attention(p, np.float64(X[b, :n]), 2)
    np.testing.assert_allclose(got[b, :n], want, atol=2e-5)


def test_is_equivariant_to_the_order_of_tokens():
  layer = SelfAttention(2, 8)
  params = ref.random_params(layer.init(jax.random.key(0), X))
  order = jnp.array([3, 0, 5, 1, 4, 2])
  got = layer.apply(params, X[:, order])
  np.testing.assert_allclose(got, layer.apply(params, X)[:, order], atol=1e-5)


def test_qk_norm_bounds_the_scores():
  """Queries and keys a thousand times larger give the same attention."""
  layer = SelfAttention(2, 8, qk_norm=True)
  params = layer.init(jax.random.key(0), X)
  large = jax.tree.map(lambda x: x, params)
  kernel = params["params"]["qkv"]["kernel"]
  large["params"]["qkv"]["kernel"] = kernel.at[:, :16].multiply(1000)
  np.testing.assert_allclose(layer.apply(large, X), layer.apply(params, X), atol=1e-4)


@pytest.mark.parametrize("heads", [0, 3, 16])
def test_heads_that_do_not_share_the_width_are_refused_by_both_numbers(heads):
  with pytest.raises(UserError, match=rf"width=8 .*num_heads={heads}"):
    SelfAttention(heads, 8)
  check_heads(1152, 16)


PRO = AttentionSettings(kind="pro", c=1, pro_min_tokens=4)


def test_blocks_are_prob_sparse_by_number_and_by_the_tokens_they_can_meet():
  settings = dataclasses.replace(PRO, pro_blocks=(1, 3), pro_min_tokens=100)
  found = {
    tokens: [n for n in range(5) if settings.of_block(n, tokens)] for tokens in (99, 100, 1000)
  }
  assert found == {99: [], 100: [1, 3], 1000: [1, 3]}
  assert settings.of_block(1, 100) == ProSettings(c=1)
  assert [PRO.of_block(n, 4) is not None for n in range(3)] == [True] * 3
  assert AttentionSettings().of_block(0, 10_000) is None


@pytest.mark.parametrize(
  ("total", "anneal", "want"),
  [
    (1000, 0.1, [(0, 1), (25, 2), (50, 4), (75, 8), (100, 0)]),
    (10, 0.2, [(0, 2), (1, 8), (2, 0)]),
    (1000, 0.0, [(0, 0)]),
  ],
)
def test_the_queries_fall_in_a_handful_of_phases(total, anneal, want):
  phases = dataclasses.replace(PRO, anneal=anneal).phases(total, (1000, 1000))
  assert [(start, settings.part) for start, settings in phases] == want
  assert all(dataclasses.replace(s, part=0, anneal=0.1) == PRO for _, s in phases)


def test_phases_that_would_be_one_program_are_one():
  """16 of 64 queries are an eighth at least, and no block of 63 tokens is prob-sparse."""
  settings = AttentionSettings(kind="pro", c=4, pro_min_tokens=64)
  assert [(start, s.part) for start, s in settings.phases(1000, (63, 64))] == [
    *((0, 1), (25, 2), (50, 4))
  ]
  assert len(settings.phases(1000, (63, 63))) == 1
  assert len(AttentionSettings().phases(1000, (64,))) == 1


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(kind="some"), r"attention.kind='some' is unknown; choose one of \['full', 'pro'\]"),
    (dict(keys="some"), r"attention.keys='some'"),
    (dict(c=0), r"attention.c=0 must be from 1 to 64"),
    (dict(anneal=1.5), r"attention.anneal=1.5 must be from 0 to 1"),
    (dict(pro_min_tokens=0), r"attention.pro_min_tokens=0"),
    (dict(dense_snr=-1.0), r"attention.dense_snr=-1.0"),
  ],
)
def test_attention_settings_that_make_no_sense_are_refused(fields, message):
  with pytest.raises(UserError, match=message):
    AttentionSettings(**fields)


def test_more_keys_than_are_drawn_and_blocks_that_are_not_there_are_refused():
  with pytest.raises(UserError, match=r"attention.c=20 samples 140 keys of 1024 tokens"):
    AttentionSettings(kind="pro", c=20).of_block(0, 1024)
  settings = AttentionSettings(pro_blocks=(2, 7))
  with pytest.raises(UserError, match=r"names block 7; the model has the blocks 0 to 3"):
    settings.check_blocks(4)
  settings.check_blocks(8)


def test_a_prob_sparse_layer_is_the_dense_one_where_it_selects_all():
  dense, all_of_it = SelfAttention(2, 8), SelfAttention(2, 8, pro=ProSettings(part=1))
  params = ref.random_params(dense.init(jax.random.key(0), X))
  np.testing.assert_allclose(all_of_it.apply(params, X), dense.apply(params, X), atol=1e-5)


def test_the_key_decides_which_keys_are_sampled_and_without_it_they_are_fixed():
  x = jax.random.normal(jax.random.key(1), (2, 60, 8))
  stack = Blocks(2, 8, 2, attention=PRO)
  c = jax.random.normal(jax.random.key(2), (2, 8))
  params = ref.random_params(stack.init(jax.random.key(0), x, c))
  run = lambda **key: np.asarray(jax.jit(lambda: stack.apply(params, x, c, **key))())
  np.testing.assert_array_equal(run(), run())
  one, other = run(key=jax.random.key(3)), run(key=jax.random.key(4))
  np.testing.assert_array_equal(one, run(key=jax.random.key(3)))
  assert (one != other).any()
  assert (one != run()).any()
  rematerialised = Blocks(2, 8, 2, remat="full", attention=PRO)
  again = rematerialised.apply(params, x, c, key=jax.random.key(3))
  np.testing.assert_allclose(again, one, atol=1e-5)


def test_only_the_listed_blocks_differ_from_dense():
  x = jax.random.normal(jax.random.key(1), (2, 60, 8))
  c = jax.random.normal(jax.random.key(2), (2, 8))
  params = ref.random_params(Blocks(2, 8, 2).init(jax.random.key(0), x, c))
  text = {}
  for blocks in ((0,), (1,), ()):
    settings = dataclasses.replace(PRO, pro_blocks=blocks)
    model = Blocks(2, 8, 2, attention=settings)
    text[blocks] = str(jax.make_jaxpr(model.apply)(params, x, c)).count("top_k")
  assert text == {(0,): 1, (1,): 1, (): 2}
  first = Blocks(2, 8, 2, attention=dataclasses.replace(PRO, pro_blocks=(5,)), first=4)
  assert str(jax.make_jaxpr(first.apply)(params, x, c)).count("top_k") == 1
