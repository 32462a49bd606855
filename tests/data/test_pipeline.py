"""Batches: every image once an epoch, a pure function of (seed, step), the same from everywhere."""

import itertools
import pathlib
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dit_jax.core.errors import UserError
from dit_jax.data.pipeline import batch_at, batches, in_order
from dit_jax.data.sources import open_source


class Counting:
  """An image a position, which holds its own index; slow where the index asks for it."""

  def __init__(self, n, delay=0.0):
    self.n, self.delay, self.seen = n, delay, []
    self.indices = np.arange(n)

  def __len__(self):
    return self.n

  def __getitem__(self, i):
    assert 0 <= i < self.n
    self.seen.append(i)
    time.sleep(self.delay * (i % 3))
    image = np.full((2, 2, 3), i % 256, np.uint8)
    return {"image": image, "label": np.int32(i % 3), "index": np.int32(i)}


def first(n, iterator):
  got = list(itertools.islice(iterator, n))
  if hasattr(iterator, "close"):
    iterator.close()
  return got


def indices(batch_list):
  return np.concatenate([b["index"] for b in batch_list])


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 40), batch=st.integers(1, 24), seed=st.integers(0, 2**32 - 1))
def test_every_image_exactly_once_an_epoch_and_nothing_is_dropped(n, batch, seed):
  epochs = 3
  steps = -(-epochs * n // batch)
  got = indices([batch_at(Counting(n), batch, seed, step) for step in range(steps)])
  for epoch in range(epochs):
    np.testing.assert_array_equal(np.sort(got[epoch * n : (epoch + 1) * n]), np.arange(n))


def test_epochs_and_seeds_have_orders_of_their_own():
  orders = [
    tuple(batch_at(Counting(50), 50, seed, step)["index"])
    for seed in (0, 1, 2, 1234)
    for step in range(4)
  ]
  assert len(set(orders)) == len(orders)
  assert tuple(range(50)) not in orders


def test_first_places_are_uniform():
  """Over seeds, no image is preferred for the first row."""
  firsts = [int(batch_at(Counting(5), 1, seed, 0)["index"][0]) for seed in range(150)]
  assert np.bincount(firsts, minlength=5).min() > 15


def test_a_batch_is_its_items_stacked():
  batch = batch_at(Counting(10), 4, 0, 0)
  assert batch["image"].shape == (4, 2, 2, 3)
  assert batch["image"].dtype == np.uint8
  assert batch["index"].dtype == batch["label"].dtype == np.int32
  np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"])
  np.testing.assert_array_equal(batch["label"], batch["index"] % 3)


@pytest.mark.parametrize("threads", [0, 1, 5])
def test_iterating_equals_random_access_whatever_the_threads(threads):
  got = first(12, batches(Counting(17, delay=1e-4), 6, seed=3, threads=threads))
  want = [batch_at(Counting(17), 6, 3, step) for step in range(12)]
  for a, b in zip(got, want, strict=True):
    for name in b:
      np.testing.assert_array_equal(a[name], b[name])


def test_resume_at_77_is_step_77():
  straight = first(80, batches(Counting(23), 4, seed=5))
  resumed = first(3, batches(Counting(23), 4, seed=5, start_step=77))
  np.testing.assert_array_equal(indices(resumed), indices(straight[77:]))


def test_a_far_step_reads_its_own_rows_only():
  source = Counting(1000)
  batch_at(source, 8, 0, 10**12)
  assert len(source.seen) == 8


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_rows_of_all_processes_make_the_global_batch(processes):
  sources = [Counting(13) for _ in range(processes)]
  parts = [
    first(9, batches(source, 8, 7, process_index=p, process_count=processes, threads=1))
    for p, source in enumerate(sources)
  ]
  for step in range(9):
    rows = np.concatenate([part[step]["index"] for part in parts])
    np.testing.assert_array_equal(rows, batch_at(Counting(13), 8, 7, step)["index"])
  source = Counting(13)
  batch_at(source, 8, 7, 0, 0, processes)
  assert len(source.seen) == 8 // processes  # its own rows only


def test_a_transform_is_applied_after_batching():
  def add(batch):
    assert batch["index"].shape == (4,)
    return {**batch, "twice": 2 * batch["index"]}

  some = first(3, batches(Counting(9), 4, 0, transform=add))
  some.append(batch_at(Counting(9), 4, 0, 5, transform=add))
  for batch in some:
    np.testing.assert_array_equal(batch["twice"], 2 * batch["index"])


@pytest.mark.parametrize("process", [0, 1])
def test_a_draw_is_told_its_step_wherever_it_starts(process):
  draw = lambda step, batch: {**batch, "drawn": 100 * step + batch["index"]}
  where = dict(process_index=process, process_count=2, draw=draw)
  some = {step: batch_at(Counting(9), 4, 0, step, **where) for step in range(5)}
  some |= zip((2, 3), first(2, batches(Counting(9), 4, 0, start_step=2, **where)), strict=True)
  for step, batch in some.items():
    np.testing.assert_array_equal(batch["drawn"], 100 * step + batch["index"])
    np.testing.assert_array_equal(
      batch["index"],
      batch_at(Counting(9), 4, 0, step, process_index=process, process_count=2)["index"],
    )


def test_errors_of_a_thread_reach_the_caller_as_they_are():
  def refuse(batch):
    raise UserError("no")

  iterator = batches(Counting(9), 4, 0, transform=refuse)
  with pytest.raises(UserError) as e:
    next(iterator)
  assert str(e.value) == "no"
  iterator.close()


def test_close_ends_the_threads():
  before = set(threading.enumerate())
  iterator = batches(Counting(9), 4, 0, threads=3)
  next(iterator)
  started = set(threading.enumerate()) - before
  assert started
  iterator.close()
  for thread in started:
    thread.join(timeout=10)
    assert not thread.is_alive()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (dict(batch_size=6, seed=0, process_count=4), "batch_size=6 .* 4 processes; nearest is 8"),
    (dict(batch_size=0, seed=0), "nearest is 1"),
    (dict(batch_size=4, seed=-1), "seed=-1"),
    (dict(batch_size=4, seed=2**32), "seed=4294967296"),
  ],
)
def test_refusals(arguments, message):
  with pytest.raises(UserError, match=message):
    batches(Counting(9), **arguments)


