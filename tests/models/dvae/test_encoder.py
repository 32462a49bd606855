"""The serial encoder: which grid depends on what, and which levels exist."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.models.dvae.encoder import Encoder


def make(factors=(4, 8), mults=(1, 1, 1, 2), **fields) -> Encoder:
  return Encoder(
    **{**dict(factors=factors, z_channels=2, width=8, mults=mults, res_blocks=1), **fields}
  )


def shapes_of(encoder: Encoder, size=32):
  x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  return jax.eval_shape(encoder.init_with_output, jax.random.key(0), x)


def fill(shapes, seed=0):
  r = np.random.default_rng(seed)
  return jax.tree.map(lambda s: jnp.asarray(0.2 * r.normal(size=s.shape), s.dtype), shapes)


@pytest.mark.parametrize(
  ("factors", "mults"), [((4,), (1, 1, 1)), ((4, 8), (1,) * 4), ((2, 4, 16), (1,) * 5)]
)
def test_one_grid_a_grain_coarsest_first(factors, mults):
  moments, _ = shapes_of(make(factors, mults))
  assert [m.shape for m in moments] == [(1, 32 // f, 32 // f, 4) for f in reversed(factors)]


def test_coarser_grains_continue_from_finer_features():
  encoder = make(attention=False, stem=2)
  _, shapes = shapes_of(encoder)
  params = fill(shapes)["params"]
  x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 32, 32, 3)), jnp.float32)
  run = jax.jit(lambda p: encoder.apply({"params": p}, x))
  coarse, fine = run(params)
  changed = {}
  for name in params:
    other = params | {name: jax.tree.map(lambda v: v + 0.1, params[name])}
    c, f = run(other)
    changed[name] = not np.array_equal(c, coarse), not np.array_equal(f, fine)
  assert changed == {
    "conv_in": (True, True),
    "level_2_res_0": (True, True),
    "down_4": (True, True),
    "level_4_res_0": (True, True),
    "head_4": (False, True),  # a head is its grain's own
    "down_8": (True, False),
    "level_8_res_0": (True, False),
    "head_8": (True, False),
  }


def test_attention_sits_at_the_levels_from_the_finest_grain_on():
  _, shapes = shapes_of(make(res_blocks=2))
  names = {n for n in shapes["params"] if "attn" in n}
  assert names == {f"level_{f}_attn_{i}" for f in (4, 8) for i in (0, 1)}
  assert "attn_1" in shapes["params"]["head_4"]["mid"]
  _, bare = shapes_of(make(attention=False))
  assert not [path for path, _ in jax.tree.leaves_with_path(bare) if "attn" in str(path)]


@pytest.mark.parametrize("stem", [1, 2, 4])
def test_the_levels_above_the_stem_vanish(stem):
  moments, shapes = shapes_of(make(stem=stem))
  levels = {int(n.split("_")[1]) for n in shapes["params"] if n.startswith("level")}
  assert levels == {f for f in (1, 2, 4, 8) if f >= stem}
  assert shapes["params"]["conv_in"]["kernel"].shape[2] == 3 * stem**2
  assert [m.shape[1] for m in moments] == [4, 8]  # the grids stay where they were


def test_moments_are_f32_whatever_the_arithmetic():
  moments, shapes = shapes_of(make(dtype=jnp.bfloat16))
  assert {m.dtype for m in moments} == {jnp.dtype("float32")}
  assert {s.dtype for s in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
