"""Programs of a fixed number of rows on every device: what each row gets depends on nothing else.

More devices only change how many such programs run at once, so results are equal by construction
where a program split over devices would round differently.
"""

from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P


class Rows:
  """`per_device` rows on each of the devices.

  Attributes:
    total: rows of a call.
  """

  def __init__(self, per_device: int, devices=None):
    devices = jax.local_devices() if devices is None else devices
    self.mesh = jax.make_mesh((len(devices),), ("row",), (AxisType.Auto,), devices=devices)
    self.per_device, self.total = per_device, per_device * len(devices)

  def jit(self, fn, num_scalars: int = 0):
    """Jits fn(params, rows, *scalars): every device calls it with its own rows.

    Args:
      fn: params and scalars are whole on every device; the trees of rows lead with the rows.
      num_scalars: how many scalars there are.
    """
    specs = (P(), P("row"), *(P(),) * num_scalars)
    local = jax.shard_map(fn, mesh=self.mesh, in_specs=specs, out_specs=P("row"), check_vma=False)
    return jax.jit(local, out_shardings=self._over("row"))

  def run(self, fn, params, rows: dict, *scalars) -> np.ndarray:
    """What a function that `jit` made gives for any number of rows, on the host.

    Args:
      fn: (params, rows, *scalars) -> an array that leads with the rows.
      params: as for `everywhere`.
      rows: tree of host arrays, [n, ...].
    """
    params, count = self.everywhere(params), len(jax.tree.leaves(rows)[0])
    made = []
    for places, chunk in self.chunks(rows, np.arange(count)):
      made.append(np.asarray(fn(params, chunk, *scalars))[: len(places)])
    return np.concatenate(made)

  def chunks(self, rows: dict, members: np.ndarray) -> Iterator[tuple[np.ndarray, dict]]:
    """Members and their rows, a call's number at a time; the last row is repeated to fill it."""
    for start in range(0, len(members), self.total):
      places = members[start : start + self.total]
      take = np.pad(places, (0, self.total - len(places)), mode="edge")
      yield places, jax.tree.map(lambda x, take=take: np.asarray(x)[take], rows)

  def everywhere(self, params):
    """Parameters read on one device, or split over a training mesh, on every device of this one."""
    return jax.device_put(params, self._over())

  def shapes(self, params, rows):
    """ShapeDtypeStructs of arrays as `jit` takes them, to compile for."""
    place = lambda where: lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
    return jax.tree.map(place(self._over()), params), jax.tree.map(place(self._over("row")), rows)

  def _over(self, *axes) -> NamedSharding:
    return NamedSharding(self.mesh, P(*axes))
