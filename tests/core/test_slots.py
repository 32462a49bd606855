"""Slots are capacities: enough of them at every edge, equal work in every group."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_jax.core import buckets, slots

STEP = 8


def some_tokens(seed, n=500, most=64):
  """Sizes like those of photos: a wide hump, and one image that fills everything."""
  draw = np.random.default_rng(seed)
  tokens = 4 * (np.clip(draw.normal(0.45, 0.2, n), 0, 1) * most / 4).astype(int)
  tokens[draw.integers(n)] = most
  return tokens


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 99), shares=st.integers(1, 6), groups=st.sampled_from([1, 2, 3, 8]))
def test_every_edge_has_the_next_multiple_of_its_share(seed, shares, groups):
  batch = 50 * groups * shares
  tokens = some_tokens(seed, n=2 * batch)
  got = slots.mixed(tokens, batch, STEP, groups)
  assert sum(got.counts) == batch
  assert list(got.capacities) == sorted(got.capacities, reverse=True)
  assert len(got.capacities) <= slots.MOST
  for smaller in (*got.capacities[1:], 0):
    wanted = batch * np.mean(tokens > smaller) if smaller else batch
    have = sum(c for c, n in zip(got.counts, got.capacities, strict=True) if n > smaller)
    assert have % groups == 0
    assert wanted <= have + 1e-9
    assert have < wanted + groups or have == batch
    assert have > 0  # one image needs them all


def fewest_by_trying(least, batch, most):
  """Quanta of the best choice of capacities, by trying all."""
  largest, above = len(least), np.append(least[1:], 0)
  costs = []
  for count in range(most):
    for others in itertools.combinations(range(1, largest), count):
      edges = (largest, *others[::-1])
      bounds = [0, *(above[e - 1] for e in edges[1:]), batch]
      costs.append(int(np.dot(edges, np.diff(bounds))))
  return min(costs)


@pytest.mark.parametrize("most", [1, 2, 3, 5])
@pytest.mark.parametrize("groups", [1, 4])
def test_the_capacities_cost_the_fewest_tokens(monkeypatch, most, groups):
  monkeypatch.setattr(slots, "MOST", most)
  for seed in range(10):
    tokens = some_tokens(seed, n=64)
    got = slots.mixed(tokens, 16, STEP, groups)
    assert len(got.capacities) <= most
    best = fewest_by_trying(slots.at_least(tokens, 16, STEP, groups), 16, most)
    assert np.dot(got.capacities, got.counts) == STEP * best


def test_a_batch_that_does_not_divide_an_epoch_has_a_little_spare():
  tokens = np.repeat([8, 16], 60)
  assert slots.mixed(tokens, 60, STEP).counts == (30, 30)
  assert slots.mixed(tokens, 50, STEP).counts == (26, 24)


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_rows_are_dealt_to_groups_of_equal_work(groups):
  tokens = some_tokens(1)
  got = slots.mixed(tokens, 64, STEP, groups)
  ranks = got.order()
  np.testing.assert_array_equal(np.sort(ranks), np.arange(64))
  by_rank = np.repeat(got.capacities, got.counts)
  by_group = by_rank[ranks].reshape(groups, -1)
  np.testing.assert_array_equal(by_group, np.tile(by_group[:1], (groups, 1)))
  np.testing.assert_array_equal(by_group[0], np.repeat(got.capacities, got.rows))


@pytest.mark.parametrize("groups", [1, 2, 4, 8, 16, 64])
def test_what_was_planned_for_one_group_fits_on_every_mesh(groups):
  tokens = some_tokens(2)
  plan = np.repeat(np.arange(8, 0, -1), np.diff([0, *slots.at_least(tokens, 64, STEP)[::-1]]))
  shapes = slots.mixed(tokens, 64, STEP, groups)
  assert (STEP * plan <= np.repeat(shapes.capacities, shapes.counts)).all()


def test_no_token_still_needs_a_slot():
  np.testing.assert_array_equal(buckets.edges_needed([0, 1, 8, 9, 64], STEP), [1, 1, 1, 2, 8])
  assert slots.mixed(np.zeros(20, int), 4, STEP) == slots.one(STEP, 4)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_tables_are_those_of_each_image(groups):
  factors = (4, 8)
  draw = np.random.default_rng(3)
  grains = (draw.random((16, 4, 4)) < draw.random((16, 1, 1))).astype(np.int32)
  tokens = buckets.num_tokens(grains, factors)
  shapes = slots.mixed(tokens, 16, STEP, groups)
  placed = grains[np.argsort(-tokens, kind="stable")][shapes.order()]
  got = slots.tables(placed, factors, shapes)
  capacities = np.repeat(shapes.capacities, shapes.rows)
  for row, grain in enumerate(placed):
    group, place = divmod(row, len(capacities))
    want = buckets.token_index(grain[None], factors, capacities[place])
    part = int(np.searchsorted(np.cumsum(shapes.rows), place, side="right"))
    inside = place - sum(shapes.rows[:part])
    for table, one in zip(got[part], want, strict=True):
      np.testing.assert_array_equal(table[group, inside], one[0])
  own = slots.tables(placed[: 16 // groups], factors, shapes)  # a process's own group
  for mine, all_of in zip(own, got, strict=True):
    for a, b in zip(mine, all_of, strict=True):
      np.testing.assert_array_equal(a, b[:1])
