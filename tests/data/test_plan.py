"""A planned epoch uses every image once, in slots that hold it, from (seed, step) alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_jax.core import buckets, slots
from dit_jax.data.pipeline import batch_at, batches
from dit_jax.data.plan import Plan, reading

STEP = 8


def sizes(n, seed=0, most=64):
  draw = np.random.default_rng(seed)
  return 4 * (np.clip(draw.normal(0.45, 0.25, n), 0, 1) * most / 4).astype(int)


@settings(max_examples=80, deadline=None)
@given(n=st.integers(1, 300), batch=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_every_image_once_an_epoch_none_dropped_and_all_fit(n, batch, seed):
  tokens = sizes(n, seed)
  plan = Plan(tokens, batch, STEP, seed)
  shapes = slots.mixed(tokens, batch, STEP)
  capacities = np.repeat(shapes.capacities, shapes.counts)
  epochs = 3
  steps = [plan.positions(step) for step in range(epochs * plan.length // batch)]
  for images in steps:
    assert (tokens[images] <= capacities).all()
  uses = np.bincount(np.concatenate(steps), minlength=n)
  left = epochs * plan.length % batch  # they come first thing in the next epoch
  assert (uses <= epochs * plan.repeats).all()
  assert epochs * plan.length - uses.sum() == left


@pytest.mark.parametrize(("n", "batch"), [(96, 8), (97, 8), (100, 48)])
def test_what_an_epoch_leaves_is_used_in_the_next(n, batch):
  """An image is used again only when the epoch's own steps have ended."""
  plan = Plan(sizes(n), batch, STEP, seed=5)
  uses = np.zeros(n, int)
  for epoch in range(5):
    for step in range(epoch * n // batch, (epoch + 1) * n // batch):
      np.add.at(uses, plan.positions(step), 1)
    assert set(np.unique(uses)) <= {epoch, epoch + 1}
    assert (uses == epoch).sum() == (epoch + 1) * n % batch


def test_any_step_can_be_asked_first():
  tokens = sizes(333)
  straight = Plan(tokens, 32, STEP, seed=9)
  want = [straight.positions(step) for step in range(100)]
  for step in (99, 0, 77, 10, 78):
    np.testing.assert_array_equal(Plan(tokens, 32, STEP, 9).positions(step), want[step])
  assert Plan(tokens, 32, STEP, 9).positions(10**9).shape == (32,)


def test_seeds_and_epochs_have_orders_of_their_own():
  plans = [Plan(sizes(64), 16, STEP, seed) for seed in (0, 1)]
  orders = {tuple(plan.positions(step)) for plan in plans for step in range(12)}
  assert len(orders) == 24


def test_a_size_is_as_likely_in_every_step():
  """The images of one size come in random order: none is always early, none always late."""
  tokens = sizes(64)
  step_of = np.zeros((200, 64))
  for seed in range(200):
    plan = Plan(tokens, 16, STEP, seed)
    for step in range(4):
      step_of[seed, plan.positions(step)] = step
  np.testing.assert_allclose(step_of.mean(0), 1.5, atol=4.5 * np.sqrt(1.25 / 200))


@pytest.mark.parametrize("over", [[8] * 90 + [64] * 10, [8] * 99 + [64], [0] * 100])
def test_rare_sizes_are_not_lost(over):
  plan = Plan(np.array(over), 16, STEP, seed=0)
  steps = [plan.positions(step) for step in range(6 * 100 // 16)]
  assert set(np.concatenate(steps)) == set(range(100))


class Positions:
  """A source that answers with the positions it was asked for."""

  def __len__(self):
    return 333

  def read(self, positions):
    return {"index": np.asarray(positions, np.int32)}


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_steps_0_to_200_are_the_same_whoever_reads_them(processes):
  """Also after a resume at step 77, by another number of processes."""
  tokens, source = sizes(333), Positions()

  def rows(first, count):
    shapes = slots.mixed(tokens, 32, STEP, 8)
    plan, order = Plan(tokens, 32, STEP, seed=4), shapes.order()
    parts = []
    for process in range(count):
      stream = batches(
        source,
        32,
        seed=4,
        start_step=first,
        process_index=process,
        process_count=count,
        threads=2,
        positions=lambda step: plan.positions(step)[order],
      )
      parts.append([next(stream)["index"] for _ in range(first, 201)])
      stream.close()
    return [np.concatenate(step) for step in zip(*parts, strict=True)]

  want = rows(0, 1)
  for got, step in zip(rows(0, processes), want, strict=True):
    np.testing.assert_array_equal(got, step)
  for got, step in zip(rows(77, processes), want[77:], strict=True):
    np.testing.assert_array_equal(got, step)
  plan = Plan(tokens, 32, STEP, seed=4)
  one = batch_at(source, 32, 4, 5, positions=plan.positions)["index"]
  assert set(one) == set(want[5])  # whatever the groups


@pytest.mark.parametrize("groups", [1, 4])
def test_reading_lays_the_planned_images_out_in_their_slots(groups):
  draw = np.random.default_rng(0)
  maps = (draw.random((40, 4, 4)) < draw.random((40, 1, 1))).astype(np.int32)
  tokens = buckets.num_tokens(maps, (8, 16))
  shapes = slots.mixed(tokens, 16, STEP, groups)
  how = reading(tokens, (8, 16), STEP, shapes, seed=3)
  capacities = np.tile(np.repeat(shapes.capacities, shapes.rows), groups)
  for step in range(5):
    images = how["positions"](step)
    assert sorted(images) == sorted(Plan(tokens, 16, STEP, 3).positions(step))
    assert (tokens[images] <= capacities).all()
    batch = how["transform"]({"grains": maps[images]})
    lengths = np.concatenate([part.length for part in batch["tokens"]], axis=1)
    np.testing.assert_array_equal(lengths.ravel(), tokens[images])
