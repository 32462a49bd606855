"""D2iT-L on FFHQ at 256 px, unconditional.

Paper row (arXiv 2504.09454, FFHQ 256, FID-10K): 4.47, DiT-L 6.26. 467 M parameters. Not reproduced
here yet; what the paper leaves open is ours (docs/). Cost: 177, 2 and 60 EFLOP (10^18) for dvae,
dgt and dct; at 40 % of an H200's 788 TFLOP/s, assumed and not measured, 156, 2 and 53 hours on one.

  python -m dit_jax.main --config=configs/d2it_l_ffhq.py --workdir=DIR --config.data.path=FFHQ

FFHQ is one folder of pictures (root/*), so there are no classes. `:tiny` is a CPU test on emoji.
"""

import pathlib

from dit_jax.core import config


def get_config(arg=None):
  base = pathlib.Path(__file__).with_name("d2it_xl.py")
  c = config.load(base, ",".join(filter(None, ("variant=L", arg))))
  if c.data.source == "folder":
    c.data.classes = (0, 0)
  return c
