"""DiT-XL/2 on ImageNet at 256 px, on the latents of a one-grain DVAE of our own.

Paper row (arXiv 2212.09748, ImageNet 256, FID-50K): 9.62 without guidance, 2.27 with 1.5, on the
Stable Diffusion VAE. The baseline of D2iT: the same latent grid, 675 M parameters with the learned
position table. Not reproduced here yet. Cost: 173 and 73 EFLOP (10^18) for dvae and dit; at 40 % of
an H200's 788 TFLOP/s, assumed and not measured, 152 and 64 hours on one.

  python -m dit_jax.main --config=configs/dit_xl.py --workdir=DIR --config.data.path=IMAGENET/train

`:sd_vae` is on Stable Diffusion's autoencoder, as the paper's, and trains no DVAE:

  python -m dit_jax.convert --from=sd-vae --to=ours --src=sd-vae-ft-mse --dst=sd_vae.safetensors
  python -m dit_jax.main --config=configs/dit_xl.py:sd_vae --workdir=DIR \
      --config.data.path=IMAGENET/train --config.sd_vae.path=sd_vae.safetensors

`:tiny` is a CPU test on emoji, with a DVAE.
"""

import pathlib

from dit_jax.core import config


def get_config(arg=None):
  base = pathlib.Path(__file__).with_name("d2it_xl.py")
  keys = config.parse_arg(arg, tiny=False, variant="XL/2", sd_vae=False)
  c = config.load(base, "tiny" if keys.tiny else "")
  c.stages = ("dvae", "dit")
  c.dvae.ratios = (1.0,)
  c.dvae.model.factors = (4,) if keys.tiny else (8,)
  c.dvae.model.encoder_mults = (1, 1, 2) if keys.tiny else (1, 1, 2, 2)
  c.dit = c.dct
  del c.dit.buckets, c.dit.model.window
  c.dit.model.max_period = 10_000.0  # DiT's; diffusers' 10752.168531898922 (docs/convert.md)
  if keys.tiny:
    del c.dit.model.refine_depth
    c.dit.model.patch = 2
  else:
    c.dit.model.variant = keys.variant
  del c.dgt, c.dct
  if keys.sd_vae:
    del c.dvae, c.evals.reconstruction
    c.stages = ("dit",)
    c.sd_vae = dict(
      path="",  # what dit_jax.convert makes of a folder of diffusers' AutoencoderKL
      model=dict(
        block_out_channels=(32, 32, 32) if keys.tiny else (128, 256, 512, 512),
        layers_per_block=1 if keys.tiny else 2,
        latent_channels=4,
        scaling_factor=0.18215,  # latents times this have a deviation of one
        dtype="float32",
      ),
    )
  return c