@pytest.mark.parametrize(("n", "batch"), [(12, 4), (13, 4), (3, 8), (1, 1), (9, 1)])
def test_in_order_gives_everything_once_and_pads_the_last(n, batch):
  got = list(in_order(Counting(n), batch))
  assert len(got) == -(-n // batch)
  assert all(len(b["index"]) == len(b["valid"]) == batch for b in got)
  valid = np.concatenate([b["valid"] for b in got])
  np.testing.assert_array_equal(indices(got)[valid], np.arange(n))
  assert valid.sum() == n
  np.testing.assert_array_equal(indices(got)[~valid], n - 1)


@pytest.mark.parametrize("batch", [3, 20])
def test_in_order_transforms_rows_in_its_threads(damaged, batch):
  threads = set()

  def doubled(rows):
    threads.add(threading.get_ident())
    return {**rows, "twice": 2 * rows["index"]}

  got = list(in_order(open_source(damaged, "all"), batch, transform=doubled))
  for rows in got:
    np.testing.assert_array_equal(rows["twice"], 2 * rows["index"])
  assert threads
  assert threading.get_ident() not in threads


@pytest.fixture
def damaged(tmp_path) -> SimpleNamespace:
  """Ten images, of which 0, 4, 5 and 9 are broken."""
  for i in range(10):
    path = tmp_path / f"{i}.png"
    Image.new("RGB", (8, 8), (i, 0, 0)).save(path)
    if i in (0, 4, 5, 9):
      path.write_bytes(path.read_bytes()[:30])
  values = dict(source="folder", path=str(tmp_path), image_size=8, holdout=0, only=())
  return SimpleNamespace(**values)


@pytest.mark.parametrize("batch", [1, 3, 6, 20])
def test_in_order_leaves_broken_images_out(damaged, batch):
  source = open_source(damaged, "all")
  got = list(in_order(source, batch))
  valid = np.concatenate([b["valid"] for b in got])
  np.testing.assert_array_equal(indices(got)[valid], [1, 2, 3, 6, 7, 8])
  assert valid.sum() == 6
  assert [pathlib.Path(name).stem for name in source.skipped] == ["0", "4", "5", "9"]


@pytest.mark.parametrize("batch", [1, 2, 6])
def test_in_order_gives_the_positions_that_are_asked_for(damaged, batch):
  source = open_source(damaged, "all")
  got = list(in_order(source, batch, positions=np.array([0, 2, 4, 5, 7, 8, 9])))
  valid = np.concatenate([b["valid"] for b in got])
  np.testing.assert_array_equal(indices(got)[valid], [2, 7, 8])
  places = np.concatenate([b["position"] for b in got])
  np.testing.assert_array_equal(places[valid], [2, 7, 8])


def test_broken_images_do_not_change_the_other_rows(damaged):
  """Which images were met before, by which thread, changes no batch."""
  want = [batch_at(open_source(damaged, "all"), 4, 0, step) for step in range(10)]
  got = first(10, batches(open_source(damaged, "all"), 4, 0, threads=4))
  whole = [batch_at(Counting(10), 4, 0, step) for step in range(10)]
  stand_in = {0: 1, 4: 6, 5: 6, 9: 1}
  for a, b, c in zip(got, want, whole, strict=True):
    np.testing.assert_array_equal(a["index"], b["index"])
    np.testing.assert_array_equal(a["image"][:, 0, 0, 0], a["index"])
    np.testing.assert_array_equal(a["index"], [stand_in.get(i, i) for i in c["index"].tolist()])
