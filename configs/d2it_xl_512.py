"""D2iT-XL on ImageNet at 512 px, class-conditional.

No paper row: D2iT reports 256 px only (DiT-XL/2 at 512 px: FID 3.04 with guidance, arXiv
2212.09748, Table 3). 1,024 base tokens and up to 4,096 refined ones; the parameters are those of
d2it_xl.py but for longer position tables. Not trained here yet.

  python -m dit_jax.main --config=configs/d2it_xl_512.py --workdir=DIR \
    --config.data.path=IMAGENET/train --config.mesh.data=1 --config.mesh.fsdp=-1

Cost: 746, 10 and 407 EFLOP (10^18) for dvae, dgt and dct; at 40 % of an H200's 788 TFLOP/s, assumed
and not measured, 657, 9 and 358 hours on one. `:tiny` is a CPU test on emoji.
"""

import pathlib

from dit_jax.core import config


def get_config(arg=None):
  c = config.load(pathlib.Path(__file__).with_name("d2it_xl.py"), arg or "")
  if c.data.source == "folder":  # :tiny keeps its emoji
    c.data.image_size = 512
    c.latents.batch_size = 16
    c.dvae.accum = 2
    c.dct.model.remat = "dots"
  return c
