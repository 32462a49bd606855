"""Trees on disk: nested dicts of names, compared leaf by leaf before anything is read."""

import jax
import orbax.checkpoint as ocp
from flax import traverse_util
from jax.experimental import multihost_utils

from dit_jax.core import tree as trees
from dit_jax.core.errors import UserError


def nested(tree) -> dict:
  """A tree as nested dicts of path names."""
  return traverse_util.unflatten_dict(trees.flatten(tree), sep="/")


def like(abstract, nested: dict):
  """The leaves of nested dicts in the structure of `abstract`."""
  flat = traverse_util.flatten_dict(nested, sep="/")
  leaves = [flat[name] for name in trees.flatten(abstract)]
  return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def shapes(path) -> dict:
  """Shapes and dtypes of a stored tree, as nested dicts of ShapeDtypeStructs."""
  stored = ocp.StandardCheckpointHandler().metadata(path)
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), dict(stored.tree))


def read(path, abstract, sharding=None):
  """Reads a stored tree.

  Args:
    path: of the tree.
    abstract: nested dicts of ShapeDtypeStructs; each leaf goes to its own sharding.
    sharding: for leaves that have none; None is the first local device.
  """
  default = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  abstract = jax.tree.map(
    lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=s.sharding or default), abstract
  )
  with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
    return checkpointer.restore(path, args=ocp.args.StandardRestore(abstract))


def refuse_difference(stored: dict, wanted: dict, path) -> None:
  """Refuses a checkpoint of another model; orbax would cast, or restore a part, without a word."""
  if first := differences(stored, wanted):
    raise UserError(
      f"checkpoint {path} is of another model, stored -> wanted: {first}; "
      "use the config it was trained with, or a new workdir."
    )


def differences(stored: dict, wanted: dict) -> str:
  """The first five paths whose shape or dtype differs, and how many more; "" for none."""
  old, new = trees.flatten(stored), trees.flatten(wanted)
  found = []
  for name in [*new, *(name for name in old if name not in new)]:
    a, b = (_kind(tree[name]) if name in tree else "absent" for tree in (old, new))
    if a != b:
      found.append(f"{name}: {a} -> {b}")
  return "; ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")


def _kind(leaf) -> str:
  return f"{jax.numpy.dtype(leaf.dtype).name}{list(leaf.shape)}"


def host(tree):
  """Whole arrays on this host, also of leaves that other hosts hold."""
  whole = lambda x: (
    x if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True)
  )
  return jax.tree.map(whole, tree)
