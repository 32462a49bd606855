"""ProAttention for NVIDIA GPUs, in Pallas (Triton).

The unselected queries' answer, the mean of V, is what a query of zeros attends to. So a head is
attention of u + 1 queries, the last of them zero, in four kernels that read Q, K and V and write
the result once each: (1) M of every row, [n] numbers; (2) a radix select, which finds the u-th
largest without sorting and gives every row a slot: its place among the selected, the last one for
all others; (3) the slots' queries, gathered by index, attend to blocks of keys with an online
softmax, the keys split over programs when they are many; (4) every row fetches its slot's answer.
The backward pass replays the slots.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from dit_jax.core.typing import Array, Float, Int
from dit_jax.kernels.pro_attention import gpu_kernels as kernels
from dit_jax.kernels.pro_attention.inputs import kernel_inputs
from dit_jax.kernels.pro_attention.settings import DEFAULT, ProSettings

MAX_DIM = 128


@dataclasses.dataclass(frozen=True)
class GPUTiles:
  """How the work is cut; all powers of two.

  Attributes:
    block_q: rows of a program that walks over queries; a quarter of them in float32.
    block_k: keys at once; a quarter of them in float32.
    keys_a_program: more keys are split over several programs, whose results are merged.
    max_queries: slots of a head at most; more do not fit the registers of one program.
    num_warps: of the programs that multiply matrices.
    num_stages: of their loops over keys, loads running ahead.
  """

  block_q: int = 128
  block_k: int = 64
  keys_a_program: int = 2048
  max_queries: int = 128
  num_warps: int = 4
  num_stages: int = 2

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value, least = getattr(self, field.name), 16 if field.name.startswith("block") else 1
      if value < least or value & (value - 1):
        raise ValueError(f"{field.name}={value} must be a power of two, {least} or more.")
    if self.keys_a_program < self.block_k:
      raise ValueError(f"keys_a_program={self.keys_a_program} is below block_k={self.block_k}.")


def pro_attention(
  q: Float[Array, "b n h d"],
  k: Float[Array, "b n h d"],
  v: Float[Array, "b n h d"],
  r: Float[Array, "h 64"],
  lengths: Int[Array, " b"] | None = None,
  settings: ProSettings = DEFAULT,
  tiles: GPUTiles = GPUTiles(),
  interpret: bool = False,
) -> Float[Array, "b n h d"]:
  """reference.pro_attention; `interpret` as pallas_call takes it.

  Raises:
    NotImplementedError: keys="per_query", another dtype, a head dim above 128, or more slots than
      `tiles.max_queries`.
    ValueError: as the reference.
  """
  drawn, counts = kernel_inputs(q, k, v, r, lengths, settings)
  b, n, h, d = q.shape
  if d > MAX_DIM:
    raise NotImplementedError(f"head dim {d}: the kernel takes {MAX_DIM} or less.")
  slots = max(16, pl.next_power_of_2(settings.num_queries(n) + 1))
  if slots > tiles.max_queries:
    raise NotImplementedError(f"{slots} slots of queries are more than {tiles.max_queries=}.")
  keys = max(16, pl.next_power_of_2(drawn.shape[2]))
  drawn = jnp.pad(drawn, ((0, 0), (0, 0), (0, keys - drawn.shape[2]), (0, 0)))
  if q.dtype == jnp.float32:  # exact products are unrolled: large tiles compile for minutes
    smaller = {name: max(16, getattr(tiles, name) // 4) for name in ("block_q", "block_k")}
    tiles = dataclasses.replace(tiles, num_stages=1, **smaller)
  plan = _Plan(
    b=b,
    n=n,
    h=h,
    d=d,
    wide=max(16, pl.next_power_of_2(d)),
    keys=keys,
    slots=slots,
    tiles=tiles,
    informer=settings.informer_denominator,
    interpret=interpret,
  )
  return _attend(plan, q, k, v, drawn, counts)


@dataclasses.dataclass(frozen=True)
class _Plan:
  """The static shapes of one call."""

  b: int
  n: int
  h: int
  d: int
  wide: int  # d as the registers hold it
  keys: int  # sampled keys, a power of two
  slots: int
  tiles: GPUTiles
  informer: bool
  interpret: bool

  @property
  def blocks(self) -> int:
    return pl.cdiv(self.n, self.tiles.block_q)

  @property
  def splits(self) -> int:
    return pl.cdiv(self.n, self.tiles.keys_a_program)

  @property
  def counts(self):
    """An image's length, selected queries and sampled keys."""
    return pl.BlockSpec((None, 3), lambda i, j, s: (i, 0))

  @property
  def row(self):
    """A head's numbers of a [b, h, n] array."""
    return self.head(pl.next_power_of_2(self.n))

  def tokens(self):
    """A head's rows of a [b, n, h, d] array."""
    return pl.BlockSpec((None, self.n, None, self.wide), lambda i, j, *_: (i, 0, j, 0))

  def head(self, *shape):
    """What a [b, h, ...] array holds for a head."""
    return pl.BlockSpec((None, None, *shape), lambda i, j, *_: (i, j, *[0] * len(shape)))

  def part(self, *shape):
    """What a [b, h, programs, ...] array holds for a program."""
    return pl.BlockSpec((None, None, None, *shape), lambda i, j, s: (i, j, s, *[0] * len(shape)))

  def call(self, kernel, programs, in_specs, outs, flops=0, matrices=0, itemsize=2, **more):
    """pallas_call over (image, head, program); `outs` are (spec, shape after [b, h], dtype)."""
    heads = self.b * self.h
    warps = more.pop("num_warps", self.tiles.num_warps)
    shape = lambda s: (self.b, self.n, self.h, self.d) if s is None else (self.b, self.h, *s)
    return pl.pallas_call(
      functools.partial(kernel, self),
      grid=(self.b, self.h, programs),
      in_specs=in_specs,
      out_specs=[spec for spec, _, _ in outs],
      out_shape=[jax.ShapeDtypeStruct(shape(s), dtype) for _, s, dtype in outs],
      compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=self.tiles.num_stages),
      cost_estimate=pl.CostEstimate(
        flops=2 * heads * self.n * self.d * flops,
        bytes_accessed=heads * self.n * (self.d * itemsize * matrices + 4),
        transcendentals=heads * self.n * (self.slots if flops > self.keys else 0),
      ),
      interpret=self.interpret,
      name=f"pro_attention_{kernel.__name__}",
      **more,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: _Plan, q, k, v, drawn, counts):
  return _forward(plan, q, k, v, drawn, counts)[0]


