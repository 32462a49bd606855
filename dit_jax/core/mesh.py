"""The names of a mesh's axes, and arrays pinned to them: all that a model knows of devices.

`data` splits the batch, `fsdp` the batch and the parameters, `tensor` heads and hidden features.
"""

import math
from collections.abc import Callable

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from dit_jax.core.typing import Array

AXES = ("data", "fsdp", "tensor")
BATCH_AXES, HEAD_AXES = ("data", "fsdp"), ("tensor",)


def free_axes() -> dict[str, int]:
  """Axes of the mesh in context that the compiler splits over, by name; {} where there is none."""
  mesh = jax.sharding.get_abstract_mesh()
  kinds = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
  return {axis: size for axis, size, kind in kinds if kind == AxisType.Auto}


def dividing(axes: tuple[str, ...], size: int) -> tuple[str, ...] | None:
  """Those of the axes that are free, if `size` splits evenly over them; else None."""
  free = free_axes()
  own = tuple(axis for axis in axes if axis in free)
  return own if own and size % math.prod(free[axis] for axis in own) == 0 else None


def pin_rows(x: Array) -> Array:
  """x with its rows over the batch axes and whole rows on each device.

  Left alone, the compiler may split activations as the parameters are, and then moves activations
  instead of parameters.
  """
  axes = dividing(BATCH_AXES, x.shape[0])
  return x if axes is None else jax.lax.with_sharding_constraint(x, P(axes))


def by_rows(fn: Callable[[Array], Array]) -> Callable[[Array], Array]:
  """`fn` of each device's own rows: for what the compiler splits over no rows, such as an FFT.

  Left alone, it would gather the rows of all devices on every one of them.

  Args:
    fn: [b, ...] -> [b, ...], each row by itself; b is any number of rows.
  """

  def own(x):
    axes = dividing(BATCH_AXES, x.shape[0])
    if axes is None:
      return fn(x)
    free = set(free_axes())
    own_rows = dict(in_specs=P(axes), out_specs=P(axes), axis_names=free, check_vma=False)
    return jax.shard_map(fn, **own_rows)(x)

  return own
