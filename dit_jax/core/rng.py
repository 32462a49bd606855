"""Randomness is addressed, not carried: a key is a function of (seed, step, image), never of a row.

So a sub-batch, another mesh, gradient accumulation or a resume changes no draw.
"""

import zlib

import jax

from dit_jax.core.typing import Array, Int, Key


def abstract_key() -> jax.ShapeDtypeStruct:
  """The shape of a key, for `jax.eval_shape`."""
  return jax.eval_shape(jax.random.key, 0)


def image_keys(seed: int, step, index: Int[Array, " b"]) -> Key[Array, " b"]:
  """One key per image of the batch of `step`; `step` may be traced."""
  root = jax.random.fold_in(jax.random.key(seed), step)
  return jax.vmap(lambda i: jax.random.fold_in(root, i))(index)


def sample_keys(seed: int, index: Int[Array, " b"]) -> Key[Array, " b"]:
  """One key per generated picture: picture i is a function of (seed, i) alone."""
  root = jax.random.key(seed)
  return jax.vmap(lambda i: jax.random.fold_in(root, i))(index)


def step_key(seed: int, step, name: str) -> Key[Array, ""]:
  """One key for all images of a step: what a batch shares, whatever its rows."""
  root = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
  return jax.random.fold_in(root, step)


def stream(keys: Key[Array, " b"], name: str | int | Array) -> Key[Array, " b"]:
  """An independent stream of every key, by name ("noise", "timestep") or by number."""
  number = zlib.crc32(name.encode()) if isinstance(name, str) else name
  return jax.vmap(lambda k: jax.random.fold_in(k, number))(keys)


def normal(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Array:
  """Standard normal, [b, *shape], row i drawn from key i alone."""
  return jax.vmap(lambda k: jax.random.normal(k, shape))(keys)


def uniform(keys: Key[Array, " b"], shape: tuple[int, ...] = ()) -> Array:
  """Uniform on [0, 1), [b, *shape], row i drawn from key i alone."""
  return jax.vmap(lambda k: jax.random.uniform(k, shape))(keys)
