"""Paths, sizes and hashes of parameter trees."""

import hashlib

import jax
import numpy as np


def flatten(tree) -> dict[str, object]:
  """Leaves by path, "decoder/conv_out/kernel", in the tree's own order."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {path_name(path): leaf for path, leaf in leaves}


def path_name(path) -> str:
  """A jax key path as "a/b/0"."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def count(tree) -> int:
  """Number of scalars in a tree of arrays or of ShapeDtypeStructs."""
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


def content_hash(tree) -> str:
  """Sixteen hex digits over every path, shape, dtype and byte."""
  digest = hashlib.sha256()
  for name, leaf in sorted(flatten(tree).items()):
    x = np.asarray(leaf)
    digest.update(f"{name}:{x.shape}:{x.dtype}".encode())
    digest.update(np.ascontiguousarray(x).reshape(-1).view(np.uint8))  # without a copy
  return digest.hexdigest()[:16]
