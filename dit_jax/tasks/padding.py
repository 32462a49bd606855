"""What static shapes cost: executed over ideal FLOPs of the content transformer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.core import buckets, flops
from dit_jax.core.slots import Slots
from dit_jax.models.dct import DCT


def forward_flops(model: DCT, tokens: np.ndarray) -> np.ndarray:
  """FLOPs of one image's forward pass at each number of refined tokens, float64.

  A quadratic polynomial, exactly: attention is quadratic in the tokens and all else linear.
  """
  most = model.grid[0] * model.grid[1]
  return np.polyval(_fitted(model), np.asarray(tokens) / most)


def overhead(model: DCT, tokens: np.ndarray, slots: Slots) -> float:
  """Executed over ideal FLOPs of an epoch, 1 or more.

  Args:
    model: of the stage.
    tokens: refined tokens of every image.
    slots: of the steps.
  """
  executed = np.average(forward_flops(model, slots.capacities), weights=slots.counts)
  return float(executed / forward_flops(model, tokens).mean())


@functools.cache
def _fitted(model: DCT) -> np.ndarray:
  most = model.grid[0] * model.grid[1]
  at = np.array([most // 4, most // 2, most])
  return np.polyfit(at / most, [float(_traced(model, int(n))) for n in at], 2)


def _traced(model: DCT, capacity: int) -> int:
  p = model.factors[-1] // model.factors[0]
  regions = np.zeros((1, model.grid[0] // p, model.grid[1] // p), np.int32)

  def forward(params, *args):
    return model.apply(params, *args)

  index = jax.eval_shape(
    lambda: jax.tree.map(jnp.asarray, buckets.token_index(regions, model.factors, capacity))
  )
  args = (
    jax.ShapeDtypeStruct((1, *model.grid, model.z_channels), jnp.float32),
    jax.ShapeDtypeStruct((1,), jnp.float32),
    jax.ShapeDtypeStruct((1,), jnp.int32),
    jax.ShapeDtypeStruct(regions.shape, jnp.int32),
    index,
  )
  params = jax.eval_shape(model.init, jax.random.key(0), *args)
  return flops.count(forward, params, *args)
