"""The dynamic VAE: coarse codes where an image is smooth, fine codes where it is not (D2iT, 3).

Every code is a diagonal Gaussian. In the dense form [b, h, w, 2 n_z] on the finest grid, a coarse
code's moments are copied to all the cells that it fills (neighbour copying).
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit_jax.core.errors import UserError
from dit_jax.core.typing import Array, DTypeLike, Float, Int, Key
from dit_jax.models.dvae.decoder import Decoder
from dit_jax.models.dvae.encoder import Encoder
from dit_jax.nn import grains as structure

ENCODER_MULTS = (1, 1, 2, 2, 4, 4)  # DQ-VAE's: level of factor 2^i, cut at log2 f_k
DECODER_MULTS = (1, 1, 2, 2)  # cut at log2 f_1
LOGVAR_RANGE = (-30.0, 20.0)


class DVAE(nn.Module):
  """Encoder with a head a grain, decoder from the dense grid.

  Attributes:
    factors: f_1 < ... < f_k, powers of two: pixels a side of a code, finest first.
    z_channels: n_z (our reconstruction).
    width: channels at multiplier 1.
    encoder_mults, decoder_mults: multiplier of the level of factor 2^i; () for the paper's, up to
      f_k and f_1, the last one repeated where they end.
    res_blocks, decoder_res_blocks: residual blocks a level.
    attention: self-attention at the levels of factor >= f_1 and in the mid blocks.
    stem: 2 or 4 folds blocks of pixels into channels, and the levels above it vanish: cheap.
    dtype: of the arithmetic; parameters, norms and moments stay in f32.
  """

  factors: tuple[int, ...]
  z_channels: int = 4
  width: int = 128
  encoder_mults: tuple[int, ...] = ()
  decoder_mults: tuple[int, ...] = ()
  res_blocks: int = 2
  decoder_res_blocks: int = 3
  attention: bool = True
  stem: int = 1
  dtype: DTypeLike = jnp.float32

  def __post_init__(self):
    super().__post_init__()
    check_sizes(self.factors, self.stem, self.encoder_mults, self.decoder_mults)

  def setup(self):
    self.encoder = Encoder(
      factors=self.factors,
      z_channels=self.z_channels,
      width=self.width,
      mults=self.encoder_mults or _levels(ENCODER_MULTS, self.factors[-1]),
      res_blocks=self.res_blocks,
      attention=self.attention,
      stem=self.stem,
      dtype=self.dtype,
    )
    self.decoder = Decoder(
      factor=self.factors[0],
      width=self.width,
      mults=self.decoder_mults or _levels(DECODER_MULTS, self.factors[0]),
      res_blocks=self.decoder_res_blocks,
      attention=self.attention,
      stem=self.stem,
      dtype=self.dtype,
    )

  def encode(self, x: Float[Array, "b H W 3"]) -> list[Float[Array, "b _h _w d"]]:
    """Moments by grain, coarsest first: grain g is [b, H / f_{k-g}, W / f_{k-g}, 2 n_z]."""
    return self.encoder(x)

  def moments(
    self, x: Float[Array, "b H W 3"], grains: Int[Array, "b rows cols"]
  ) -> Float[Array, "b h w d"]:
    """(mean, logvar) of every cell's code, dense; the map chooses the head of each region."""
    return structure.select(self.encoder(x), grains, self.factors)

  def decode(self, z: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
    """Image in [-1, 1], not clipped."""
    return self.decoder(z)

  def decode_features(self, z: Float[Array, "b h w c"]) -> Float[Array, "b _H _W d"]:
    """What the decoder's last convolution reads."""
    return self.decoder.features(z)

  def decode_head(self, features: Float[Array, "b h w d"]) -> Float[Array, "b _H _W 3"]:
    """The decoder's last convolution: needs decoder/conv_out alone of the parameters."""
    return self.decoder.head(features)

  def __call__(
    self,
    x: Float[Array, "b H W 3"],
    grains: Int[Array, "b rows cols"],
    keys: Key[Array, " b"],
  ) -> tuple[Float[Array, "b H W 3"], Float[Array, "b h w d"]]:
    """Reconstruction from a posterior sample (one key an image), and the dense moments."""
    moments = self.moments(x, grains)
    return self.decode(posterior_sample(moments, grains, keys, self.factors)), moments


def check_sizes(
  factors: tuple[int, ...], stem: int, encoder_mults: tuple = (), decoder_mults: tuple = ()
) -> None:
  """Refuses sizes that no DVAE has, in one line.

  Raises:
    UserError: factors that do not ascend through powers of two from `stem` on, or multipliers of
      another number than the levels.
  """
  powers = all(f > 0 and f & (f - 1) == 0 for f in (*factors, stem))
  if not factors or not powers or list(factors) != sorted(set(factors)) or stem > factors[0]:
    raise UserError(f"{factors=} must be ascending powers of two, none below {stem=}.")
  ends = {"encoder_mults": factors[-1], "decoder_mults": factors[0]}
  for (name, factor), mults in zip(ends.items(), (encoder_mults, decoder_mults), strict=True):
    if mults and len(mults) != 1 + math.log2(factor):
      raise UserError(
        f"{name}={tuple(mults)} has {len(mults)} levels; {factors=} wants {int(math.log2(factor))}"
        " + 1, one for each of the factors 1, 2, 4, ..., or () for the paper's."
      )


def split_moments(
  moments: Float[Array, "b h w d"],
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
  """Mean and log-variance, the latter clipped to [-30, 20] as in latent diffusion."""
  mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
  return mean, jnp.clip(logvar, *LOGVAR_RANGE)


def posterior_sample(
  moments: Float[Array, "b h w d"],
  grains: Int[Array, "b rows cols"],
  keys: Key[Array, " b"],
  factors: tuple[int, ...],
) -> Float[Array, "b h w c"]:
  """One draw a code, copied to the cells that it fills; row i's noise comes from key i alone."""
  mean, logvar = split_moments(moments)
  noise = structure.structured_noise(keys, grains, factors, mean.shape[-1])
  return mean + jnp.exp(0.5 * logvar) * noise


def kl(moments: Float[Array, "b h w d"]) -> Float[Array, "b h w"]:
  """KL(posterior | N(0, I)) of each cell's code in nats, mean over the n_z channels."""
  mean, logvar = split_moments(moments)
  return 0.5 * jnp.mean(mean**2 + jnp.exp(logvar) - 1 - logvar, axis=-1)


def num_codes(grains: Int[Array, "b rows cols"], factors: tuple[int, ...]) -> Float[Array, " b"]:
  """Unique codes of each image."""
  return jnp.sum(structure.unique_weights(grains, factors), axis=(1, 2))


def _levels(mults: tuple[int, ...], factor: int) -> tuple[int, ...]:
  count = 1 + int(math.log2(factor))
  return (mults + mults[-1:] * count)[:count]


def abstract_params(model: DVAE, image_size: int):
  """Shapes of the parameters at an image size, without memory or arithmetic."""
  regions = image_size // model.factors[-1]
  return jax.eval_shape(
    model.init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32),
    jax.ShapeDtypeStruct((1, regions, regions), jnp.int32),
    jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1)),
  )["params"]
