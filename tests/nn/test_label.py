"""One row a class and one for "no class"."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.nn.label import LabelEmbedder


@pytest.mark.parametrize("num_classes", [0, 1, 10])
def test_the_null_row_is_always_there(num_classes):
  model = LabelEmbedder(num_classes, 6)
  null = jnp.array([num_classes])
  params = model.init(jax.random.key(0), null)
  table = params["params"]["table"]["embedding"]
  assert table.shape == (num_classes + 1, 6)
  np.testing.assert_array_equal(model.apply(params, null)[0], table[-1])


def test_rows_start_small_and_only_the_asked_ones_learn():
  model = LabelEmbedder(200, 64)
  label = jnp.array([3, 200, 3])
  params = model.init(jax.random.key(1), label)
  table = params["params"]["table"]["embedding"]
  assert abs(float(table.std()) - 0.02) < 0.001
  grad = jax.grad(lambda p: model.apply(p, label).sum())(params)["params"]["table"]["embedding"]
  assert set(np.flatnonzero(grad.any(1))) == {3, 200}
  np.testing.assert_array_equal(grad[3], np.full(64, 2.0))
