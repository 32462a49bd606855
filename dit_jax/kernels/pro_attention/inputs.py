"""What the TPU and the GPU kernel refuse alike, and what both are handed beside q, k and v."""

import jax
import jax.numpy as jnp

from dit_jax.core.typing import Array, Float, Int
from dit_jax.kernels.pro_attention.settings import ProSettings, check, sampled_keys

DTYPES = (jnp.dtype("float32"), jnp.dtype("bfloat16"))


def kernel_inputs(
  q, k, v, r, lengths, settings: ProSettings
) -> tuple[Float[Array, "b h u d"], Int[Array, "b 3"]]:
  """The sampled keys, without a gradient; and every image's length, selected queries, sampled keys.

  Raises:
    NotImplementedError: keys="per_query", or another dtype than DTYPES.
    ValueError: as the reference.
  """
  check(q, k, v, r, lengths, settings)
  if settings.keys != "shared":
    raise NotImplementedError(f"keys={settings.keys!r}: the kernel takes keys='shared'.")
  if q.dtype not in DTYPES:
    raise NotImplementedError(f"dtype {q.dtype}: the kernel takes float32 and bfloat16.")
  b, n = q.shape[:2]
  lengths = jnp.full(b, n, jnp.int32) if lengths is None else lengths.astype(jnp.int32)
  index = sampled_keys(r, lengths, settings.num_keys(n)).transpose(0, 2, 1)[..., None]
  drawn = jnp.take_along_axis(jax.lax.stop_gradient(k), index, axis=1).transpose(0, 2, 1, 3)
  wanted = jnp.minimum(settings.num_queries(lengths), lengths)
  return drawn, jnp.stack([lengths, wanted, settings.num_keys(lengths)], axis=1)