def _forward(plan: _Plan, q, k, v, drawn, counts):
  slots, wide, size = plan.slots, plan.wide, q.dtype.itemsize
  m = plan.call(
    kernels.measure,
    plan.blocks,
    [plan.counts, plan.head(plan.keys, wide), plan.tokens()],
    [(plan.row, (plan.n,), jnp.float32)],
    flops=plan.keys,
    matrices=1,
    itemsize=size,
  )(counts, drawn, q)[0]
  slot, index = plan.call(
    kernels.select,
    1,
    [plan.counts, plan.row, plan.head(slots)],
    [(plan.row, (plan.n,), jnp.int32), (plan.head(slots), (slots,), jnp.int32)],
    input_output_aliases={2: 1},
    num_warps=8 if plan.n > 1024 else 4,
  )(counts, m, jnp.full((plan.b, plan.h, slots), -1, jnp.int32))
  top, lse = plan.call(
    kernels.attend,
    plan.splits,
    [plan.counts, plan.head(slots), plan.tokens(), plan.tokens(), plan.tokens()],
    [
      (plan.part(slots, wide), (plan.splits, slots, plan.d), jnp.float32),
      (plan.part(slots), (plan.splits, slots), jnp.float32),
    ],
    flops=2 * slots,
    matrices=2,
    itemsize=size,
  )(counts, index, q, k, v)
  weight = jax.nn.softmax(lse, axis=2)[..., None]
  top, lse = (top * weight).sum(2), jax.nn.logsumexp(lse, axis=2)
  out = _scatter(plan, slot, top.astype(q.dtype))
  return out, (q, k, v, top, lse, slot, index, counts)


def _backward(plan: _Plan, kept, g):
  q, k, v, top, lse, slot, index, counts = kept
  slots, wide, size = plan.slots, plan.wide, q.dtype.itemsize
  rest = plan.call(
    kernels.rest,
    plan.blocks,
    [plan.row, plan.tokens()],
    [(plan.part(wide), (plan.blocks, plan.d), jnp.float32)],
    matrices=1,
    itemsize=size,
  )(slot, g)[0].sum(2)
  dq_top, dk, dv = plan.call(
    kernels.backward,
    plan.splits,
    [
      *(plan.counts, plan.head(slots)),
      *[plan.tokens()] * 4,
      *(plan.head(slots, wide), plan.head(slots), plan.head(wide)),
    ],
    [
      (plan.part(slots, wide), (plan.splits, slots, plan.d), jnp.float32),
      (plan.tokens(), None, k.dtype),
      (plan.tokens(), None, v.dtype),
    ],
    flops=5 * slots,
    matrices=4,
    itemsize=size,
  )(counts, index, q, k, v, g, top, lse, rest)
  dq_top = dq_top.sum(2).at[:, :, -1].set(0)  # the last slot is no query
  return _scatter(plan, slot, dq_top.astype(q.dtype)), dk, dv, None, None


_attend.defvjp(_forward, _backward)


def _scatter(plan: _Plan, slot, top):
  """Row i of the result is top[slot[i]], or 0 without a slot."""
  return plan.call(
    kernels.scatter,
    plan.blocks,
    [plan.row, plan.head(plan.slots, plan.wide)],
    [(plan.tokens(), None, top.dtype)],
    matrices=1,
    itemsize=top.dtype.itemsize,
  )(slot, top)[0]
