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
  path = directory / (name or "none")
  try:
    have = stored.shapes(path) if name else {}
    stored.refuse_difference({"frozen": have}, {"frozen": abstract}, path)
    tree = stored.read(path, stored.nested(abstract)) if name else {}
  except UserError:
    raise
  except Exception as e:  # orbax raises whatever its readers met
    raise UserError(f"frozen weights {path} cannot be read ({e}); put back a copy.") from e
  if name and trees.content_hash(stored.host(tree)) != name:
    raise UserError(f"frozen weights {path} are damaged (their hash differs); put back a copy.")
  return stored.like(abstract, tree)
