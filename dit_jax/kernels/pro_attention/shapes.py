"""Named shapes that tests and benchmarks share."""

import dataclasses

import jax
import jax.numpy as jnp

HEAD_DIMS = (64, 72, 80, 96, 128)
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Shape:
  """The arguments of one attention call.

  Attributes:
    n: capacity.
    d: head dim.
    dtype: of q, k and v.
    lengths: true lengths as shares of n, one an image; () means that every row counts.
    b, h: images and heads.
  """

  n: int
  d: int
  dtype: str = "bfloat16"
  lengths: tuple[float, ...] = ()
  b: int = 2
  h: int = 2

  @property
  def name(self) -> str:
    padded = "_padded" if self.lengths else ""
    return f"n{self.n}_d{self.d}_{self.dtype}{padded}"

  def arrays(self, seed: int = 0):
    """q, k, v and a cotangent of the result, standard normal; and the lengths or None."""
    keys = jax.random.split(jax.random.key(seed), 4)
    shape = self.b, self.n, self.h, self.d
    arrays = [jax.random.normal(key, shape, jnp.dtype(self.dtype)) for key in keys]
    return arrays, self.true_lengths()

  def true_lengths(self):
    """int32 [b], or None."""
    if not self.lengths:
      return None
    return jnp.array([round(share * self.n) for share in self.lengths], jnp.int32)


# What every test run takes: each head dim, lengths that divide nothing, both dtypes.
NAMED = (
  Shape(16, 64, "float32"),
  Shape(16, 72, "bfloat16"),
  Shape(64, 80, "float32", (1.0, 0.0)),
  Shape(100, 96, "bfloat16", (0.5, 1.0)),
  Shape(128, 128, "float32"),
  Shape(200, 72, "float32", (1.0, 0.29)),
  Shape(256, 64, "bfloat16"),
  Shape(256, 72, "bfloat16", b=1),
  Shape(256, 128, "bfloat16", (0.75, 0.1)),
  Shape(333, 80, "bfloat16", b=1),
  Shape(512, 96, "float32", b=1, h=1),
  Shape(640, 72, "float32", (0.9,), b=1, h=1),
  Shape(1024, 64, "float32", b=1, h=1),
  Shape(1024, 72, "bfloat16", b=1, h=1),
  Shape(1025, 128, "bfloat16", b=1, h=1),
  Shape(2048, 72, "bfloat16", (0.6,), b=1, h=1),
)

LENGTHS = (16, 100, 256, 640, 1024, 1500, 4096, 16_384)
_FILLS = tuple((dtype, lengths) for dtype in DTYPES for lengths in ((), (0.7,)))

# Every length with every head dim and dtype, even and padded.
WIDE = tuple(Shape(n, d, *fill, b=1, h=1) for n in LENGTHS for d in HEAD_DIMS for fill in _FILLS)
# A quarter of them: every length meets every head dim once, and every dtype even and padded; so
# does every head dim.
COVERING = tuple(
  Shape(n, d, *_FILLS[(i + j) % len(_FILLS)], b=1, h=1)
  for i, n in enumerate(LENGTHS)
  for j, d in enumerate(HEAD_DIMS)
)
