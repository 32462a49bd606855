"""What ProAttention is told: how many queries and keys, which keys, and the counts that follow.

ProAttention is our reconstruction of EFDiT's (arXiv 2512.05152), after Informer's ProbSparse
attention (arXiv 2012.07436).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.core.typing import Array, Float, Int, Key

UNIFORMS = 64  # a head's random numbers: the sampled keys of one call, at most
KEYS = ("shared", "per_query")
NEGATIVE = -1e30  # the score of a key that is not there: finite, so that no NaN is made of it
_EDGES = tuple(int(math.e**k) for k in range(1, 21))  # ceil(ln n) > k where n > e^k


@dataclasses.dataclass(frozen=True)
class ProSettings:
  """The setting of one ProAttention.

  Attributes:
    c: queries selected, and keys sampled, for each step of ceil(ln n).
    keys: "shared" scores every query of a head against the same sampled keys; "per_query" draws
      keys for each query, as Informer does (slower than dense attention; for comparison).
    part: of n queries at least n / part are selected, rounded up: 1 is dense attention, 0 leaves it
      to c. Training anneals through 1, 2, 4, ...
    informer_denominator: measure with unscaled scores and with their sum divided by n instead of by
      the number of sampled keys, as Informer's code does.
  """

  c: int = 5
  keys: str = "shared"
  part: int = 0
  informer_denominator: bool = False

  def __post_init__(self):
    if self.c < 1:
      raise ValueError(f"c={self.c} must be 1 or more.")
    if self.keys not in KEYS:
      raise ValueError(f"keys={self.keys!r} is unknown; expected one of {list(KEYS)}.")
    if self.part < 0:
      raise ValueError(f"part={self.part} must be 0 (not annealed) or more.")

  def num_keys(self, n):
    """U(n) = max(1, min(n, c ceil(ln max(n, 2)))) for an int or an int array n."""
    return _clip(self.c * _ceil_log(n), n)

  def num_queries(self, n):
    """u(n): as U(n), but at least n / part."""
    least = -(-n // self.part) if self.part else 0
    return _clip(_larger(self.c * _ceil_log(n), least), n)


DEFAULT = ProSettings()


def check(q, k, v, r, lengths, settings: ProSettings) -> None:
  """Raises ValueError for arrays that are no attention's or that the settings do not fit."""
  check_arrays(q, k, v, lengths)
  if r.shape != (q.shape[2], UNIFORMS):
    raise ValueError(f"r has shape {list(r.shape)}; expected {[q.shape[2], UNIFORMS]}.")
  if settings.num_keys(q.shape[1]) > UNIFORMS:
    raise ValueError(
      f"c={settings.c} samples {settings.num_keys(q.shape[1])} of {q.shape[1]} keys; at most "
      f"{UNIFORMS} are drawn: choose c of {UNIFORMS // _ceil_log(q.shape[1])} or less."
    )


def check_arrays(q, k, v, lengths) -> None:
  """Raises ValueError unless q, k, v are [b, n, h, d] alike and lengths is [b], at most n."""
  for name, x in (("k", k), ("v", v)):
    if x.shape != q.shape or x.dtype != q.dtype:
      raise ValueError(
        f"{name} is {x.dtype}{list(x.shape)} where q is {q.dtype}{list(q.shape)}; q, k and v must "
        "agree in batch, length, heads, head dim and dtype."
      )
  if q.ndim != 4:
    raise ValueError(f"q has shape {list(q.shape)}; expected [batch, length, heads, head dim].")
  if lengths is None:
    return
  if lengths.shape != q.shape[:1] or not jnp.issubdtype(lengths.dtype, jnp.integer):
    raise ValueError(
      f"lengths is {lengths.dtype}{list(lengths.shape)}; expected one integer an image, "
      f"[{q.shape[0]}]."
    )
  if isinstance(lengths, jax.core.Tracer) or not lengths.size:
    return  # a traced value cannot be read
  values = np.asarray(lengths)
  if values.max() > q.shape[1] or values.min() < 0:
    raise ValueError(
      f"lengths has values from {values.min()} to {values.max()}; allowed are 0 to {q.shape[1]}, "
      "the length of q."
    )


def uniforms(key: Key[Array, ""], heads: int) -> Float[Array, "h u"]:
  """The random numbers of every head: which keys its queries are measured against."""
  return jax.random.uniform(key, (heads, UNIFORMS))


def sampled_keys(
  r: Float[Array, "h u"], lengths: Int[Array, " b"], count: int
) -> Int[Array, "b h c"]:
  """Indices floor(r n) of the first `count` uniforms, for images of length n; with repeats."""
  return floor_product(r[None, :, :count], lengths[:, None, None])


def floor_product(r: Float[Array, "..."], n: Int[Array, "..."]) -> Int[Array, "..."]:
  """floor(r n) for r in [0, 1), never n itself; 0 where n is 0."""
  return jnp.clip((r * n).astype(jnp.int32), 0, jnp.maximum(n - 1, 0))


def _ceil_log(n):
  """ceil(ln max(n, 2)), exactly: comparisons of integers."""
  return 1 + sum((n > edge) * 1 for edge in _EDGES)


def _clip(count, n):
  if isinstance(n, int):
    return max(1, min(n, count))
  return jnp.maximum(1, jnp.minimum(n, count))


def _larger(a, b):
  return max(a, b) if isinstance(a, int) else jnp.maximum(a, b)
