"""EFDiT's fine-tuning on bird photos at 64 px, at a size for two CPU cores.

Made for birds100: 2,999 photos, Family/Species/*.jpg, 30 families and 100 species; any folder of
two levels will do. A base that is shown families alone (`:base`), then a fine-tune that teaches it
the species: tiered labels, HRIG, and ProAttention where it is asked for. Sizes and rates are ours,
chosen for a CPU: no paper row belongs to them (the paper, arXiv 2512.05152, has no such set). Every
5th photo of a species is held out.

  python -m dit_jax.main --config=configs/efdit_birds.py:base --workdir=BASE --config.data.path=DIR
  python -m dit_jax.main --config=configs/efdit_birds.py --workdir=NEW --config.data.path=DIR \
      --config.init_from=BASE [--config.dit.hrig.enabled=False] \
      [--config.dit.labels.fusion=none --config.sampling.guidance_level=1] \
      [--config.dit.model.attention.kind=pro]

What is in brackets are the factors of the ablation, which `benchmarks/reproduce.py --paper=efdit`
runs: three seeds gave VGG-FD 387 with tiers, 389 without, 681 with Pro forced as well, of 599
pictures; a fine-tune, drawn and scored, takes 4.3 to 8.2 minutes of a CPU core
(docs/reproduction.md). `:tiny` and `:base,tiny` are CPU tests on emoji.
"""

import pathlib

from dit_jax.core import config


def get_config(arg=None):
  arg = config.parse_arg(arg, tiny=False, base=False)
  tiny, base = arg.tiny, arg.base
  c = config.load(pathlib.Path(__file__).with_name("demo.py"), "all,tiny" if tiny else "all")
  c.stages = ("dvae", "dit")
  c.init_from = ""  # the base's workdir
  c.peft = "full" if base else "efdit"
  c.data.update(
    source="twemoji" if tiny else "folder",
    path="",  # root/Family/Species/*.jpg
    classes=(100, 10) if tiny else (100, 30),
    holdout=5,  # HRIG's strength is measured on these, and what is drawn is scored against them
  )
  c.latents.flip = True
  c.sampling.update(
    steps=4 if tiny else 12,
    guidance=4.0,  # of 2, 3, 4 and 6 the nearest to held-out photos, with tiers and without
    guidance_level=2,  # away from "no class"; without tiers that is level 1
    microbatch=4 if tiny else 32,  # rows of a program on one device
  )

  c.dvae.model.update(factors=(4,), encoder_mults=(1, 1, 2), decoder_mults=(1, 1, 2))
  c.dvae.ratios = (1.0,)
  c.dvae.total_steps = 4 if tiny else 1_500

  c.dit = c.dct
  del c.dit.buckets, c.dit.model.window, c.dit.model.refine_depth
  c.dit.model.update(
    patch=2,  # 64 tokens of the 16 x 16 latents
    depth=2 if tiny else 6,
    width=32 if tiny else 128,
    num_heads=2 if tiny else 4,
  )
  c.dit.model.attention.pro_min_tokens = 1  # kind="pro" is forced on sequences this short
  c.dit.labels.update(fusion="sum", p_drop=1.0 if base else 0.1, p_null=0.1)  # base: no species
  c.dit.diffusion.grain_weights = (1.0,)
  c.dit.hrig.enabled = not base
  c.dit.optim.update(name="muon" if base else "adam", lr=2e-3)
  c.dit.batch_size = 8 if tiny else 32 if base else 16
  c.dit.total_steps = 4 if tiny else 5_000 if base else 800
  c.dit.ema_decay = 0.995 if base else 0.99
  c.dit.every = dict(log=2 if tiny else 25, save=2 if tiny else 400, preview=4 if tiny else 400)
  del c.dgt, c.dct
  return c
