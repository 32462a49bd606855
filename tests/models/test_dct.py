"""The dynamic content transformer against its definition, token by token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_dit as ref
import pytest

from dit_jax.core import buckets, tree
from dit_jax.core.errors import UserError
from dit_jax.models.dct import DCT, DEPTHS, check_factors, decode_variant
from dit_jax.models.dit import SIZES
from dit_jax.nn import grains as structure

SMALL = dict(depth=1, refine_depth=1, width=8, num_heads=2, z_channels=2, num_classes=3)
CASES = {2: ((8, 16), (4, 6)), 3: ((4, 8, 16), (8, 8))}
T, LABEL = jnp.array([5.0, 400.0, 990.0]), jnp.array([0, 3, 1])


def setup(k, maps=None, **fields):
  """A model with non-zero weights, and arguments whose latents have the structure of the maps."""
  factors, grid = CASES[k]
  p = factors[-1] // factors[0]
  shape = (3, grid[0] // p, grid[1] // p)
  random_maps = np.random.default_rng(k).integers(0, k, shape)
  grains = (random_maps if maps is None else np.full(shape, maps)).astype(np.int32)
  capacity = buckets.capacity_for(grid[0] * grid[1], shape[1] * shape[2], factors)
  tokens = jax.tree.map(jnp.asarray, buckets.token_index(grains, factors, capacity))
  z = jax.random.normal(jax.random.key(1), (3, *grid, 2))
  grains = jnp.asarray(grains)
  args = (structure.project(z, grains, factors), T, LABEL, grains, tokens)
  model = DCT(**{**SMALL, **fields}, factors=factors, grid=grid)
  params = ref.random_params(jax.eval_shape(model.init, jax.random.key(0), *args))
  return model, params, args


def base_by_numpy(p, z, t, label, grain, patch):
  c = ref.condition(p, t, label)
  h = ref.patch_tokens(p, z, patch) + p["position"]["table"]
  return ref.blocks(p["blocks"], h + p["grain"]["embedding"][grain.ravel()], c, 2), c


def dct_by_numpy(p, z, t, label, grain, factors):
  """One image: region after region, every fine code by its own chain of unmerge slices."""
  k, patch = len(factors), factors[-1] // factors[0]
  (height, width, _), d, r = z.shape, SMALL["width"], p["refine"]
  h, c = base_by_numpy(p, z, t, label, grain, patch)
  rough = ref.final(p["final"], h, c)
  out = rough.reshape(*grain.shape, -1).repeat(patch, 0).repeat(patch, 1)
  places, f = [], []
  for i, j in np.ndindex(height, width):
    g = grain[i // patch, j // patch]
    s = factors[k - 1 - g] // factors[0]
    if g == 0 or i % s or j % s:
      continue
    x, side = h[(i // patch) * grain.shape[1] + j // patch], patch
    for level in range(1, g + 1):  # follow the quadrant that holds the cell
      side //= 2
      quadrant = 2 * (i // side % 2) + j // side % 2
      x = ref.dense(r[f"unmerge_{level}"], x)[quadrant * d : (quadrant + 1) * d]
    if k > 2:
      x = x + r["grain"][g - 1]
    x = x + r["position"]["table"][i * width + j]
    f.append(ref.dense(r["merge"], np.concatenate([x, ref.dense(r["code"], z[i, j])])))
    places.append((i, j, s))
  if f:
    delta = ref.final(r["final"], ref.blocks(r["blocks"], np.stack(f), c, 2), c)
    for (i, j, s), x in zip(places, delta, strict=True):
      out[i : i + s, j : j + s] += x
  return out


@pytest.mark.parametrize("k", [2, 3])
def test_matches_the_definition_on_ragged_maps(k):
  model, params, args = setup(k)
  out, p = jax.jit(model.apply)(params, *args), ref.as_float64(params["params"])
  assert out.shape == (3, *CASES[k][1], 4)
  for b in range(3):
    z, grain = np.float64(args[0][b]), np.asarray(args[3][b])
    want = dct_by_numpy(p, z, float(T[b]), int(LABEL[b]), grain, model.factors)
    np.testing.assert_allclose(out[b], want, atol=5e-3)
  np.testing.assert_allclose(
    structure.project(out, args[3], model.factors), out, atol=1e-5, err_msg="constant in a code"
  )


def test_all_fine_map_is_plain_latent_diffusion_with_dense_refinement():
  """Every cell is its own token: reshapes take the place of gathers."""
  model, params, args = setup(2, maps=1)
  out, p = jax.jit(model.apply)(params, *args), ref.as_float64(params["params"])
  r, (height, width) = p["refine"], model.grid
  for b in range(3):
    z = np.float64(args[0][b])
    h, c = base_by_numpy(p, z, float(T[b]), int(LABEL[b]), np.asarray(args[3][b]), 2)
    rough = ref.final(p["final"], h, c).reshape(height // 2, width // 2, 4)
    f = ref.dense(r["unmerge_1"], h).reshape(height // 2, width // 2, 2, 2, 8)
    f = f.transpose(0, 2, 1, 3, 4).reshape(height * width, 8) + r["position"]["table"]
    f = np.concatenate([f, ref.dense(r["code"], z.reshape(height * width, 2))], -1)
    f = ref.blocks(r["blocks"], ref.dense(r["merge"], f), c, 2)
    want = ref.final(r["final"], f, c).reshape(height, width, 4)
    want += rough.repeat(2, 0).repeat(2, 1)
    np.testing.assert_allclose(out[b], want, atol=5e-3)


@functools.cache
def value_and_grads(model):
  """One compiled program for every map: params, args -> (out, gradients)."""
  f = lambda p, args: (lambda out: (jnp.sum(jnp.sin(out)), out))(model.apply(p, *args))
  run = jax.jit(jax.value_and_grad(f, has_aux=True))
  return lambda p, args: (lambda value, grads: (value[1], grads["params"]))(*run(p, args))


def test_all_coarse_map_has_no_refinement_and_gives_it_no_gradient():
  model, params, args = setup(3, maps=0)
  out, grads = value_and_grads(model)(params, args)
  assert not any(bool(g.any()) for g in jax.tree.leaves(grads.pop("refine")))
  assert all(bool(g.any()) for name, g in tree.flatten(grads).items() if "bias" not in name)
  other = {
    "params": params["params"] | {"refine": jax.tree.map(jnp.cos, params["params"]["refine"])}
  }
  np.testing.assert_array_equal(value_and_grads(model)(other, args)[0], out)


def test_ragged_maps_give_every_refinement_weight_a_gradient():
  model, params, args = setup(3)
  _, grads = value_and_grads(model)(params, args)
  assert all(bool(g.any()) for g in jax.tree.leaves(grads["refine"]))
  assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("maps", [None, 0, 1])
def test_without_refinement_the_output_still_has_the_structure(maps):
  model, params, args = setup(2, maps, refine_depth=0)
  out = jax.jit(model.apply)(params, *args)
  np.testing.assert_allclose(structure.project(out, args[3], model.factors), out, atol=1e-5)
  assert "refine" not in params["params"]
  fine = np.asarray(args[3][0]).repeat(2, 0).repeat(2, 1) > 0
  neighbour_differs = np.asarray(out[0, :, ::2] != out[0, :, 1::2]).any(-1)
  np.testing.assert_array_equal(neighbour_differs, fine[:, ::2])


def test_bf16_is_close_and_its_output_is_float32():
  model, params, args = setup(2)
  params = jax.tree.map(lambda x: x / 2, params)
  out = jax.jit(model.clone(dtype=jnp.bfloat16).apply)(params, *args)
  assert out.dtype == jnp.float32
  np.testing.assert_allclose(out, jax.jit(model.apply)(params, *args), atol=0.08)


def total(variant, **fields):
  """Millions of parameters at 256 px: 32 x 32 cells, 16 x 16 regions."""
  model = DCT(**decode_variant(variant), factors=(8, 16), grid=(32, 32), **fields)
  grains = np.zeros((1, 16, 16), np.int32)
  tokens = jax.tree.map(jnp.asarray, buckets.token_index(grains, (8, 16), 128))
  args = jnp.zeros((1, 32, 32, 4)), jnp.zeros(1), jnp.zeros(1, jnp.int32), jnp.asarray(grains)
  return tree.count(jax.eval_shape(model.init, jax.random.key(0), *args, tokens)) / 1e6


def test_parameter_totals_of_the_paper():
  assert abs(total("L") - 466.5) < 0.1
  assert abs(total("XL", num_classes=1000) - 686.9) < 0.1


def test_presets_split_the_depth_of_dit():
  for name, depths in DEPTHS.items():
    fields = decode_variant(name)
    assert sum(depths) == SIZES[name][0]
    assert (fields["depth"], fields["refine_depth"]) == depths
  assert DEPTHS["B"] == (10, 2)
  with pytest.raises(UserError, match="'XL/2'"):
    decode_variant("XL/2")


@pytest.mark.parametrize("factors", [(8,), (8, 12), (16, 8), (8, 8)])
def test_factors_that_are_no_chain_are_refused(factors):
  with pytest.raises(UserError, match="factors="):
    check_factors(factors, (32, 32))


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    (dict(num_heads=3), r"width=8 .*num_heads=3"),
    (dict(grid=(5, 4)), r"\(5, 4\).*multiple of 2"),
    (dict(remat="half"), r"remat='half'"),
  ],
)
def test_wrong_fields_are_refused_at_construction(wrong, message):
  with pytest.raises(UserError, match=message):
    DCT(**{**SMALL, "factors": (8, 16), "grid": (4, 4), **wrong})
