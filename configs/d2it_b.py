"""D2iT-B on FFHQ at 256 px, unconditional: the size of the paper's ablations.

Paper row (arXiv 2504.09454, Table 4, FFHQ 256): FID 22.11 with 10 base and 2 refine blocks, DiT-B
34.67. Not reproduced here yet; what the paper leaves open is ours (docs/). Cost: 177, 2 and 17
EFLOP (10^18) for dvae, dgt and dct; at 40 % of an H200's 788 TFLOP/s, assumed and not measured,
156, 2 and 15 hours on one.

  python -m dit_jax.main --config=configs/d2it_b.py --workdir=DIR --config.data.path=FFHQ

`:tiny` is a CPU test on emoji.
"""

import pathlib

from dit_jax.core import config


def get_config(arg=None):
  base = pathlib.Path(__file__).with_name("d2it_l_ffhq.py")
  return config.load(base, ",".join(filter(None, ("variant=B", arg))))
