"""The bodies of the TPU kernels: what one program does with a head; see tpu.py for the whole.

`plan` has the static shapes. A head's matrices are [rows, d], a slot's are [slots, d].
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from dit_jax.kernels.pro_attention.exact import dot
from dit_jax.kernels.pro_attention.settings import NEGATIVE

LANES = 128  # rows of Q handled at once, and the width of a vector register


def forward(
  plan,
  counts,
  drawn_ref,
  q_ref,
  k_ref,
  v_ref,
  out_ref,
  q_top_ref,
  top_ref,
  lse_ref,
  slot_ref,
  m_ref,
):
  length, wanted, used = counts[0, 0], counts[0, 1], counts[0, 2]
  chunks, scale = plan.rows // LANES, plan.d**-0.5
  drawn = drawn_ref[...]
  divisor = jnp.maximum(length if plan.informer else used, 1).astype(jnp.float32)

  @functools.partial(jax.lax.fori_loop, 0, chunks, init_val=None)
  def _(c, _):
    s = dot(drawn, q_ref[_rows(c)], (1, 1))  # [keys, LANES]
    s = s if plan.informer else s * scale
    valid = jax.lax.broadcasted_iota(jnp.int32, s.shape, 0) < used
    largest = jnp.where(valid, s, NEGATIVE).max(0, keepdims=True)
    m_ref[pl.ds(c, 1)] = largest - jnp.where(valid, s, 0).sum(0, keepdims=True) / divisor

  slot_ref[...] = _slots(m_ref[...], length, wanted, plan.slots)

  def gather(c, q_top):
    return q_top + dot(_one_hot(plan, slot_ref, c, q_ref.dtype, mean=False), q_ref[_rows(c)])

  q_top = jax.lax.fori_loop(0, chunks, gather, jnp.zeros((plan.slots, plan.d), jnp.float32))
  q_top = q_top.astype(q_ref.dtype)
  q_top_ref[...] = q_top

  def over_keys(i, carry):
    peak, total, top = carry
    s = _scores(plan, q_top, k_ref[_rows(i, plan.block_k)], i, length)
    new = jnp.maximum(peak, s.max(1, keepdims=True))
    p, fade = jnp.exp(s - new), jnp.exp(peak - new)
    top = top * fade + dot(p.astype(v_ref.dtype), v_ref[_rows(i, plan.block_k)])
    return new, total * fade + p.sum(1, keepdims=True), top

  column = (plan.slots, 1)
  start = jnp.full(column, 2 * NEGATIVE), jnp.zeros(column), jnp.zeros((plan.slots, plan.d))
  peak, total, top = jax.lax.fori_loop(0, plan.rows // plan.block_k, over_keys, start)
  lse_ref[...] = peak + jnp.log(total)
  top = top / total
  top_ref[...] = top
  top = top.astype(out_ref.dtype)

  @functools.partial(jax.lax.fori_loop, 0, chunks, init_val=None)
  def _(c, _):
    one_hot = _one_hot(plan, slot_ref, c, out_ref.dtype)
    out_ref[_rows(c)] = dot(one_hot, top, (0, 0)).astype(out_ref.dtype)


def backward(
  plan, counts, k_ref, v_ref, q_top_ref, top_ref, lse_ref, slot_ref, g_ref, dq_ref, dk_ref, dv_ref
):
  length, scale = counts[0, 0], plan.d**-0.5
  chunks = plan.rows // LANES
  zeros = jnp.zeros((plan.slots, plan.d), jnp.float32)

  def gather(c, g_top):
    return g_top + dot(_one_hot(plan, slot_ref, c, g_ref.dtype), g_ref[_rows(c)])

  g_top = jax.lax.fori_loop(0, chunks, gather, zeros)
  delta = (g_top * top_ref[...]).sum(1, keepdims=True)
  q_top, lse, g_low = q_top_ref[...], lse_ref[...], g_top.astype(g_ref.dtype)

  def over_keys(i, dq_top):
    at = _rows(i, plan.block_k)
    p = jnp.exp(_scores(plan, q_top, k_ref[at], i, length) - lse)
    dv_ref[at] = dot(p.astype(g_low.dtype), g_low, (0, 0)).astype(dv_ref.dtype)
    ds = p * (dot(g_low, v_ref[at], (1, 1)) - delta) * scale
    ds = ds.astype(k_ref.dtype)
    dk_ref[at] = dot(ds, q_top, (0, 0)).astype(dk_ref.dtype)
    return dq_top + dot(ds, k_ref[at])

  dq_top = jax.lax.fori_loop(0, plan.rows // plan.block_k, over_keys, zeros)
  dq_top = dq_top.astype(dq_ref.dtype)

  @functools.partial(jax.lax.fori_loop, 0, chunks, init_val=None)
  def _(c, _):
    one_hot = _one_hot(plan, slot_ref, c, dq_ref.dtype, mean=False)
    dq_ref[_rows(c)] = dot(one_hot, dq_top, (0, 0)).astype(dq_ref.dtype)


def _slots(m, length, wanted, slots: int):
  """The slot of every row, [chunks, LANES]: the `wanted` largest of m in order of their rows."""
  chunks = m.shape[0]
  row = jax.lax.broadcasted_iota(jnp.int32, m.shape, 0) * LANES
  row += jax.lax.broadcasted_iota(jnp.int32, m.shape, 1)
  there = row < length
  bits = jax.lax.bitcast_convert_type(jnp.where(m == 0, 0.0, m), jnp.int32)  # no -0
  lowest = jnp.int32(-(2**31))
  order = jnp.where(there, bits ^ ((bits >> 31) & 0x7FFFFFFF), lowest)  # ascends as m does

  edge = jnp.full((1, 1), lowest)  # grows to the wanted-th largest, four bits at a time
  for shift in range(28, -4, -4):
    digit = jnp.zeros((1, 1), jnp.int32)
    for value in range(1, 16):
      above = order >= edge + jnp.int32((value << shift) - (value >> 3 << 32 if shift == 28 else 0))
      digit += (_count(above) >= wanted).astype(jnp.int32)
    edge += digit << shift
  greater, equal = there & (order > edge), there & (order == edge)
  chosen = greater | (equal & (_before(equal, chunks) < wanted - _count(greater)))
  chosen &= wanted > 0
  return jnp.where(chosen, _before(chosen, chunks), jnp.where(there, slots - 1, -1))


def _count(mask):
  return mask.astype(jnp.int32).sum((0, 1), keepdims=True)


def _before(mask, chunks: int):
  """How many are set before each place, row by row; sums of 0 and 1, exact in any precision."""
  ones = mask.astype(jnp.float32)
  earlier = lambda size: (
    jax.lax.broadcasted_iota(jnp.int32, (size, size), 0)
    < jax.lax.broadcasted_iota(jnp.int32, (size, size), 1)
  ).astype(jnp.float32)
  within = dot(ones, earlier(LANES))
  above = dot(earlier(chunks), ones, (0, 0)).sum(1, keepdims=True)
  return (within + above).astype(jnp.int32)


def _one_hot(plan, slot_ref, c, dtype, mean: bool = True):
  """[slots, LANES]: 1 where the row's slot is; without `mean`, not in the last slot."""
  slot = jax.lax.broadcasted_iota(jnp.int32, (plan.slots, LANES), 0)
  match = slot == slot_ref[pl.ds(c, 1)]
  return (match if mean else match & (slot < plan.slots - 1)).astype(jnp.float32).astype(dtype)


def _scores(plan, q_top, keys, i, length):
  s = dot(q_top, keys, (1, 1)) * plan.d**-0.5
  place = jax.lax.broadcasted_iota(jnp.int32, s.shape, 1) + i * plan.block_k
  return jnp.where(place < length, s, NEGATIVE)


def _rows(i, size: int = LANES):
  return pl.ds(pl.multiple_of(i * size, size), size)
