"""Stable Diffusion's autoencoder: images to moments of a latent an eighth their size, and back.

The architecture is that of latent diffusion (arXiv 2112.10752, Appendix E), with attention at the
smallest level alone. The weights are others' (see `weights.sd_vae`). Who trains on its latents
multiplies them by `scaling_factor`, and divides before `decode`: the model does neither.
"""

import flax.linen as nn
import jax.numpy as jnp

from dit_jax.core.errors import UserError
from dit_jax.core.typing import Array, DTypeLike, Float
from dit_jax.nn import conv

SCALING_FACTOR = 0.18215  # of Stable Diffusion 1: one over the deviation of its latents


class Encoder(nn.Module):
  """Levels of residual blocks, each but the last followed by a halving; then the mid block.

  Attributes:
    channels: of each level, from the image on.
    blocks: residual blocks a level.
    outputs: channels of the result.
  """

  channels: tuple[int, ...]
  blocks: int
  outputs: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b H W 3"]) -> Float[Array, "b h w d"]:
    x = conv.conv3(self.channels[0], self.dtype, "conv_in")(x)
    for i, features in enumerate(self.channels):
      for j in range(self.blocks):
        x = conv.ResBlock(features, self.dtype, name=f"level_{i}_res_{j}")(x)
      if i < len(self.channels) - 1:
        x = conv.Down(self.dtype, name=f"level_{i}_down")(x)
    x = conv.MidBlock(dtype=self.dtype, name="mid")(x)
    x = nn.swish(conv.group_norm(x.shape[-1], "norm_out")(x))
    return conv.conv3(self.outputs, self.dtype, "conv_out")(x)


class Decoder(nn.Module):
  """The mid block; then levels of residual blocks, each but the last followed by a doubling.

  Attributes:
    channels: of each level, from the latent on.
    blocks: residual blocks a level.
  """

  channels: tuple[int, ...]
  blocks: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, z: Float[Array, "b h w c"]) -> Float[Array, "b _H _W 3"]:
    x = conv.conv3(self.channels[0], self.dtype, "conv_in")(z)
    x = conv.MidBlock(dtype=self.dtype, name="mid")(x)
    for i, features in enumerate(self.channels):
      for j in range(self.blocks):
        x = conv.ResBlock(features, self.dtype, name=f"level_{i}_res_{j}")(x)
      if i < len(self.channels) - 1:
        x = conv.Up(self.dtype, name=f"level_{i}_up")(x)
    x = nn.swish(conv.group_norm(x.shape[-1], "norm_out")(x))
    return conv.conv3(3, self.dtype, "conv_out")(x)


class AutoencoderKL(nn.Module):
  """Encoder and decoder; the default fields are those of Stable Diffusion 1 and sd-vae-ft-*.

  Attributes:
    block_out_channels: channels of each level, from the image on; one more level halves the latent.
    layers_per_block: residual blocks a level of the encoder; the decoder has one more.
    latent_channels: of the latent; the moments have twice as many.
    scaling_factor: what brings its latents to a deviation of one; not applied here.
    dtype: of the arithmetic; parameters, norms, moments and images are float32.
  """

  block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
  layers_per_block: int = 2
  latent_channels: int = 4
  scaling_factor: float = SCALING_FACTOR
  dtype: DTypeLike = jnp.float32

  def setup(self):
    channels, moments = self.block_out_channels, 2 * self.latent_channels
    self.encoder = Encoder(channels, self.layers_per_block, moments, self.dtype)
    self.decoder = Decoder(channels[::-1], self.layers_per_block + 1, self.dtype)
    self.quant_conv = nn.Conv(moments, (1, 1), dtype=self.dtype)
    self.post_quant_conv = nn.Conv(self.latent_channels, (1, 1), dtype=self.dtype)

  @property
  def factor(self) -> int:
    """Pixels a side of a latent cell."""
    return 2 ** (len(self.block_out_channels) - 1)

  def encode(self, x: Float[Array, "b H W 3"]) -> Float[Array, "b h w d"]:
    """(mean, logvar) of the latents of images in [-1, 1]; logvar as it comes, not clipped.

    Raises:
      UserError: a side of the images is no multiple of `factor`.
    """
    if x.shape[1] % self.factor or x.shape[2] % self.factor:
      raise UserError(
        f"Images of {x.shape[1]} x {x.shape[2]} px do not fit the autoencoder; give sides that are "
        f"multiples of {self.factor}."
      )
    return self.quant_conv(self.encoder(x)).astype(jnp.float32)

  def decode(self, z: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
    """Images in [-1, 1], not clipped, of latents that are not scaled."""
    return self.decoder(self.post_quant_conv(z)).astype(jnp.float32)

  def __call__(self, x: Float[Array, "b H W 3"]) -> Float[Array, "b H W 3"]:
    """The reconstruction from the mean."""
    return self.decode(self.encode(x)[..., : self.latent_channels])
