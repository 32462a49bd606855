"""Token tables against a loop over regions; capacities are multiples that hold their images."""

import numpy as np
import pytest

from dit_jax.core import buckets

SHAPES = [((8, 16), 3, 5), ((4, 8, 16), 2, 3), ((4, 16), 2, 2)]


def some_maps(factors, rows, cols, b=6):
  return np.random.default_rng(1).integers(0, len(factors), (b, rows, cols)).astype(np.int32)


def tokens_by_loop(grains, factors):
  """(upper-left cell, cells, row among the unmerge outputs) of every token, in raster order."""
  rows, cols = grains.shape
  k, p = len(factors), factors[-1] // factors[0]
  w, out, offset = cols * p, [], 0
  for g in range(1, k):
    s = factors[k - 1 - g] // factors[0]
    codes = [(i, j) for i in range(rows * p // s) for j in range(w // s)]
    for number, (i, j) in enumerate(codes):
      if grains[i * s // p, j * s // p] == g:
        cells = [(i * s + a) * w + j * s + b for a in range(s) for b in range(s)]
        out.append((cells[0], cells, offset + number))
    offset += len(codes)
  return sorted(out)


@pytest.mark.parametrize(("factors", "rows", "cols"), SHAPES)
def test_tables_match_a_loop(factors, rows, cols):
  grains = some_maps(factors, rows, cols)
  n = buckets.num_tokens(grains, factors)
  capacity = buckets.capacity_for(n.max(), rows * cols, factors)
  index = buckets.token_index(grains, factors, capacity)
  assert {x.dtype for x in index} == {np.dtype("int32")}
  codes_in_all = sum(rows * cols * m for m in buckets.codes_per_region(factors)[1:])
  for b, grain in enumerate(grains):
    want = tokens_by_loop(grain, factors)
    assert index.length[b] == n[b] == len(want)
    np.testing.assert_array_equal(index.source[b, : n[b]], [source for _, _, source in want])
    slot = np.full(codes_in_all, capacity)
    for token, (_, _, source) in enumerate(want):
      slot[source] = token
    np.testing.assert_array_equal(index.slot[b], slot)


@pytest.mark.parametrize(("factors", "rows", "cols"), SHAPES)
def test_padding_is_out_of_range(factors, rows, cols):
  grains = some_maps(factors, rows, cols)
  grains[0], grains[1] = 0, len(factors) - 1
  finest = rows * cols * buckets.codes_per_region(factors)[-1]
  capacity = finest + buckets.bucket_step(rows * cols, factors)
  index = buckets.token_index(grains, factors, capacity)
  assert index.length[0] == 0
  assert index.length[1] == finest
  rows_of_unmerge = sum(rows * cols * m for m in buckets.codes_per_region(factors)[1:])
  for b, n in enumerate(index.length):
    assert (index.source[b, n:] >= rows_of_unmerge).all()
  assert (index.slot[0] == capacity).all()
  np.testing.assert_array_equal(index.slot[1][-finest:], np.arange(finest))
  assert (index.slot[1][:-finest] == capacity).all()


def test_tables_of_an_image_ignore_the_batch():
  factors, grains = (4, 8, 16), some_maps((4, 8, 16), 2, 3)
  whole = buckets.token_index(grains, factors, 96)
  alone = buckets.token_index(grains[4:5], factors, 96)
  for a, b in zip(whole, alone, strict=True):
    np.testing.assert_array_equal(a[4:5], b)


def test_token_counts_and_steps_of_the_paper():
  assert buckets.codes_per_region((8, 16)) == (1, 4)
  assert buckets.codes_per_region((8, 16, 32)) == (1, 4, 16)
  assert buckets.bucket_step(256, (8, 16)) == 128
  assert buckets.bucket_step(64, (8, 16, 32)) == 128
  assert buckets.bucket_step(16, (8, 16)) == 8
  assert buckets.quantum(256, (8, 16)) == buckets.quantum(64, (8, 16, 32)) == 32
  assert buckets.quantum(16, (8, 16)) == 4  # no less than a region
  half = np.arange(256).reshape(1, 16, 16) % 2
  assert buckets.num_tokens(half, (8, 16)) == 512


@pytest.mark.parametrize("factors", [(8, 16), (4, 8, 16), (4, 16)])
@pytest.mark.parametrize("regions", [1, 6, 16, 49, 256])
def test_capacity_is_the_smallest_positive_multiple_that_holds(regions, factors):
  m = buckets.codes_per_region(factors)
  step = buckets.bucket_step(regions, factors)
  assert step % m[1] == 0
  assert 8 * step >= regions * m[-1] > 8 * (step - m[1])
  for n in range(0, regions * m[-1] + 1, max(1, step // 3)):
    capacity = buckets.capacity_for(n, regions, factors)
    assert capacity % step == 0
    assert capacity >= max(n, step)
    assert capacity == step or capacity - step < n


def test_too_many_tokens_are_our_own_bug():
  with pytest.raises(AssertionError, match="capacity=8"):
    buckets.token_index(np.ones((1, 2, 2), np.int32), (4, 16), 8)
