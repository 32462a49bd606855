"""Dense attention, three implementations of one function: softmax(q k^T / sqrt(d)) v per head.

Each takes q as [b, u, h, d], k and v as [b, n, h, d], true lengths [b] or None and, for u = n, a
segment number for every token [b, n] or None, and raises NotImplementedError for what it does not
take. Keys at or past an image's length, or of another segment, weigh exactly nothing; queries past
the length are computed and mean nothing; they are finite, at length 0 too.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

FLASH_BLOCKS = (512, 256, 128)  # rows and keys that the TPU kernel works on at once


def xla(q, k, v, lengths=None, segments=None):
  """Plain XLA; the softmax is in float32 whatever the inputs are."""
  return jax.nn.dot_product_attention(
    q, k, v, mask=_same(segments), key_value_seq_lengths=lengths, implementation="xla"
  )


def _same(segments):
  """The mask [b, 1, n, n] of pairs of one segment."""
  return None if segments is None else segments[:, None, :, None] == segments[:, None, None]


def cudnn(q, k, v, lengths=None, segments=None):
  """cuDNN's flash attention, on NVIDIA GPUs from Ampere on."""
  if q.dtype not in (jnp.bfloat16, jnp.float16):
    raise NotImplementedError(f"cuDNN's attention takes bfloat16 and float16, not {q.dtype}.")
  if q.shape[-1] % 8 or q.shape[-1] > 128:
    raise NotImplementedError(f"head dim {q.shape[-1]} is no multiple of 8 up to 128.")
  if lengths is not None:
    lengths = jnp.maximum(lengths, 1)  # an image of no tokens attends to its first row
  fn = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
  try:
    return fn(q, k, v, mask=_same(segments), key_value_seq_lengths=lengths)
  except RuntimeError as e:  # where the library is not installed, or too old
    raise NotImplementedError(f"cuDNN's attention cannot be used here: {e}") from e


def flash(q, k, v, lengths=None, segments=None):
  """The Pallas flash attention that ships with JAX, on TPUs."""
  from jax.experimental.pallas.ops.tpu import flash_attention as tpu

  b, n, _, d = q.shape
  if k.shape != q.shape:
    raise NotImplementedError(f"{n} queries of {k.shape[1]} keys: this kernel takes equal numbers.")
  rows = -(-n // FLASH_BLOCKS[-1]) * FLASH_BLOCKS[-1]
  ids = None
  if lengths is not None or segments is not None or rows != n:  # padding is a segment of its own
    last = jnp.full((b, 1), n) if lengths is None else jnp.maximum(lengths, 1)[:, None]
    own = jnp.zeros((b, rows), jnp.int32)
    if segments is not None:
      own = jnp.pad(segments.astype(jnp.int32), ((0, 0), (0, rows - n)))
    ids = tpu.SegmentIds(q=own, kv=jnp.where(jnp.arange(rows) < last, own, -1))
  block = next(size for size in FLASH_BLOCKS if rows % size == 0)
  fields = (field.name for field in dataclasses.fields(tpu.BlockSizes))
  blocks = tpu.BlockSizes(**dict.fromkeys(fields, block) | {"block_b": 1})
  pad = lambda x: jnp.pad(x, ((0, 0), (0, rows - n), (0, 0), (0, 0))).transpose(0, 2, 1, 3)
  out = tpu.flash_attention(
    pad(q), pad(k), pad(v), segment_ids=ids, sm_scale=d**-0.5, block_sizes=blocks
  )
  return out[:, :, :n].transpose(0, 2, 1, 3)
