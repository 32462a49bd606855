"""ProAttention in plain jax.numpy: the definition, differentiable, and what runs on a CPU.

Per head, with n the image's true length, keys of width d and scores s = q k^T / sqrt(d):

(1) M_i = max_j s_ij - mean_j s_ij over U(n) sampled keys measures how far a query's attention is
    from uniform;
(2) the u(n) queries with the largest M, the lower index first among equals, attend to all keys;
(3) every other query gets mean_j v_j.

The counts follow the true length, so what pads an image changes none of its tokens. The choice of
queries has no gradient.
"""

import jax
import jax.numpy as jnp

from dit_jax.core.typing import Array, Bool, Float, Int
from dit_jax.kernels.pro_attention.exact import einsum
from dit_jax.kernels.pro_attention.settings import (
  DEFAULT,
  NEGATIVE,
  UNIFORMS,
  ProSettings,
  check,
  floor_product,
  sampled_keys,
)


def attend(q, k, v, lengths):
  """softmax(q k^T / sqrt(d)) v of u queries, [b, u, h, d] in float32: step (2)."""
  s = einsum("buhd,bnhd->bhun", q, k) * q.shape[-1] ** -0.5
  there = jnp.arange(k.shape[1]) < lengths[:, None]
  p = jax.nn.softmax(jnp.where(there[:, None, None], s, NEGATIVE))
  return einsum("bhun,bnhd->buhd", p.astype(v.dtype), v)


def pro_attention(
  q: Float[Array, "b n h d"],
  k: Float[Array, "b n h d"],
  v: Float[Array, "b n h d"],
  r: Float[Array, "h 64"],
  lengths: Int[Array, " b"] | None = None,
  settings: ProSettings = DEFAULT,
  attend=attend,
) -> Float[Array, "b n h d"]:
  """(3) everywhere but in the rows of (2); rows at or past the image's length are 0.

  Args:
    q: queries.
    k: keys.
    v: values.
    r: uniforms of every head (settings.uniforms), which decide the sampled keys.
    lengths: true lengths; None means n.
    settings: counts and keys.
    attend: computes step (2).

  Raises:
    ValueError: shapes, lengths or settings that do not fit each other.
  """
  check(q, k, v, r, lengths, settings)
  b, n, h, _ = q.shape
  lengths = jnp.full(b, n, jnp.int32) if lengths is None else lengths
  there = jnp.arange(n) < lengths[:, None]
  m = jax.lax.stop_gradient(measure(q, k, r, lengths, settings))
  index, chosen = select(m, lengths, settings)

  place = index.transpose(0, 2, 1)[..., None]  # [b, u, h, 1]
  q_top = jnp.take_along_axis(q, place, axis=1)
  top = attend(q_top, k, v, lengths)

  total = jnp.where(there[..., None, None], v, 0).sum(1, dtype=jnp.float32)
  mean = total / jnp.maximum(lengths, 1)[:, None, None]
  out = jnp.where(there[..., None, None], mean[:, None], 0)
  place = jnp.where(chosen, index, n).transpose(0, 2, 1)  # n is out of bounds, and dropped
  images, heads = jnp.arange(b)[:, None, None], jnp.arange(h)[None, None]
  return out.at[images, place, heads].set(top.astype(jnp.float32), mode="drop").astype(q.dtype)


def measure(
  q: Float[Array, "b n h d"],
  k: Float[Array, "b n h d"],
  r: Float[Array, "h 64"],
  lengths: Int[Array, " b"],
  settings: ProSettings,
) -> Float[Array, "b h n"]:
  """M of (1) in float32; of rows at or past the length, anything finite."""
  b, n, h, d = q.shape
  count = settings.num_keys(n)
  if settings.keys == "shared":
    index = sampled_keys(r, lengths, count).transpose(0, 2, 1)[..., None]
    drawn = jnp.take_along_axis(k, index, axis=1)
    s = einsum("bnhd,buhd->bhnu", q, drawn)
  else:
    drawn = k.transpose(0, 2, 1, 3)[  # U n d elements: why nobody should train with it
      jnp.arange(b)[:, None, None, None],
      jnp.arange(h)[None, :, None, None],
      _keys_of_queries(r, n, lengths, count),
    ]
    s = einsum("bnhd,bhnud->bhnu", q, drawn)
  if not settings.informer_denominator:
    s = s * d**-0.5
  used = settings.num_keys(lengths)[:, None, None]
  valid = jnp.arange(count) < used[..., None]
  divisor = jnp.maximum(lengths, 1)[:, None, None] if settings.informer_denominator else used
  m = jnp.where(valid, s, NEGATIVE).max(-1) - jnp.where(valid, s, 0).sum(-1) / divisor
  return jnp.where(m == 0, 0.0, m)  # a sort would put -0 below 0


def select(
  m: Float[Array, "b h n"], lengths: Int[Array, " b"], settings: ProSettings
) -> tuple[Int[Array, "b h u"], Bool[Array, "b h u"]]:
  """(2): indices of the queries by falling M, and which of them are among the first u(n)."""
  n = m.shape[-1]
  there = jnp.arange(n) < lengths[:, None, None]
  _, index = jax.lax.top_k(jnp.where(there, m, -jnp.inf), settings.num_queries(n))
  rank = jnp.arange(index.shape[-1])
  wanted = jnp.minimum(settings.num_queries(lengths), lengths)[:, None, None]
  return index, jnp.broadcast_to(rank < wanted, index.shape)


def _keys_of_queries(r, n: int, lengths, count: int) -> Int[Array, "b h n u"]:
  """Informer's sampling: every query has uniforms of its own, whatever the capacity n is."""
  seeds = jax.lax.bitcast_convert_type(r[:, 0], jnp.uint32)

  def drawn(seed, i):
    return jax.random.uniform(jax.random.fold_in(jax.random.key(seed), i), (UNIFORMS,))[:count]

  of_head = jax.vmap(drawn, (None, 0))
  own = jax.vmap(of_head, (0, None))(seeds, jnp.arange(n))
  return floor_product(own[None], lengths[:, None, None, None])
