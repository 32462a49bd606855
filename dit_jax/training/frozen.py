"""Parameters that never change (LPIPS, a frozen base): one folder a content, named by its hash."""

import jax
import orbax.checkpoint as ocp

from dit_jax.core import tree as trees
from dit_jax.core.errors import UserError
from dit_jax.training import stored


def save(directory, tree) -> str:
  """Writes a tree unless its hash is there already.

  Args:
    directory: of all frozen trees.
    tree: arrays, on any mesh.

  Returns:
    The hash, which is the folder's name; "" for a tree without leaves.
  """
  if not jax.tree.leaves(tree):
    return ""
  nested = stored.nested(tree)
  name = trees.content_hash(stored.host(nested))
  if not (directory / name).exists():
    with ocp.StandardCheckpointer() as checkpointer:
      checkpointer.save(directory / name, nested)
  return name


def restore(directory, name: str, abstract):
  """The tree that `save` called `name`.

  Args:
    directory: of all frozen trees.
    name: the hash, "" for a tree without leaves.
    abstract: the tree wanted, of ShapeDtypeStructs whose shardings say where arrays go.

  Raises:
    UserError: it is not the tree wanted, or its files are missing or damaged.
  """
  return stored.like(abstract, _verified(directory, name, abstract, None))


def read(directory, name: str, sharding=None) -> dict:
  """The tree that `save` called `name`, as nested dicts, whatever it is.

  Args:
    directory, name: as for `restore`.
    sharding: one for every leaf; None is the first local device.

  Raises:
    UserError: its files are missing or damaged.
  """
  return _verified(directory, name, None, sharding)


def _verified(directory, name: str, abstract, sharding) -> dict:
  path = directory / (name or "none")
  try:
    have = stored.shapes(path) if name else {}
    if abstract is not None:
      stored.refuse_difference({"frozen": have}, {"frozen": abstract}, path)
      have = stored.nested(abstract)
    tree = stored.read(path, have, sharding) if name else {}
  except UserError:
    raise
  except Exception as e:  # orbax raises whatever its readers met
    raise UserError(f"frozen weights {path} cannot be read ({_line(e)}); put back a copy.") from e
  if name and trees.content_hash(stored.host(tree)) != name:
    raise UserError(f"frozen weights {path} are damaged (their hash differs); put back a copy.")
  return tree


def _line(error: Exception) -> str:
  return " ".join(str(error).split())
