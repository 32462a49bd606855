"""ProAttention for TPUs, in Pallas (Mosaic): one program a head, everything of the head on chip.

The unselected queries' answer, the mean of V, is what a query of zeros attends to. So a head is
attention of u + 1 gathered queries, the last of them zero, and each matrix is read once:

(1) a pass over Q writes M, [n] numbers; (2) a radix select finds the u-th largest without sorting
and gives every row a slot: its place among the selected, the last one for all others, none for what
pads; (3) Q's rows go to their slots, (4) the slots attend to K and V in blocks with an online
softmax, (5) the results go back to the rows. (3) and (5) are products with the one-hot matrix of
the slots, which is exact. The backward pass replays the slots.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from dit_jax.core.typing import Array, Float, Int
from dit_jax.kernels.pro_attention import tpu_kernels as kernels
from dit_jax.kernels.pro_attention.inputs import kernel_inputs
from dit_jax.kernels.pro_attention.settings import DEFAULT, ProSettings


@dataclasses.dataclass(frozen=True)
class TPUTiles:
  """How a head is cut.

  Attributes:
    block_k: keys at once, a multiple of 128; the largest such divisor of the length below it.
    max_queries: of a head at most; more do not pay against dense attention.
    vmem_bytes: what a program may use of the on-chip memory; v5e, v5p and v6e have so much.
  """

  block_k: int = 512
  max_queries: int = 2048
  vmem_bytes: int = 64 * 2**20

  def __post_init__(self):
    if self.block_k < kernels.LANES or self.block_k % kernels.LANES:
      raise ValueError(f"block_k={self.block_k} must be a positive multiple of {kernels.LANES}.")
    if self.max_queries < 1:
      raise ValueError(f"max_queries={self.max_queries} must be 1 or more.")


def pro_attention(
  q: Float[Array, "b n h d"],
  k: Float[Array, "b n h d"],
  v: Float[Array, "b n h d"],
  r: Float[Array, "h 64"],
  lengths: Int[Array, " b"] | None = None,
  settings: ProSettings = DEFAULT,
  tiles: TPUTiles = TPUTiles(),
  interpret=False,
) -> Float[Array, "b n h d"]:
  """reference.pro_attention; `interpret` as pallas_call takes it.

  Raises:
    NotImplementedError: keys="per_query", another dtype, more queries than `tiles.max_queries`, or
      a head that does not fit on the chip.
    ValueError: as the reference.
  """
  drawn, counts = kernel_inputs(q, k, v, r, lengths, settings)
  b, n, h, d = q.shape
  if settings.num_queries(n) > tiles.max_queries:
    raise NotImplementedError(
      f"{settings.num_queries(n)} selected queries are more than {tiles.max_queries=}."
    )
  drawn = _pad(drawn, _round_up(drawn.shape[2], 16))
  rows = _round_up(n, kernels.LANES)
  q, k, v = (_pad(x.transpose(0, 2, 1, 3), rows) for x in (q, k, v))
  plan = _Plan(
    b=b,
    h=h,
    rows=rows,
    d=d,
    keys=drawn.shape[2],
    slots=_round_up(settings.num_queries(n) + 1, 16),
    block_k=max(w for w in range(kernels.LANES, tiles.block_k + 1, kernels.LANES) if rows % w == 0),
    vmem_bytes=tiles.vmem_bytes,
    informer=settings.informer_denominator,
    interpret=interpret,
  )
  plan.check(q.dtype)
  return _attend(plan, q, k, v, drawn, counts)[:, :, :n].transpose(0, 2, 1, 3)


@dataclasses.dataclass(frozen=True)
class _Plan:
  """The static shapes of one call."""

  b: int
  h: int
  rows: int  # n rounded up to whole registers
  d: int
  keys: int
  slots: int
  block_k: int
  vmem_bytes: int
  informer: bool
  interpret: object

  def resident(self, dtype, matrices: int) -> int:
    """Bytes of `matrices` [rows, d] on chip; d fills whole registers there."""
    return matrices * self.rows * _round_up(self.d, kernels.LANES) * jnp.dtype(dtype).itemsize

  def check(self, dtype) -> None:
    if self.resident(dtype, 6) + self.work() > self.vmem_bytes:
      raise NotImplementedError(
        f"{self.rows} tokens of width {self.d} need {self.resident(dtype, 6) + self.work()} bytes "
        f"on chip; {self.vmem_bytes} are allowed."
      )

  def work(self) -> int:
    """Bytes of what is neither input nor output, with room for the compiler."""
    wide = self.slots * (3 * _round_up(self.d, kernels.LANES) + 4 * self.block_k) * 4
    return 4 * wide + 8 * self.rows * 4 + 4 * 2**20

  def call(self, kernel, dtype, matrices, in_specs, out_specs, out_shape, scratch, cost, **more):
    """pallas_call over (image, head); two buffers a matrix where both fit."""
    twice = 2 * self.resident(dtype, matrices) + self.work() <= self.vmem_bytes
    mode = {} if twice else {"pipeline_mode": pl.Buffered(1)}
    limit = (2 if twice else 1) * self.resident(dtype, matrices) + self.work()
    whole = lambda shape: pl.BlockSpec(
      (None, None, *shape), lambda i, j: (i, j, *[0] * len(shape)), **mode
    )
    counts = pl.BlockSpec((None, 1, 3), lambda i, j: (i, 0, 0), memory_space=pltpu.SMEM)
    return pl.pallas_call(
      functools.partial(kernel, self),
      grid=(self.b, self.h),
      in_specs=[counts, *map(whole, in_specs)],
      out_specs=[whole(s) for s in out_specs],
      out_shape=[jax.ShapeDtypeStruct((self.b, self.h, *s), t) for s, t in out_shape],
      scratch_shapes=scratch,
      compiler_params=pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=limit
      ),
      cost_estimate=cost,
      interpret=self.interpret,
      name=f"pro_attention_{kernel.__name__}",
      **more,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: _Plan, q, k, v, drawn, counts):
  return _forward(plan, q, k, v, drawn, counts)[0]


def _forward(plan: _Plan, q, k, v, drawn, counts):
  rows, d, slots = plan.rows, plan.d, plan.slots
  table = (rows // kernels.LANES, kernels.LANES)
  shapes = [(rows, d), (slots, d), (slots, d), (slots, 1), table]
  dtypes = [q.dtype, q.dtype, jnp.float32, jnp.float32, jnp.int32]
  heads, itemsize = plan.b * plan.h, q.dtype.itemsize
  cost = pl.CostEstimate(
    flops=2 * heads * rows * d * (plan.keys + 4 * slots),
    bytes_accessed=heads * (4 * rows * d * itemsize + 4 * rows + slots * d * (itemsize + 4)),
    transcendentals=heads * rows * slots,
  )
  call = plan.call(
    kernels.forward,
    q.dtype,
    4,
    [(plan.keys, d), (rows, d), (rows, d), (rows, d)],
    shapes,
    list(zip(shapes, dtypes, strict=True)),
    [pltpu.VMEM(table, jnp.float32)],
    cost,
  )
  out, q_top, top, lse, slot = call(counts[:, None], drawn, q, k, v)
  return out, (k, v, q_top, top, lse, slot, counts)


def _backward(plan: _Plan, kept, g):
  k, v, q_top, top, lse, slot, counts = kept
  rows, d, slots = plan.rows, plan.d, plan.slots
  table = (rows // kernels.LANES, kernels.LANES)
  heads, itemsize = plan.b * plan.h, k.dtype.itemsize
  cost = pl.CostEstimate(
    flops=2 * heads * rows * d * 7 * slots,
    bytes_accessed=heads * (6 * rows * d * itemsize + 4 * rows + slots * d * (itemsize + 4)),
    transcendentals=heads * rows * slots,
  )
  call = plan.call(
    kernels.backward,
    k.dtype,
    6,
    [(rows, d), (rows, d), (slots, d), (slots, d), (slots, 1), table, (rows, d)],
    [(rows, d)] * 3,
    [((rows, d), k.dtype)] * 3,
    [],
    cost,
    input_output_aliases={7: 0, 1: 1, 2: 2},  # g, k and v give their memory to dq, dk and dv
  )
  dq, dk, dv = call(counts[:, None], k, v, q_top, top, lse, slot, g)
  return dq, dk, dv, None, None  # the choice of queries has no gradient


_attend.defvjp(_forward, _backward)


def _pad(x, rows: int):
  """[b, h, n, d] with zeros up to `rows`."""
  return jnp.pad(x, ((0, 0), (0, 0), (0, rows - x.shape[2]), (0, 0)))


def _round_up(n: int, multiple: int) -> int:
  return -(-n // multiple) * multiple
