"""A table's rows are exact both ways, and mean what the two layers compute."""

import jax
import numpy as np
import pytest

from dit_jax.core.errors import UserError
from dit_jax.weights import diffusers_dit, dit, rename, sd_vae

LAYOUTS = {
  "same": (rename.SAME, (3, 4)),
  "linear": (rename.LINEAR, (3, 4)),
  "conv": (rename.CONV, (3, 2, 4, 5)),
  "batched": (rename.BATCHED, (3, 4)),
  "patches": (rename.patches(2), (16, 5)),
}
DIT = dict(depth=3, patch=2)
VAE = dict(block_out_channels=(32, 64), layers_per_block=2)


def numbers(*shape) -> np.ndarray:
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_are_exact_both_ways(name):
  layout, shape = LAYOUTS[name]
  x = numbers(*shape)
  np.testing.assert_array_equal(layout.here(layout.there(x)), x)
  y = layout.there(x)
  np.testing.assert_array_equal(layout.there(layout.here(y)), y)


def test_patches_are_a_strided_convolution():
  """Our map of (row, column, channel), and theirs of [d, c, row, column], on one patch."""
  kernel, patch = numbers(2 * 2 * 4, 5), numbers(2, 2, 4)
  want = patch.ravel() @ kernel
  theirs = rename.patches(2).there(kernel)
  assert theirs.shape == (5, 4, 2, 2)
  np.testing.assert_allclose(np.einsum("dcpq,pqc->d", theirs, patch), want, rtol=1e-4)


def test_parts_follow_each_other_where_the_model_cuts():
  """Queries, keys and values of the fused layer are those of three layers."""
  row, bias = rename.layer("qkv", ("q", "k", "v"))
  kernel, x = numbers(4, 12), numbers(4)
  for i, weight in enumerate(row.to_theirs(kernel)):
    np.testing.assert_allclose(weight @ x, (x @ kernel)[4 * i : 4 * i + 4], rtol=1e-4)
  np.testing.assert_array_equal(row.to_ours(row.to_theirs(kernel)), kernel)
  assert (row.theirs, bias.theirs) == (
    ("q.weight", "k.weight", "v.weight"),
    ("q.bias", "k.bias", "v.bias"),
  )


@pytest.mark.parametrize(
  ("table", "fields"),
  [(dit, DIT), (diffusers_dit, DIT), (sd_vae, VAE)],
  ids=["dit", "diffusers-dit", "sd-vae"],
)
def test_no_name_is_twice_in_a_table(table, fields):
  rows = table.rows(fields)
  for names in ([row.ours for row in rows], [key for row in rows for key in row.theirs]):
    assert len(names) == len(set(names)) > 40


ROWS = [
  *rename.layer("a", "x"),
  rename.Row("shared", ("s.0", "s.1"), copies=True),
]
OURS = {"a/kernel": numbers(3, 4), "a/bias": numbers(4), "shared": numbers(2), "fixed": numbers(5)}
SHAPES = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in OURS.items()}
FIXED = {"fixed": OURS["fixed"]}


def test_both_directions_are_inverse():
  theirs = rename.to_theirs(ROWS, OURS, FIXED)
  assert sorted(theirs) == ["s.0", "s.1", "x.bias", "x.weight"]
  back = rename.to_ours(ROWS, theirs, SHAPES, FIXED)
  assert list(back) == list(SHAPES)
  for name, x in OURS.items():
    np.testing.assert_array_equal(back[name], x)


def test_a_misfit_is_said_in_the_words_of_its_side():
  theirs = rename.to_theirs(ROWS, OURS, FIXED)
  for change, words in (
    ({"new": numbers(2)}, ["unused key new (2,)"]),
    ({"x.bias": numbers(5)}, ["x.bias is (5,) and should be (4,)"]),
    ({"x.weight": numbers(4)}, ["x.weight is (4,) and should be (4,3)"]),
    ({"s.1": theirs["s.1"] + 1}, ["s.1 differs from s.0"]),
    ({"s.1": theirs["s.1"].astype(np.float16)}, ["s.1 differs from s.0"]),
    ({"x.bias": np.zeros(4, np.int32)}, ["x.bias is of dtype int32"]),
  ):
    with pytest.raises(UserError) as e:
      rename.to_ours(ROWS, theirs | change, SHAPES, FIXED)
    assert all(word in str(e.value) for word in words), str(e.value)
  del theirs["x.bias"], theirs["s.0"]
  with pytest.raises(UserError, match=r"a/bias \(4,\) \(no x.bias\); .*shared \(2,\) \(no s.0\)"):
    rename.to_ours(ROWS, theirs, SHAPES, FIXED)
  with pytest.raises(UserError, match=r"unfilled leaf fixed \(5,\)"):
    rename.to_ours(ROWS, theirs, SHAPES)


def test_a_model_with_more_than_the_format_is_refused():
  with pytest.raises(UserError, match="no place for q_norm"):
    rename.to_theirs(ROWS, OURS | {"q_norm": numbers(2)}, FIXED)
  with pytest.raises(UserError, match="a/bias is missing"):
    rename.to_theirs(ROWS, {k: x for k, x in OURS.items() if k != "a/bias"}, FIXED)
  with pytest.raises(UserError, match="fixed is fixed in that format"):
    rename.to_theirs(ROWS, OURS | {"fixed": OURS["fixed"] + 1e-3}, FIXED)
