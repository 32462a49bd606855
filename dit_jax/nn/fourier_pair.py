"""A pair of Fourier operators: D crops a spectrum by r, U pads it with zeros (our reconstruction).

  (1) D U = I,  LP = U D,  HP = I - LP,  so that D HP = 0
  (2) U x: the spectrum of n values on r n points; the Nyquist bin of an even n goes half to +n/2
      and half to -n/2
  (3) D x: the n lowest frequencies of r n values; both aliases +-n/2 add up in the Nyquist bin
  (4) centred: value m of x lies amid the values r m .. r m + r - 1 of U x and not on the first of
      them, as a pixel covers r pixels a side; the spectra turn by (r - 1) / 2 values, one way in U
      and back in D, so (1) holds

A plain crop of the FFT's array keeps one of the two Nyquist bins, and is no pair for even sizes.
Both maps are real, keep constants and act on rows and columns alone, as matrices. Signals are
periodic: who has pictures pads them by reflection first.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.core.errors import UserError
from dit_jax.core.typing import Array, Float


@functools.cache
def up_matrix(n: int, r: int, centred: bool = False) -> np.ndarray:
  """U of Eq. (2) or (4), float64 [r n, n]: column m is the interpolant of 1 at m.

  Raises:
    UserError: r < 2 or n < 1.
  """
  if r < 2 or n < 1:
    raise UserError(f"up by r={r} from n={n}: wanted r of 2 or more and n of 1 or more; change it.")
  return _waves(n, r, centred, nyquist=1.0) / n


@functools.cache
def down_matrix(n: int, r: int, centred: bool = False) -> np.ndarray:
  """D of Eq. (3) or (4), float64 [n / r, n].

  Raises:
    UserError: r < 2, or n is not a multiple of r.
  """
  if r < 2 or n < 1 or n % r:
    raise UserError(f"down by r={r} from n={n}: wanted r of 2 or more that divides n; change it.")
  return _waves(n // r, r, centred, nyquist=2.0).T / n


def _waves(n: int, r: int, centred: bool, nyquist: float) -> np.ndarray:
  """sum over |k| <= n / 2 of cos(2 pi k (j - s - r m) / (r n)), [j, m], s = (r - 1) / 2 or 0.

  `nyquist` is the weight of k = n / 2 and k = -n / 2 together.
  """
  k, size = np.arange(n // 2 + 1), r * n
  weights = np.where(k == 0, 1.0, np.where(2 * k == n, nyquist, 2.0))
  halves = 2 * np.arange(size) - (r - 1) * centred  # twice the distance, an integer
  # Whole periods are taken out as integers, so that the cosine keeps all of its digits.
  kernel = weights @ np.cos(np.pi / size * (k[:, None] * halves % (2 * size)))
  return kernel[(np.arange(size)[:, None] - r * np.arange(n)) % size]


def up(x: Float[Array, "b h w c"], r: int = 2, centred: bool = False) -> Float[Array, "b _h _w c"]:
  """U x, r times the rows and columns."""
  return _apply(*(up_matrix(n, r, centred) for n in x.shape[1:3]), x)


def down(
  x: Float[Array, "b h w c"], r: int = 2, centred: bool = False
) -> Float[Array, "b _h _w c"]:
  """D x; UserError unless r divides rows and columns."""
  return _apply(*(down_matrix(n, r, centred) for n in x.shape[1:3]), x)


def low_pass(
  x: Float[Array, "b h w c"], r: int = 2, centred: bool = False
) -> Float[Array, "b h w c"]:
  """LP x = U D x."""
  return up(down(x, r, centred), r, centred)


def high_pass(
  x: Float[Array, "b h w c"], r: int = 2, centred: bool = False
) -> Float[Array, "b h w c"]:
  """HP x = x - LP x: what D does not see."""
  return x - low_pass(x, r, centred)


def _apply(rows: np.ndarray, cols: np.ndarray, x: Array) -> Array:
  exact = jax.lax.Precision.HIGHEST  # accelerators would round the factors to bfloat16
  x = jnp.einsum("hi,biwc->bhwc", jnp.asarray(rows, x.dtype), x, precision=exact)
  return jnp.einsum("wj,bhjc->bhwc", jnp.asarray(cols, x.dtype), x, precision=exact)
