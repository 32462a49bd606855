"""Where arrays live: a mesh of three named axes, and rules from a path to a split.

Models never see a mesh, only the names of its axes (core.mesh).
"""

import math
import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dit_jax.core import tree as trees
from dit_jax.core.errors import UserError
from dit_jax.core.mesh import AXES, BATCH_AXES

RULES = (  # of a mesh whose tensor axis is larger than 1: heads and hidden features are split
  (r".*/(attn/qkv|mlp/in)/kernel", ("fsdp", "tensor")),
  (r".*/(attn/qkv|mlp/in)/bias", ("tensor",)),
  (r".*/(attn/proj|mlp/out)/kernel", ("tensor", "fsdp")),
)
BIG = 2**16  # elements; below this a gather costs more than the memory it saves


def make_mesh(sizes, devices=None) -> Mesh:
  """A (data, fsdp, tensor) mesh over all devices.

  Args:
    sizes: mapping axis -> size; a missing axis is 1, one axis may be -1: the rest.
    devices: the devices to use; None takes `jax.devices()`.

  Raises:
    UserError: unknown axis, or sizes that do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes, given = {axis: 1 for axis in AXES} | dict(sizes), dict(sizes)
  if unknown := sorted(set(sizes) - set(AXES)):
    raise UserError(f"mesh has unknown axis {unknown[0]!r}; the axes are {', '.join(AXES)}.")
  free = [axis for axis in AXES if sizes[axis] == -1]
  fixed = math.prod(size for size in sizes.values() if size != -1)
  if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
    raise UserError(f"mesh={given}: every size must be positive, and at most one -1 (the rest).")
  if free and len(devices) % fixed == 0:
    sizes[free[0]] = len(devices) // fixed
  if math.prod(sizes.values()) != len(devices):
    raise UserError(
      f"mesh={given} does not fit {len(devices)} devices: the sizes must multiply to "
      f"{len(devices)}; mesh.data=-1 takes what the other axes leave."
    )
  shape = tuple(sizes[axis] for axis in AXES)
  return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def infer(shapes, mesh: Mesh, rules=()):
  """A tree of NamedShardings: the first rule that matches wins, else the default.

  The default splits the largest dimension that fsdp divides, of leaves with at least 65,536
  elements; everything else is on every device.

  Args:
    shapes: tree of arrays or ShapeDtypeStructs.
    mesh: from `make_mesh`.
    rules: pairs (regex over the whole path "params/block_0/mlp/in/kernel", spec), a spec being
      a tuple with an axis name, a tuple of names or None a dimension; () replicates. RULES come
      after them where tensor > 1, on arrays that they divide.

  Raises:
    UserError: a rule that names an unknown axis, has too many dimensions or does not divide.
  """

  def decide(path, leaf):
    name = trees.path_name(path)
    for pattern, spec in rules:
      if re.fullmatch(pattern, name):
        return NamedSharding(mesh, _checked(name, leaf.shape, pattern, spec, mesh))
    for pattern, spec in RULES if mesh.shape["tensor"] > 1 else ():
      if re.fullmatch(pattern, name) and _divides(leaf.shape, spec, mesh):
        return NamedSharding(mesh, P(*spec))
    return NamedSharding(mesh, _default(leaf.shape, mesh.shape["fsdp"]))

  return jax.tree_util.tree_map_with_path(decide, shapes)


def placed(shapes, places):
  """Shapes with their places, as `jit(...).lower` and checkpoints take them."""
  return jax.tree.map(
    lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, places
  )


def describe(shapes, shardings) -> list[str]:
  """One line a leaf, "params/head/kernel [1024, 64] split over ('fsdp', None)", for the log."""
  specs = trees.flatten(shardings)
  return [
    f"{name} {list(leaf.shape)} "
    + (f"split over {tuple(spec)}" if any(spec := specs[name].spec) else "on every device")
    for name, leaf in trees.flatten(shapes).items()
  ]


def _default(shape, fsdp: int) -> P:
  if fsdp == 1 or math.prod(shape) < BIG:
    return P()
  fits = [i for i, size in enumerate(shape) if size % fsdp == 0]
  if not fits:
    return P()
  best = max(fits, key=lambda i: (shape[i], i))
  return P(*("fsdp" if i == best else None for i in range(len(shape))))


def _divides(shape, spec, mesh) -> bool:
  if len(shape) != len(spec):
    return False
  return all(a is None or n % mesh.shape[a] == 0 for n, a in zip(shape, spec, strict=True))


def _checked(name, shape, pattern, spec, mesh) -> P:
  rule = f"sharding rule {pattern!r} -> {spec} for {name} {list(shape)}"
  if len(spec) > len(shape):
    raise UserError(f"{rule}: {len(spec)} dimensions for an array of {len(shape)}.")
  for size, axes in zip(shape, spec, strict=False):
    axes = () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)
    if unknown := [axis for axis in axes if axis not in AXES]:
      raise UserError(f"{rule}: unknown axis {unknown[0]!r}; the axes are {', '.join(AXES)}.")
    shards = math.prod(mesh.shape[axis] for axis in axes)
    if size % shards:
      raise UserError(f"{rule}: {size} is not a multiple of the {shards} shards of {axes}.")
  return P(*spec)


def replicated(mesh: Mesh) -> NamedSharding:
  """On every device."""
  return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over data x fsdp."""
  return NamedSharding(mesh, P(BATCH_AXES))


def num_shards(mesh: Mesh) -> int:
  """Into how many parts the rows of a batch are cut."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch(batch_size: int, accum: int, mesh: Mesh) -> None:
  """Refuses a global batch that does not split evenly.

  Raises:
    UserError: `batch_size` is not a positive multiple of data x fsdp x accum.
  """
  shards, processes = num_shards(mesh), jax.process_count()
  if shards % processes:
    raise UserError(
      f"the mesh has {shards} data x fsdp shards for {processes} processes; every process reads "
      "rows of its own, so the shards must be a multiple of the processes: lower mesh.tensor."
    )
  unit = shards * accum
  if accum < 1 or batch_size < 1 or batch_size % unit:
    nearest = max(unit, round(batch_size / unit) * unit) if accum >= 1 else batch_size
    raise UserError(
      f"{batch_size=} (global) must be a positive multiple of {shards} data x fsdp shards x "
      f"{accum=} micro-batches; nearest is {nearest}."
    )


def put_batch(batch: dict, mesh: Mesh) -> dict:
  """The rows that this process read, as global arrays split over data x fsdp."""
  place = batch_sharding(mesh)
  put = lambda rows: jax.make_array_from_process_local_data(place, np.asarray(rows))
  return jax.tree.map(put, batch)
