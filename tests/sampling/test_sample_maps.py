"""Sampling grain maps: with perfect conditionals, the samples have the joint distribution."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dit_jax.core import rng
from dit_jax.core.errors import UserError
from dit_jax.sampling.grain_maps import masked_counts, sample_maps

SHAPE, IMAGES = (2, 2), 20_000
STATES = np.array(list(itertools.product([0, 1], repeat=4)))  # every 2 x 2 map


def strongly_correlated():
  """Neighbours agree, corners pull apart: nothing near a product of marginals."""
  a, b, c, d = STATES.T
  energy = 1.5 * ((a == b) + 1.0 * (c == d) + (a == c)) + 0.8 * a - 1.0 * (b & d)
  return np.exp(energy) / np.exp(energy).sum()


def perfect_logits(joint):
  """log p(cell = v | cells revealed) by enumeration of the joint; label + 1 scales the log."""
  states, log_joint = jnp.asarray(STATES), jnp.log(jnp.asarray(joint, jnp.float32))

  def logits_fn(cells, label):
    cells = cells.reshape(-1, 1, 4)
    agrees = ((cells == 2) | (cells == states)).all(-1)  # [b, 16]
    weight = jnp.where(agrees, jnp.exp((1 + label[:, None]) * log_joint), 0)
    ones = jnp.einsum("bs,si->bi", weight, states.astype(jnp.float32))
    zeros = jnp.einsum("bs,si->bi", weight, 1.0 - states)
    return jnp.log(jnp.stack([zeros, ones], -1) + 1e-30).reshape(-1, *SHAPE, 2)

  return logits_fn


def draw(count=IMAGES, joint=None, label=0, logits_fn=None, seed=0, **options):
  logits_fn = logits_fn or perfect_logits(strongly_correlated() if joint is None else joint)
  f = jax.jit(
    lambda keys: sample_maps(
      logits_fn, jnp.full(count, label), keys, shape=SHAPE, num_grains=2, **options
    )
  )
  return np.asarray(f(rng.sample_keys(seed, jnp.arange(count))))


def chi_square_p(maps, joint):
  code = maps.reshape(-1, 4) @ [8, 4, 2, 1]
  return stats.chisquare(np.bincount(code, minlength=16), joint * len(maps)).pvalue


def test_random_order_draws_the_joint_distribution():
  assert chi_square_p(draw(), strongly_correlated()) > 1e-3


def test_the_biases_that_the_options_are_named_for_are_there():
  joint = strongly_correlated()
  for options in (dict(order="confidence_biased"), dict(temperature=0.8), dict(steps=1)):
    maps = draw(**options)
    assert set(np.unique(maps)) == {0, 1}
    assert chi_square_p(maps, joint) < 1e-6, options


def test_one_step_draws_the_product_of_the_marginals():
  marginal = strongly_correlated() @ STATES
  product = np.where(STATES == 1, marginal, 1 - marginal).prod(1)
  assert chi_square_p(draw(steps=1), product) > 1e-3


def test_every_cell_is_revealed_first_equally_often():
  """A model that writes the turn into the cell: 1 in the step that sees nothing, else 0."""

  def turn(cells, label):
    first = (cells == 2).all((1, 2))[:, None, None]
    return jnp.where(first[..., None], jnp.array([-99.0, 99.0]), jnp.array([99.0, -99.0])) * (
      jnp.ones((*cells.shape, 1))
    )

  maps = draw(4000, logits_fn=turn)
  np.testing.assert_array_equal(maps.sum((1, 2)), 1)
  assert stats.chisquare(maps.reshape(-1, 4).sum(0)).pvalue > 1e-3


@pytest.mark.parametrize("order", ["random", "confidence_biased"])
def test_a_map_depends_on_its_own_key_alone(order):
  logits_fn = perfect_logits(strongly_correlated())
  f = lambda keys: sample_maps(
    logits_fn, jnp.zeros(len(keys), int), keys, shape=SHAPE, num_grains=2, order=order
  )
  keys = rng.sample_keys(5, jnp.arange(40))
  np.testing.assert_array_equal(f(keys)[17:30], f(keys[17:30]))


@pytest.mark.parametrize(("steps", "want"), [(4, 4), (64, 4), (2, 2), (1, 1)])
@pytest.mark.parametrize("order", ["random", "confidence_biased"])
def test_the_model_sees_the_scheduled_number_of_masks(steps, want, order):
  seen = []

  def logits_fn(cells, label):
    seen.append(np.asarray((cells == 2).sum((1, 2))))
    return jnp.zeros((*cells.shape, 2))

  with jax.disable_jit():  # the scan is a Python loop
    maps = sample_maps(
      logits_fn, jnp.zeros(3, int), rng.sample_keys(0, jnp.arange(3)),
      shape=SHAPE, num_grains=2, steps=steps, order=order,
    )  # fmt: skip
  counts = masked_counts(4, want)
  np.testing.assert_array_equal(seen, np.repeat(np.array(counts[:-1])[:, None], 3, 1))
  assert set(np.unique(maps)) <= {0, 1}


@pytest.mark.parametrize(("regions", "steps"), [(1, 1), (4, 4), (16, 5), (64, 64), (256, 64)])
def test_schedule_is_a_cosine_that_always_moves(regions, steps):
  counts = masked_counts(regions, steps)
  assert (counts[0], counts[-1], len(counts)) == (regions, 0, steps + 1)
  assert (np.diff(counts) <= -1).all()
  for j, count in enumerate(counts):
    cosine = math.floor(regions * math.cos(math.pi * j / (2 * steps)) + 1e-9)
    assert count == cosine or count == counts[j - 1] - 1 < cosine


def test_guidance_mixes_logits_with_the_null_class():
  inner = perfect_logits(strongly_correlated())
  by_hand = lambda cells, label: (
    inner(cells, label * 0) + 3 * (inner(cells, label) - inner(cells, label * 0))
  )
  got = draw(200, label=1, guidance=3.0, null_label=0)
  np.testing.assert_array_equal(got, draw(200, label=1, logits_fn=by_hand))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(order="sorted"), "order='sorted'"),
    (dict(temperature=0.0), "temperature=0.0"),
    (dict(steps=0), "steps=0"),
    (dict(guidance=2.0), "null class"),
  ],
)
def test_wrong_options_are_refused(options, message):
  with pytest.raises(UserError, match=message):
    draw(2, **options)
