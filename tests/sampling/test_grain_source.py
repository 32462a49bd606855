"""Maps by rule: what each kind is, and that map i is a function of (seed, i)."""

import numpy as np
import pytest
from scipy import stats

from dit_jax.core.errors import UserError
from dit_jax.sampling import grain_source

SHAPE = (8, 6)


def test_every_kind_is_read():
  named = [kind.replace("IMAGE", "a:b.jpg") for kind in grain_source.KINDS]
  parsed = [grain_source.parse(text) for text in named]
  assert [kind for kind, _ in parsed] == ["dgt", "entropy-of", "all-fine", "all-coarse", "random"]
  assert [argument for _, argument in parsed] == ["", "a:b.jpg", "", "", ""]
  assert set(grain_source.OUTSIDE) <= {kind for kind, _ in parsed}


@pytest.mark.parametrize("text", ["", "fine", "entropy-of", "entropy-of:", "random:3", "DGT"])
def test_other_words_are_refused(text):
  with pytest.raises(UserError, match="choose one of dgt, entropy-of:IMAGE"):
    grain_source.parse(text)


@pytest.mark.parametrize(("kind", "grain"), [("all-fine", 2), ("all-coarse", 0)])
def test_uniform_maps(kind, grain):
  maps = grain_source.by_rule(kind, np.arange(3), 0, SHAPE, [0.2, 0.3, 0.5])
  assert maps.dtype == np.int32
  np.testing.assert_array_equal(maps, np.full((3, *SHAPE), grain))


def test_random_maps_have_the_fractions_independently():
  fractions = [0.1, 0.3, 0.6]
  maps = grain_source.by_rule("random", np.arange(400), 0, SHAPE, fractions)
  count = np.bincount(maps.ravel(), minlength=3)
  assert stats.chisquare(count, np.array(fractions) * maps.size).pvalue > 1e-3
  pairs = np.bincount(3 * maps[:, 0, 0] + maps[:, 0, 1], minlength=9)
  assert stats.chisquare(pairs, np.outer(fractions, fractions).ravel() * 400).pvalue > 1e-3


def test_a_random_map_depends_on_seed_and_index_alone():
  draw = lambda index, seed: grain_source.by_rule("random", index, seed, SHAPE, [0.5, 0.5])
  maps = draw(np.arange(20), 5)
  np.testing.assert_array_equal(draw(np.array([17, 3, 3]), 5), maps[[17, 3, 3]])
  assert (draw(np.arange(20), 6) != maps).any((1, 2)).all()
  assert len({m.tobytes() for m in maps}) == 20


def test_fractions_need_not_sum_to_one_exactly():
  """Shares that went through JSON or float32."""
  maps = grain_source.by_rule("random", np.arange(2), 0, SHAPE, [0.3333333, 0.6666666])
  assert set(np.unique(maps)) == {0, 1}
