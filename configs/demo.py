"""All three stages of D2iT on Twemoji at 64 px, on two CPU cores: what launch/demo.sh runs.

The DVAE learns from all base emoji, the transformers from three superclasses, which is what twenty
minutes can make readable; `configs/demo.py:all` gives them every superclass. Every 10th emoji of a
subcategory is held out. Sizes and rates are ours, chosen for a CPU: no paper row belongs to them.

  python -m dit_jax.main --config=configs/demo.py --workdir=runs/demo
"""

import ml_collections

from dit_jax.core import config


def get_config(arg=None):
  arg = config.parse_arg(arg, tiny=False, all=False)
  tiny = arg.tiny
  c = ml_collections.ConfigDict()
  c.seed = 0
  c.stages = ("dvae", "dgt", "dct")
  c.init_from = ""  # start from a run of ours (its workdir) or a converted .safetensors file
  c.peft = "full"  # of the transformers: full, bitfit, difffit, finediffusion or efdit
  c.frozen_dtype = "float32"  # of what peft does not train; bfloat16 halves it
  c.mesh = dict(data=-1, fsdp=1, tensor=1)
  c.sharding = ()  # pairs (regex of a parameter's path, axes), before the rules of the package
  c.data = dict(
    source="twemoji",
    path="",  # in its place: a folder, list, archive or table (docs/data.md)
    split="",  # of a set that has splits; "": train, and its own held-out one
    label_key="",  # column or feature of the class; "": found by its name
    super_key="",  # those of its superclasses, finest first: "genus,family"
    image_size=64,
    background="#ffffff",  # under transparent pixels
    classes=(100, 10) if arg.all else (33, 3),
    holdout=10,
    only=() if arg.all else ("Smileys & Emotion", "Symbols", "Flags"),
    taxonomy="",  # superclasses of a flat folder: FILE.csv, FILE.jsonl or "inat2021"
    levels=(),  # columns of it, finest first; (): all
    workers=1,
  )
  c.latents = dict(flip=False, batch_size=32)  # rows of a program on one device
  c.sampling = dict(
    steps=4 if tiny else 50,
    stepper="ddim",  # Euler's method, on rectified flow
    spacing="auto",  # of the times: docs/sampling.md
    guidance=2.0,
    guidance_level=1,  # away from: 1 the superclass ("no class" in a model without tiers)
    guidance_interval=(0.0, 1000.0),  # model times
    guidance_channels=0,  # the first so many of a latent; 0: all
    guidance_rescale=0.0,  # 0: off, to 1
    microbatch=4,
    map_steps=64,
    map_temperature=1.0,
    map_guidance=1.0,
    map_order="random",
  )
  c.evals = dict(  # every so many steps of their stage, on held-out images; 0: never
    reconstruction=dict(every=0, num=1024),
    fidelity=dict(every=0, num=1024, inception="", labels="reference"),  # inception "": VGG16
  )

  adam = dict(
    name="adam",
    lr=1.5e-3,
    warmup_steps=2 if tiny else 50,
    schedule="cosine",
    b1=0.9,
    b2=0.95,
    weight_decay=0.0,
    clip=1.0,
  )
  c.dvae = dict(
    model=dict(
      factors=(4, 8),
      z_channels=4,
      width=8 if tiny else 32,
      encoder_mults=(1, 1, 2, 2),
      decoder_mults=(1, 1, 2),
      res_blocks=1,
      decoder_res_blocks=1,
      attention=False,
      stem=2,  # the levels at full resolution would cost most of the time
      dtype="float32",
    ),
    ratios=(0.5, 0.5),
    loss=dict(
      l1=1.0,
      lpips=0.0 if tiny else 0.1,
      trunk="none" if tiny else "alexnet",
      kl=5e-4,
      disc_weight=0.0,
      disc_start=0.2,
      disc_filters=64,
    ),
    flip=True,
    optim=adam,
    batch_size=8 if tiny else 16,
    accum=1,
    total_steps=4 if tiny else 1_200,
    ema_decay=0.995,
    every=dict(log=2 if tiny else 25, save=2 if tiny else 200, preview=4 if tiny else 400),
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
  c.dgt = dict(
    model=dict(
      depth=2 if tiny else 4,
      width=32 if tiny else 128,
      num_heads=2 if tiny else 4,
      qk_norm=True,
      remat="none",
      attention=attention,
      dtype="float32",
    ),
    label_drop=0.1,
    labels=dict(fusion="none", p_drop=0.1, p_null=0.0),  # tiers: "sum", "concat" or "swap"
    optim=dict(adam, lr=2e-3),
    batch_size=8 if tiny else 32,
    accum=1,
    total_steps=4 if tiny else 600,
    ema_decay=0.99,
    every=dict(log=2 if tiny else 25, save=2 if tiny else 300, preview=4 if tiny else 600),
  )
  c.dct = dict(
    model=dict(
      depth=2 if tiny else 6,
      refine_depth=1,
      width=32 if tiny else 192,
      num_heads=2 if tiny else 3,
      qk_norm=True,
      remat="none",
      window=0,  # regions a side that refined tokens see; 0: all
      attention=attention,
      dtype="float32",
    ),
    labels=dict(fusion="none", p_drop=0.1, p_null=0.0),  # tiers: "sum", "concat" or "swap"
    buckets="mixed",  # how steps are padded: "mixed", "pad", or "budget", equal shares an image
    diffusion=dict(
      schedule="flow",
      prediction="flow",
      learn_sigma=False,
      logit_normal=True,
      loss="unique",
      grain_weights=(1.0, 1.0),
      label_drop=0.1,
    ),
    hrig=dict(  # mends the high band where alpha^2 / sigma^2 >= snr
      enabled=False,
      depth=2,  # Fourier blocks
      snr=1.0,
      weight=0.1,
      frequency_weight=0.1,
      stop_gradient=False,
    ),
    optim=dict(adam, name="muon", lr=2e-3),
    batch_size=8 if tiny else 16,  # more steps help more than more images a step
    accum=1,
    total_steps=4 if tiny else 1_100,
    ema_decay=0.995,
    every=dict(log=2 if tiny else 25, save=2 if tiny else 250, preview=4 if tiny else 1_100),
  )
  return c
