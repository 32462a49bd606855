"""The door to attention over whole sequences: dense or prob-sparse, on whatever device there is.

Dense or prob-sparse is the model's choice. Of either, the door takes the first implementation of
its platform that takes the shapes; all of them compute the same function.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from dit_jax.core.mesh import BATCH_AXES, HEAD_AXES, dividing, free_axes
from dit_jax.core.typing import Array, Float, Int, Key
from dit_jax.kernels import dense
from dit_jax.kernels.pro_attention import reference
from dit_jax.kernels.pro_attention.settings import DEFAULT, ProSettings, check_arrays, uniforms

KINDS = ("full", "pro")
CHOICES = {  # by kind and platform, the first that takes the shapes
  "full": {"gpu": ("cudnn", "xla"), "tpu": ("flash", "xla"), "cpu": ("xla",)},
  "pro": {
    "gpu": ("gpu", "gathered", "reference"),
    "tpu": ("tpu", "reference"),
    "cpu": ("reference",),
  },
}
UNSPLIT = ("xla", "cudnn")  # the compiler splits these over a mesh by itself


def attention(
  q: Float[Array, "b n h d"],
  k: Float[Array, "b n h d"],
  v: Float[Array, "b n h d"],
  lengths: Int[Array, " b"] | None = None,
  kind: str = "full",
  implementation: str | None = None,
  key: Key[Array, ""] | None = None,
  settings: ProSettings = DEFAULT,
  segments: Int[Array, "b n"] | None = None,
) -> Float[Array, "b n h d"]:
  """softmax(q k^T / sqrt(d)) v per head, for all queries or for those that need it.

  Under a mesh (jax.set_mesh) the batch is split over its axes data and fsdp, the heads over tensor.

  Args:
    q: queries.
    k: keys.
    v: values.
    lengths: true lengths, at most n; keys at or past them weigh nothing. Queries there mean
      nothing, but are finite.
    kind: "full", or "pro" for ProAttention (kernels.pro_attention.reference).
    implementation: one of CHOICES; None takes the first of the platform that takes the shapes.
    key: decides which keys "pro" samples; None is a fixed one.
    settings: of "pro".
    segments: a number for every token, which weighs nothing for those of another; "full" only.

  Raises:
    ValueError: shapes, lengths, kind or implementation that do not fit.
    NotImplementedError: the `implementation` asked for does not take the shapes.
  """
  check_arrays(q, k, v, lengths)
  if kind not in KINDS:
    raise ValueError(f"{kind=} is unknown; expected one of {list(KINDS)}.")
  known = {name for names in CHOICES[kind].values() for name in names}
  if implementation is not None and implementation not in known:
    raise ValueError(
      f"{implementation=} is unknown for {kind=}; expected one of {sorted(known)} or None."
    )
  if kind == "pro" and segments is not None:
    raise ValueError("segments are for kind='full'.")
  if kind == "pro" and settings.part == 1 and implementation is None:
    return _all_queries(q, k, v, lengths)
  names = (implementation,) if implementation else CHOICES[kind][platform()]
  r = None
  if kind == "pro":
    r = uniforms(jax.random.key(0) if key is None else key, q.shape[2])
  refusals = []
  for name in names:
    call = _implementation(name, settings)
    try:
      return (call if name in UNSPLIT else _split(call, q))(q, k, v, r, lengths, segments)
    except NotImplementedError as e:
      refusals.append(e)
  if implementation:
    raise refusals[0]
  raise ExceptionGroup(f"no implementation of {names} takes {q.shape=} {q.dtype=}", refusals)


def _all_queries(q, k, v, lengths):
  """ProAttention that selects every query: dense attention, with its zeros past the length."""
  out = attention(q, k, v, lengths)
  if lengths is None:
    return out
  return jnp.where((jnp.arange(q.shape[1]) < lengths[:, None])[..., None, None], out, 0)


def platform() -> str:
  """One of gpu, tpu and cpu: of the mesh in context, else of the default backend."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  name = jax.default_backend() if device is None else device.platform
  return {"cuda": "gpu", "gpu": "gpu", "tpu": "tpu"}.get(name, "cpu")  # XLA serves all others


def _implementation(name: str, settings: ProSettings):
  """(q, k, v, r, lengths, segments) -> result; kernels are imported where they are used."""
  if name in ("xla", "cudnn", "flash"):
    return lambda q, k, v, r, *masks: getattr(dense, name)(q, k, v, *masks)
  if name == "tpu":
    from dit_jax.kernels.pro_attention.tpu import pro_attention
  elif name == "gpu":
    from dit_jax.kernels.pro_attention.gpu import pro_attention
  elif name == "gathered":  # many queries: the library attends
    pro_attention = functools.partial(reference.pro_attention, attend=dense.cudnn)
  else:
    pro_attention = reference.pro_attention
  return lambda q, k, v, r, lengths, _: pro_attention(q, k, v, r, lengths, settings)


def _split(call, q):
  """`call` on each device's own images and heads: the compiler cannot cut into a kernel."""
  free = set(free_axes())
  if not free:
    return call
  batch, heads = dividing(BATCH_AXES, q.shape[0]), dividing(HEAD_AXES, q.shape[2])

  def split(*arrays):
    tokens = P(batch, None, heads)
    specs = (tokens, tokens, tokens, P(heads), P(batch), P(batch))
    specs = tuple(None if x is None else s for x, s in zip(arrays, specs, strict=True))
    own = jax.shard_map(call, in_specs=specs, out_specs=tokens, axis_names=free, check_vma=False)
    return own(*arrays)

  return split
