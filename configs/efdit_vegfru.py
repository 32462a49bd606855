"""EFDiT on VegFru at 256 px: DiT-XL/2 of ImageNet learns 292 vegetables and fruits in 25 groups.

Paper row (FineDiffusion, arXiv 2402.18331, the ancestor; VegFru, FID): 12.382 with 0.146 % of the
weights trained. EFDiT (arXiv 2512.05152) has numbers that we have not seen. Not reproduced here
yet. Cost: 3.1 EFLOP (10^18) for dit, without encoding the images; at 40 % of an H200's 788 TFLOP/s,
assumed and not measured, 2.7 hours on one.

  python -m dit_jax.main --config=configs/efdit_vegfru.py --workdir=DIR \
      --config.data.path=VEGFRU --config.init_from=dit.safetensors \
      --config.sd_vae.path=sd_vae.safetensors

The two files are made as for efdit_inat.py, of which this changes the data and the steps. Any other
folder root/superclass/class/* will do: the classes are counted. `:tiny` is a CPU test on emoji that
trains every weight, from none.
"""

import pathlib

from dit_jax.core import config


def get_config(arg=None):
  keys = config.parse_arg(arg, tiny=False)
  base = pathlib.Path(__file__).with_name("efdit_inat.py")
  c = config.load(base, "tiny" if keys.tiny else "")
  if keys.tiny:
    return c
  c.data.update(classes=(292, 25), taxonomy="", levels=())
  c.dit.total_steps = 25_000  # ours
  return c
