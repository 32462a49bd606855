"""D2iT-XL on ImageNet at 256 px, class-conditional.

Paper row (arXiv 2504.09454, ImageNet 256, FID-50K): 5.74, IS 156.3 without guidance; 1.73, IS 307.9
with it. 687 M parameters. Not reproduced here yet; what the paper leaves open is ours (docs/).
Cost: 177, 2 and 86 EFLOP (10^18) for dvae, dgt and dct. At 40 % of an H200's 788 TFLOP/s, assumed
and not measured, that is 156, 2 and 76 hours on one. Mesh: as it stands on GPUs; TPUs of 16 GB
(v5e) split parameters, --config.mesh.data=1 --config.mesh.fsdp=-1 (docs/scale.md: what fits where).

  python -m dit_jax.main --config=configs/d2it_xl.py --workdir=DIR --config.data.path=IMAGENET/train

`:variant=XL9` has 9 heads of 128 instead of 16 of 72, `:grains=3` three grains (8, 16, 32 px; 64
base tokens; ours), `:flow` rectified flow instead of eps; they combine, as `:grains=3,flow`.
`:tiny` is a CPU test of the whole recipe on emoji.
"""

import ml_collections

from dit_jax.core import config


def get_config(arg=None):
  arg = config.parse_arg(arg, tiny=False, variant="XL", grains=2, flow=False)
  tiny, three = arg.tiny, arg.grains == 3
  if arg.grains not in (2, 3):
    raise config.UserError(f"grains={arg.grains} must be 2 or 3; dit_xl.py has one.")
  c = ml_collections.ConfigDict()
  c.seed = 0
  c.stages = ("dvae", "dgt", "dct")
  c.init_from = ""  # start from a run of ours (its workdir) or a converted .safetensors file
  c.peft = "full"  # of the transformers: full, bitfit, difffit, finediffusion or efdit
  c.frozen_dtype = "float32"  # of what peft does not train; bfloat16 halves it
  c.mesh = dict(data=-1, fsdp=1, tensor=1)
  c.sharding = ()  # pairs (regex of a parameter's path, axes), before the rules of the package
  c.data = dict(
    source="twemoji" if tiny else "folder",
    path="",  # instead of the source: a folder, list, archive or table (docs/data.md)
    split="",  # of a set that has splits; "": train, and its own held-out one
    label_key="",  # column or feature of the class; "": found by its name
    super_key="",  # those of its superclasses, finest first: "genus,family"
    image_size=64 if tiny else 256,
    background="#ffffff",  # under transparent pixels
    classes=(100, 10) if tiny else (1000, 1),  # expected, not imposed: counted from the data
    holdout=5 if tiny else 0,  # every n-th image of a class is never trained on; 0: none
    only=(),  # superclasses that the transformers see; (): all
    taxonomy="",  # superclasses of a flat folder: FILE.csv, FILE.jsonl or "inat2021"
    levels=(),  # columns of it, finest first; (): all
    workers=2 if tiny else 16,
  )
  c.latents = dict(flip=True, batch_size=8 if tiny else 64)  # rows of a program on one device
  c.sampling = dict(
    steps=4 if tiny else 50 if arg.flow else 250,
    stepper="ddim" if arg.flow else "ddpm",  # "ddim" is Euler's method on rectified flow
    spacing="auto",  # of the times: docs/sampling.md
    guidance=1.0,
    guidance_level=1,  # away from: 1 the superclass ("no class" in a model without tiers)
    guidance_interval=(0.0, 1000.0),  # model times
    guidance_channels=0,  # the first so many of a latent; 0: all
    guidance_rescale=0.0,  # 0: off, to 1
    microbatch=4,  # rows of a program on one device
    map_steps=64,
    map_temperature=1.0,
    map_guidance=1.0,
    map_order="random",
  )
  c.evals = dict(  # every so many steps of their stage, on held-out images; 0: never
    reconstruction=dict(every=0, num=1024),
    fidelity=dict(every=0, num=1024, inception="", labels="reference"),  # inception "": VGG16
  )

  c.dvae = dict(
    model=dict(
      factors=((4, 8, 16) if tiny else (8, 16, 32))[: arg.grains],
      z_channels=4,
      width=8 if tiny else 128,
      encoder_mults=(*((1, 1, 2, 2) if tiny else (1, 1, 2, 2, 4)), *(4,) * three),
      decoder_mults=(1, 1, 2) if tiny else (1, 1, 2, 2),
      res_blocks=1 if tiny else 2,
      decoder_res_blocks=1 if tiny else 3,
      attention=True,
      stem=2 if tiny else 1,
      dtype="float32" if tiny else "bfloat16",
    ),
    ratios=(0.25, 0.5, 0.25) if three else (0.5, 0.5),  # share of regions by grain, coarsest first
    loss=dict(
      l1=1.0,
      lpips=1.0,
      trunk="none" if tiny else "vgg16",
      kl=1e-6,
      disc_weight=0.75,
      disc_start=0.2,
      disc_filters=8 if tiny else 64,
    ),
    flip=True,
    optim=dict(
      name="adam",
      lr=1e-4,
      warmup_steps=1 if tiny else 5_000,
      schedule="constant",
      b1=0.5,
      b2=0.9,
      weight_decay=0.0,
      clip=0.0,
    ),
    batch_size=8 if tiny else 256,
    accum=1,
    total_steps=4 if tiny else 500_000,
    ema_decay=0.999,
    every=dict(log=2 if tiny else 100, save=2 if tiny else 5_000, preview=4 if tiny else 5_000),
  )

  optim = dict(
    name="adamw",
    lr=1e-4,
    warmup_steps=0,
    schedule="constant",
    b1=0.9,
    b2=0.999,
    weight_decay=0.0,
    clip=0.0,
  )
  attention = dict(  # kind="pro" makes the blocks below prob-sparse
    kind="full",
    c=5,
    keys="shared",
    pro_blocks=(),
    pro_min_tokens=1024,
    anneal=0.1,
    dense_snr=0.0,
  )
  small = dict(depth=2, width=32, num_heads=2)
  c.dgt = dict(
    model=dict(
      **(small if tiny else dict(depth=12, width=384, num_heads=6)),
      qk_norm=False,
      remat="none",
      attention=attention,
      dtype="float32" if tiny else "bfloat16",
    ),
    label_drop=0.1,
    labels=dict(fusion="none", p_drop=0.1, p_null=0.0),  # tiers: "sum", "concat" or "swap"
    optim=optim,
    batch_size=8 if tiny else 256,
    accum=1,
    total_steps=4 if tiny else 200_000,
    ema_decay=0.9999,
    every=dict(log=2 if tiny else 100, save=2 if tiny else 5_000, preview=4 if tiny else 10_000),
  )
  c.dct = dict(
    model=dict(
      **(dict(**small, refine_depth=1) if tiny else dict(variant=arg.variant)),
      qk_norm=False,
      remat="none",
      window=0,  # regions a side that refined tokens see; 0: all
      attention=attention,
      dtype="float32" if tiny else "bfloat16",
    ),
    labels=dict(fusion="none", p_drop=0.1, p_null=0.0),  # tiers: "sum", "concat" or "swap"
    buckets="mixed",  # how steps are padded: "mixed", "pad", or "budget", equal shares an image
    diffusion=dict(
      schedule="flow" if arg.flow else "linear",
      prediction="flow" if arg.flow else "eps",
      learn_sigma=not arg.flow,
      logit_normal=arg.flow,
      loss="unique",
      grain_weights=(1.0,) * arg.grains,
      label_drop=0.1,
    ),
    hrig=dict(  # mends the high band where alpha^2 / sigma^2 >= snr; needs data.holdout
      enabled=False,
      depth=2 if tiny else 3,  # Fourier blocks
      snr=1.0,
      weight=0.1,
      frequency_weight=0.1,
      stop_gradient=False,
    ),
    optim=optim,
    batch_size=8 if tiny else 256,
    accum=1,
    total_steps=4 if tiny else 400_000,
    ema_decay=0.9999,
    every=dict(log=2 if tiny else 100, save=2 if tiny else 5_000, preview=4 if tiny else 10_000),
  )
  return c
