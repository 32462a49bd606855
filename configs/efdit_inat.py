"""EFDiT on iNaturalist 2021 at 256 px: DiT-XL/2 of ImageNet learns 10,000 species in 11 groups.

Paper row (FineDiffusion, arXiv 2402.18331, the ancestor; iNaturalist mini, FID): 9.776 with 1.77 %
of the weights trained, 10.66 with all of them, 10.59 BitFit, 10.79 DiffFit. EFDiT (arXiv
2512.05152) has numbers that we have not seen; its parts are our reconstruction (docs/efdit.md).
Not reproduced here yet. Cost: 12.4 EFLOP (10^18) for dit, without encoding the images; at 40 % of
an H200's 788 TFLOP/s, assumed and not measured, 11 hours on one.

  python -m dit_jax.convert --from=dit --to=ours --src=DiT-XL-2-256x256.pt --dst=dit.safetensors
  python -m dit_jax.convert --from=sd-vae --to=ours --src=sd-vae-ft-mse --dst=sd_vae.safetensors
  python -m dit_jax.main --config=configs/efdit_inat.py --workdir=DIR \
      --config.data.path=INAT/train --config.init_from=dit.safetensors \
      --config.sd_vae.path=sd_vae.safetensors

Superclasses of another rank: `--config.data.levels="('family',)"`. The ancestor, with 12,153,632
numbers trained: `--config.peft=finediffusion --config.dit.labels.fusion=swap` and
`--config.dit.hrig.enabled=False`. ProAttention: `--config.dit.model.attention.kind=pro`, and in
`pro_blocks` which blocks. `:tiny` is a CPU test on emoji that trains every weight, from none.
"""

import pathlib

from dit_jax.core import config


def get_config(arg=None):
  keys = config.parse_arg(arg, tiny=False)
  base = pathlib.Path(__file__).with_name("dit_xl.py")
  c = config.load(base, "tiny" if keys.tiny else "sd_vae")
  c.dit.labels.fusion = "sum"  # "swap" is the ancestor's; with p_null=0 there is no null row
  c.dit.hrig.enabled = True
  c.sampling.guidance = 1.5  # away from the superclass; ours
  if keys.tiny:
    return c
  c.peft = "efdit"
  c.frozen_dtype = "bfloat16"
  c.data.update(
    classes=(10_000, 11),
    taxonomy="inat2021",
    levels=("group",),
    holdout=50,  # one image a class of the mini set; they decide the strength of HRIG
  )
  c.dit.total_steps = 100_000  # ours
  return c
