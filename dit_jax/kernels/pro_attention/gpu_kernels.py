"""The bodies of the GPU kernels: what one program does; see gpu.py for the whole.

`plan` has the static shapes. A head's rows are [n, d] seen as [n, wide]; what is outside is masked
at every access. `counts` holds an image's length, its selected queries and its sampled keys.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from dit_jax.kernels.pro_attention.exact import dot
from dit_jax.kernels.pro_attention.settings import NEGATIVE


def measure(plan, counts, drawn_ref, q_ref, m_ref):
  length, used = counts[0], counts[2]
  start, size = pl.program_id(2) * plan.tiles.block_q, plan.tiles.block_q
  s = dot(_load(plan, q_ref, start, size), _load(plan, drawn_ref, 0, plan.keys), (1, 1))
  s = s if plan.informer else s * plan.d**-0.5
  valid = (jnp.arange(plan.keys) < used)[None]
  divisor = jnp.maximum(length if plan.informer else used, 1).astype(jnp.float32)
  m = jnp.where(valid, s, NEGATIVE).max(1) - jnp.where(valid, s, 0.0).sum(1) / divisor
  plgpu.store(m_ref.at[pl.ds(start, size)], m, mask=start + jnp.arange(size) < plan.n)


def select(plan, counts, m_ref, _, slot_ref, index_ref):
  length, wanted = counts[0], counts[1]
  row = jnp.arange(m_ref.shape[0])
  there = row < length
  m = plgpu.load(m_ref, mask=row < plan.n, other=0.0)
  bits = jax.lax.bitcast_convert_type(jnp.where(m == 0, 0.0, m), jnp.int32)  # no -0
  lowest = -(2**31)
  order = jnp.where(there, bits ^ ((bits >> 31) & 0x7FFFFFFF), lowest)  # ascends as m does

  def next_bit(i, edge):  # grows to the wanted-th largest; the first bit wraps to 0
    higher = edge + (jnp.int32(1) << (31 - i))
    return jnp.where((order >= higher).astype(jnp.int32).sum() >= wanted, higher, edge)

  edge = jax.lax.fori_loop(0, 32, next_bit, jnp.int32(lowest))
  greater, equal = there & (order > edge), there & (order == edge)
  before = lambda mask: jnp.cumsum(mask.astype(jnp.int32)) - mask.astype(jnp.int32)
  left = wanted - greater.astype(jnp.int32).sum()
  chosen = (greater | (equal & (before(equal) < left))) & (wanted > 0)
  slot = jnp.where(chosen, before(chosen), plan.slots - 1)
  plgpu.store(index_ref.at[slot], row, mask=chosen)
  plgpu.store(slot_ref, jnp.where(there, slot, -1), mask=row < plan.n)


def attend(plan, counts, index_ref, q_ref, k_ref, v_ref, top_ref, lse_ref):
  length, size = counts[0], plan.tiles.block_k
  q_top = _gather(plan, q_ref, index_ref[...])
  start, stop = _keys_of_program(plan)

  def over_keys(i, carry):
    peak, total, top = carry
    at = start + i * size
    s = _scores(plan, q_top, _load(plan, k_ref, at, size), at, length)
    new = jnp.maximum(peak, s.max(1))
    p, fade = jnp.exp(s - new[:, None]), jnp.exp(peak - new)
    top = top * fade[:, None] + dot(p.astype(v_ref.dtype), _load(plan, v_ref, at, size))
    return new, total * fade + p.sum(1), top

  first = jnp.full(plan.slots, 2 * NEGATIVE), jnp.zeros(plan.slots)
  first = (*first, jnp.zeros((plan.slots, plan.wide)))
  peak, total, top = jax.lax.fori_loop(0, pl.cdiv(stop - start, size), over_keys, first)
  lse_ref[...] = peak + jnp.log(total)
  columns = jnp.arange(plan.wide) < plan.d
  plgpu.store(top_ref, top / total[:, None], mask=columns[None])


def scatter(plan, slot_ref, top_ref, out_ref):
  start, size = pl.program_id(2) * plan.tiles.block_q, plan.tiles.block_q
  slot = _slots_at(plan, slot_ref, start, size)
  inside = (start + jnp.arange(size) < plan.n)[:, None]
  mask = inside & (jnp.arange(plan.wide) < plan.d)[None]
  plgpu.store(out_ref.at[pl.ds(start, size)], _gather(plan, top_ref, slot), mask=mask)


def rest(plan, slot_ref, g_ref, rest_ref):
  """The sum of g over the rows that got the mean."""
  start, size = pl.program_id(2) * plan.tiles.block_q, plan.tiles.block_q
  mine = _slots_at(plan, slot_ref, start, size) == plan.slots - 1
  g = _load(plan, g_ref, start, size).astype(jnp.float32)
  total = jnp.where(mine[:, None], g, 0.0).sum(0)
  plgpu.store(rest_ref, total, mask=jnp.arange(plan.wide) < plan.d)


def backward(
  plan,
  counts,
  index_ref,
  q_ref,
  k_ref,
  v_ref,
  g_ref,
  top_ref,
  lse_ref,
  rest_ref,
  dq_ref,
  dk_ref,
  dv_ref,
):
  length, size, scale = counts[0], plan.tiles.block_k, plan.d**-0.5
  index, columns = index_ref[...], jnp.arange(plan.wide) < plan.d
  q_top = _gather(plan, q_ref, index)
  rest = plgpu.load(rest_ref, mask=columns, other=0.0)
  last = jnp.arange(plan.slots) == plan.slots - 1
  g_top = _gather(plan, g_ref, index).astype(jnp.float32)
  g_top = jnp.where(last[:, None], rest[None], g_top)
  delta = (g_top * _load(plan, top_ref, 0, plan.slots)).sum(1)
  lse, g_low = lse_ref[...], g_top.astype(g_ref.dtype)
  start, stop = _keys_of_program(plan)

  def over_keys(i, dq_top):
    at = start + i * size
    keys, values = _load(plan, k_ref, at, size), _load(plan, v_ref, at, size)
    p = jnp.exp(_scores(plan, q_top, keys, at, length) - lse[:, None])
    ds = p * (dot(g_low, values, (1, 1)) - delta[:, None]) * scale
    ds = ds.astype(keys.dtype)
    mask = (at + jnp.arange(size) < plan.n)[:, None] & columns[None]
    for ref, x in (
      (dv_ref, dot(p.astype(g_low.dtype), g_low, (0, 0))),
      (dk_ref, dot(ds, q_top, (0, 0))),
    ):
      plgpu.store(ref.at[pl.ds(at, size)], x.astype(ref.dtype), mask=mask)
    return dq_top + dot(ds, keys)

  steps = pl.cdiv(stop - start, size)
  dq_top = jax.lax.fori_loop(0, steps, over_keys, jnp.zeros((plan.slots, plan.wide)))
  plgpu.store(dq_ref, dq_top, mask=columns[None])


def _keys_of_program(plan):
  start = pl.program_id(2) * plan.tiles.keys_a_program
  return start, jnp.minimum(start + plan.tiles.keys_a_program, plan.n)


def _load(plan, ref, start, size: int):
  """`size` rows from `start`; zeros past the array."""
  mask = (start + jnp.arange(size) < ref.shape[0])[:, None] & (jnp.arange(plan.wide) < plan.d)[None]
  return plgpu.load(ref.at[pl.ds(start, size)], mask=mask, other=0.0)


def _gather(plan, ref, index):
  """The rows of an index; zeros where it is negative."""
  columns = jnp.arange(plan.wide)
  mask = (index >= 0)[:, None] & (columns < plan.d)[None]
  rows = jnp.broadcast_to(jnp.maximum(index, 0)[:, None], mask.shape)
  return plgpu.load(ref.at[rows, jnp.broadcast_to(columns[None], mask.shape)], mask=mask, other=0.0)


def _slots_at(plan, slot_ref, start, size: int):
  inside = start + jnp.arange(size) < plan.n
  return plgpu.load(slot_ref.at[pl.ds(start, size)], mask=inside, other=-1)


def _scores(plan, q_top, keys, start, length):
  s = dot(q_top, keys, (1, 1)) * plan.d**-0.5
  there = start + jnp.arange(keys.shape[0]) < length
  return jnp.where(there[None], s, NEGATIVE)
