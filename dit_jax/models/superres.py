"""Fourier super-resolution (our reconstruction): what D keeps is given, a network adds the rest.

  (1) E(y; ...) = U y + HP R([U y, ...]), so D(E(y)) = y whatever R is (nn.fourier_pair)
  (2) latents (HRIG): R_phi([U y, z_t], t); it must see z_t, as z0_hat alone tells it nothing new
  (3) pictures: E(y + C(y)) with R and the correction C of the small picture from one trunk, as a
      degraded y is wrong in its low band, where R alone can change nothing

Last layers start at zero, so every network starts as U y.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.core.mesh import by_rows
from dit_jax.core.typing import Array, DTypeLike, Float
from dit_jax.nn import fourier_pair as pair
from dit_jax.nn.conv import conv3, depth_to_space
from dit_jax.nn.embed import sinusoids

FACTOR = 2  # r of both pairs
_TIME = 64  # sinusoids of a time


class FourierBlock(nn.Module):
  """x + irfft2 silu(W [Re; Im] of rfft2 h) + conv(h), h = silu((1 + scale(c)) x + shift(c)).

  One layer sees the whole grid through its spectrum and the near cells through the convolution.
  Without the silu in the spectrum (as in FFC, Chi et al. 2020, section 3.2) it would not: one W at
  every frequency mixes a cell with its mirror image and with no other. W has no bias, which would
  be a spike at the first cell.
  """

  @nn.compact
  def __call__(self, x: Float[Array, "b h w d"], c: Float[Array, "b e"]) -> Float[Array, "b h w d"]:
    width, zeros = x.shape[-1], nn.initializers.zeros
    film = nn.Dense(2 * width, kernel_init=zeros, name="film")(c)[:, None, None]
    scale, shift = jnp.split(film, 2, axis=-1)
    h = nn.silu((1 + scale) * x + shift)
    # Channels lead, as in the transforms: their own transpose fused into the product behind it is
    # more than XLA's Triton compiler can tile (jax 0.10.2).
    f = by_rows(lambda h: jnp.fft.rfft2(h, norm="ortho"))(jnp.moveaxis(h, -1, 1))
    f = jnp.concatenate([f.real, f.imag], axis=1)
    mixed = nn.Einsum((2 * width,) * 2, "bchw,cd->bdhw", use_bias=False, name="spectral")(f)
    re, im = jnp.split(nn.silu(mixed), 2, axis=1)
    inverse = by_rows(lambda f: jnp.fft.irfft2(f, s=x.shape[1:3], norm="ortho"))
    far = jnp.moveaxis(inverse(jax.lax.complex(re, im)), 1, -1)
    return x + far + conv3(width, jnp.float32, "spatial")(h)


class LatentEnhancer(nn.Module):
  """E of Eqs. (1) and (2); its parameters are R_phi's. Computed in float32, as its spectra are.

  Attributes:
    depth: Fourier blocks, 2 to 4: 0.13 to 0.25 M parameters on four channels.
    width: of R_phi.
  """

  depth: int = 3
  width: int = 64

  @nn.compact
  def __call__(
    self, y: Float[Array, "b _h _w c"], z: Float[Array, "b h w c"], t: Float[Array, " b"]
  ) -> Float[Array, "b h w c"]:
    """From the low band y of x0, z_t and its model time to x0, both standardised latents."""
    y, z = y.astype(jnp.float32), z.astype(jnp.float32)
    u, c = pair.up(y, FACTOR), sinusoids(t, _TIME)
    x = conv3(self.width, jnp.float32, "in")(jnp.concatenate([u, z], axis=-1))
    for i in range(self.depth):
      x = FourierBlock(name=f"fourier_{i}")(x, c)
    last = nn.Conv(z.shape[-1], (3, 3), padding=1, kernel_init=nn.initializers.zeros, name="out")
    return u + pair.high_pass(last(x), FACTOR)


class PictureEnhancer(nn.Module):
  """Eq. (3): a picture of twice the size, on the grid of pixel centres.

  The trunk works at the small size: residual pairs of 3 x 3 convolutions without norms (EDSR, Lim
  et al. 2017). 2 depth + 2 convolutions lie between a picture and its enhancement.

  Attributes:
    depth: residual pairs.
    width: of the trunk.
    dtype: of the trunk; the Fourier pair runs in float32.
  """

  depth: int = 4
  width: int = 48
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, y: Float[Array, "b h w c"]) -> Float[Array, "b _h _w c"]:
    """y and the result in [-1, 1], not clipped; periodic: reflect-pad a picture, then crop."""
    channels, zeros = y.shape[-1], nn.initializers.zeros
    last = lambda n, name: nn.Conv(n, (3, 3), padding=1, kernel_init=zeros, name=name)
    x = conv3(self.width, self.dtype, "in")(y)
    for i in range(self.depth):
      h = nn.relu(conv3(self.width, self.dtype, f"a_{i}")(x))
      x = x + conv3(self.width, self.dtype, f"b_{i}")(h)
    x = nn.relu(x).astype(jnp.float32)
    y = y + last(channels, "low")(x)
    high = depth_to_space(last(channels * FACTOR**2, "high")(x), FACTOR)
    return pair.up(y, FACTOR, centred=True) + pair.high_pass(high, FACTOR, centred=True)
