"""The feed-forward half against numpy."""

import jax
import numpy as np
import numpy_dit as ref
import pytest

from dit_jax.nn.mlp import MLP


@pytest.mark.parametrize("ratio", [2, 4])
def test_matches_numpy(ratio):
  x = jax.random.normal(jax.random.key(0), (2, 3, 8))
  layer = MLP(ratio)
  params = ref.random_params(layer.init(jax.random.key(0), x))
  p = ref.as_float64(params["params"])
  assert p["in"]["kernel"].shape == (8, 8 * ratio)
  want = ref.dense(p["out"], ref.gelu(ref.dense(p["in"], np.float64(x))))
  np.testing.assert_allclose(layer.apply(params, x), want, atol=1e-5)
