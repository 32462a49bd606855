"""The dense transformer: numpy's numbers, the published sizes, refusals by name."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_dit as ref
import pytest
from einops import rearrange

from dit_jax.core import tree
from dit_jax.core.errors import UserError
from dit_jax.models.dit import SIZES, DiT, decode_variant

SMALL = dict(depth=1, width=8, num_heads=2, patch=2, grid=(4, 6), z_channels=3, num_classes=5)
Z = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
T = jnp.array([1.0, 700.0])
LABEL = jnp.array([2, 5])


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_matches_numpy_with_weights_that_are_nowhere_zero(learn_sigma):
  model = DiT(**SMALL, learn_sigma=learn_sigma)
  params = ref.random_params(jax.eval_shape(model.init, jax.random.key(0), Z, T, LABEL))
  got, p = jax.jit(model.apply)(params, Z, T, LABEL), ref.as_float64(params["params"])
  assert got.shape == (2, 4, 6, 6 if learn_sigma else 3)
  for b in range(2):
    c = ref.condition(p, float(T[b]), int(LABEL[b]))
    x = ref.patch_tokens(p, np.float64(Z[b]), 2) + p["position"]["table"]
    x = ref.final(p["final"], ref.blocks(p["blocks"], x, c, 2), c)
    want = np.zeros(got.shape[1:])
    for token, patch in enumerate(x):
      i, j = 2 * (token // 3), 2 * (token % 3)
      want[i : i + 2, j : j + 2] = patch.reshape(2, 2, -1)
    np.testing.assert_allclose(got[b], want, atol=3e-3)


def test_an_image_ignores_the_rest_of_its_batch():
  model = DiT(**SMALL)
  params = ref.random_params(jax.eval_shape(model.init, jax.random.key(0), Z, T, LABEL))
  f = jax.jit(model.apply)
  other = f(params, Z.at[1].set(9.0), T.at[1].set(3.0), LABEL.at[1].set(0))
  np.testing.assert_array_equal(other[0], f(params, Z, T, LABEL)[0])


def test_starts_at_zero_with_a_sincos_position_table():
  model = DiT(**SMALL)
  params = jax.jit(model.init)(jax.random.key(0), Z, T, LABEL)
  assert not model.apply(params, Z, T, LABEL).any()
  table = params["params"]["position"]["table"]
  np.testing.assert_allclose((table**2).sum(-1), SMALL["width"] / 2, rtol=1e-5)


def total(variant, **fields):
  model = DiT(**decode_variant(variant), grid=(32, 32), **fields)
  z, t, label = jnp.zeros((1, 32, 32, 4)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
  return tree.count(jax.eval_shape(model.init, jax.random.key(0), z, t, label)) / 1e6


def test_parameter_totals_of_the_papers():
  assert abs(total("XL/2", num_classes=1000) - 675.1) < 0.6
  assert abs(total("L/2", num_classes=1000) - 458) < 0.6
  assert total("XL9/2", num_classes=1000) == total("XL/2", num_classes=1000)


def test_presets():
  assert decode_variant("XL/2") == dict(depth=28, width=1152, num_heads=16, patch=2)
  for size in SIZES:
    fields = decode_variant(f"{size}/4")
    assert fields["patch"] == 4
    assert fields["width"] % fields["num_heads"] == 0


@pytest.mark.parametrize("variant", ["XL", "XXL/2", "B/", "B/0", "B/two", ""])
def test_unknown_presets_are_refused(variant):
  with pytest.raises(UserError, match=r"SIZE/PATCH"):
    decode_variant(variant)


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    (dict(num_heads=3), r"width=8 .*num_heads=3"),
    (dict(patch=4), r"\(4, 6\) .*patch=4"),
    (dict(remat="half"), r"remat='half'"),
  ],
)
def test_wrong_fields_are_refused_at_construction(wrong, message):
  with pytest.raises(UserError, match=message):
    DiT(**{**SMALL, **wrong})


def test_bf16_is_close_and_its_output_is_float32():
  args = jax.random.key(0), Z, T, LABEL
  params = ref.random_params(jax.eval_shape(DiT(**SMALL).init, *args), scale=0.15)
  out = DiT(**SMALL, dtype=jnp.bfloat16).apply(params, Z, T, LABEL)
  assert out.dtype == jnp.float32
  np.testing.assert_allclose(out, DiT(**SMALL).apply(params, Z, T, LABEL), atol=0.05)
  assert rearrange(out, "b h w c -> b (h w c)").std() > 0.05
