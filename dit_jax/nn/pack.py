"""Sequences of several lengths side by side, so that what works token by token runs once for all.

A batch of `groups` equal groups, each of which has rows of several lengths, is one array
[groups, tokens, d]: group after group, in it part after part, in it row after row. Only attention
needs the rows, and takes the parts one by one.
"""

import dataclasses

import jax.numpy as jnp
from einops import rearrange, repeat

from dit_jax.core.mesh import pin_rows
from dit_jax.core.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class Pack:
  """The shapes of a packed batch.

  Attributes:
    groups: equal groups of rows.
    parts: (rows, tokens of a row) of every part of a group.
  """

  groups: int
  parts: tuple[tuple[int, int], ...]

  def rows(self, x: Float[Array, "b ..."]) -> list[Array]:
    """The rows of every part, [groups x rows, ...], of an array with one row an image."""
    by_group, out, start = rearrange(x, "(s l) ... -> s l ...", s=self.groups), [], 0
    for rows, _ in self.parts:
      part = by_group[:, start : start + rows]
      out.append(pin_rows(rearrange(part, "s l ... -> (s l) ...")))
      start += rows
    return out

  def unrows(self, parts: list[Array]) -> Array:
    """The inverse of `rows`."""
    by_group = [rearrange(x, "(s l) ... -> s l ...", s=self.groups) for x in parts]
    return pin_rows(rearrange(jnp.concatenate(by_group, axis=1), "s l ... -> (s l) ..."))

  def split(self, x: Float[Array, "s t ..."]) -> list[Array]:
    """The sequences of every part, [groups x rows, tokens, ...], of a packed array."""
    out, start = [], 0
    for rows, n in self.parts:
      part = x[:, start : start + rows * n]
      out.append(pin_rows(rearrange(part, "s (l n) ... -> (s l) n ...", n=n)))
      start += rows * n
    return out

  def join(self, parts: list[Array]) -> Array:
    """The inverse of `split`."""
    flat = [rearrange(x, "(s l) n ... -> s (l n) ...", s=self.groups) for x in parts]
    return pin_rows(jnp.concatenate(flat, axis=1))

  def spread(self, x: Float[Array, "b d"]) -> Float[Array, "s t d"]:
    """A row's vector at each of its tokens."""
    shapes = zip(self.rows(x), self.parts, strict=True)
    return self.join([repeat(part, "b d -> b n d", n=n) for part, (_, n) in shapes])
