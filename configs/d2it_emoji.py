"""D2iT beside DiT on Twemoji at 64 px, at a size for two CPU cores.

All 1,903 base emoji, 10 superclasses of 100 subcategories; every 3rd of a subcategory is held out
(604). `:fine=X` is the share of regions that are fine (4 px a code; coarse: 8 px). With 0 and 1 all
codes are alike: the DVAE has one grain, and a DiT of the same 64 tokens and six blocks takes the
place of both transformers. Steps are such that each DVAE costs what the others cost, and a DiT what
DGT and DCT cost together. Sizes and rates are ours, chosen for a CPU: no paper row belongs to them
(the paper, arXiv 2504.09454, has no such set); its orderings are what is asked for.

  python -m dit_jax.main --config=configs/d2it_emoji.py --workdir=DIR
  python -m dit_jax.main --config=configs/d2it_emoji.py:fine=1 --workdir=DIT

`benchmarks/reproduce.py --paper=d2it` trains, draws and scores all of it with three seeds, and
prints the cost of each run (docs/reproduction.md). `:tiny` is a CPU test.
"""

import pathlib

from dit_jax.core import config
from dit_jax.core.errors import UserError


def get_config(arg=None):
  arg = config.parse_arg(arg, tiny=False, fine=0.5)
  tiny, fine = arg.tiny, arg.fine
  if not 0 <= fine <= 1:
    raise UserError(f"config argument {fine=} must be a share, 0 (all coarse) to 1 (all fine).")
  c = config.load(pathlib.Path(__file__).with_name("demo.py"), "all,tiny" if tiny else "all")
  c.data.holdout = 3  # a third: distances between sets need many pictures
  c.sampling.update(
    steps=4 if tiny else 12,
    guidance=1.0,  # the best scale differs from model to model
    microbatch=4 if tiny else 32,  # rows of a program on one device
    map_steps=4 if tiny else 32,
  )

  c.dvae.ratios = (1.0 - fine, fine)
  c.dvae.total_steps = 4 if tiny else 420
  c.dgt.model.update(depth=1 if tiny else 3, width=32 if tiny else 64, num_heads=2)
  c.dgt.total_steps = 4 if tiny else 700
  c.dct.model.update(
    depth=1 if tiny else 5,
    refine_depth=1,
    width=32 if tiny else 128,
    num_heads=2 if tiny else 4,
  )
  c.dct.total_steps = 4 if tiny else 860
  if fine in (0, 1):
    _one_grain(c, fine == 1, tiny)
  return c


def _one_grain(c, fine: bool, tiny: bool) -> None:
  """A DVAE whose codes are all coarse or all fine, and a DiT of as many tokens as regions."""
  c.stages = ("dvae", "dit")
  c.dvae.ratios = (1.0,)
  if fine:
    c.dvae.model.update(factors=(4,), encoder_mults=(1, 1, 2))
  else:
    c.dvae.model.update(factors=(8,), decoder_mults=(1, 1, 2, 2))
  c.dit = c.dct
  del c.dit.buckets, c.dit.model.window, c.dit.model.refine_depth
  c.dit.model.depth = 2 if tiny else 6
  c.dit.model.patch = 2 if fine else 1
  c.dit.diffusion.grain_weights = (1.0,)
  if not tiny:
    c.dvae.total_steps = 449 if fine else 512
    c.dit.total_steps = 1_300
  del c.dgt, c.dct
