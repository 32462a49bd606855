"""Packed sequences: what was put side by side comes back, and every row has its own vector."""

import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.nn.pack import Pack

PACK = Pack(2, ((1, 5), (2, 3)))  # 2 groups of 3 rows, 11 tokens a group
ROWS, TOKENS = 6, 11


def test_splitting_and_joining_are_inverse():
  x = jnp.arange(2.0 * TOKENS * 4).reshape(2, TOKENS, 4)
  parts = PACK.split(x)
  assert [part.shape for part in parts] == [(2, 5, 4), (4, 3, 4)]
  np.testing.assert_array_equal(PACK.join(parts), x)
  rows = jnp.arange(6.0 * 4).reshape(ROWS, 4)
  np.testing.assert_array_equal(PACK.unrows(PACK.rows(rows)), rows)


@pytest.mark.parametrize("row", range(ROWS))
def test_a_row_keeps_its_place_and_its_vector(row):
  mine = jnp.zeros((ROWS, 1)).at[row].set(1)
  group, place = divmod(row, 3)
  want = np.zeros((2, TOKENS))
  start, n = ((0, 5), (5, 3), (8, 3))[place]
  want[group, start : start + n] = 1
  np.testing.assert_array_equal(PACK.spread(mine)[..., 0], want)
  by_part = [part[:, :1] for part in PACK.split(PACK.spread(mine))]
  for marked, part in zip(PACK.rows(mine), by_part, strict=True):
    np.testing.assert_array_equal(part[:, 0], marked)
