"""DiT as diffusers keeps it: a folder of DiTTransformer2DModel, config.json and weights.

Every block there carries its own copy of the time and label embedders, of which the model reads
the first for the output too: they are one on the way in, and written to each on the way out.
Positions are no weights there but the fixed sine-cosine table. Neither are the frequencies of the
timestep, w_i = 10_000 ** (-i / 127): those of DiT, which divides i by 128, under another period.
"""

from dit_jax.core.errors import UserError
from dit_jax.weights import rename

CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")  # the latter in folders from before 2024
EMBEDDER = "norm1.emb"
SHARED = {
  "time/in": "timestep_embedder.linear_1",
  "time/out": "timestep_embedder.linear_2",
}
TOP = {"final/adaln/proj": "proj_out_1", "final/linear": "proj_out_2"}
BLOCK = {
  "adaln/proj": ("norm1.linear",),
  "attn/qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
  "attn/proj": ("attn1.to_out.0",),
  "mlp/in": ("ff.net.0.proj",),
  "mlp/out": ("ff.net.2",),
}
POSITIONS = "position/table"
MAX_PERIOD = 10_000.0 ** (128 / 127)  # with which w_i = MAX_PERIOD ** (-i / 128)
EXPECTED = {  # what the class can be told and our model has not
  "activation_fn": ("gelu-approximate",),
  "norm_type": ("ada_norm_zero",),
  "norm_elementwise_affine": (False,),
  "attention_bias": (True,),
  "norm_eps": (1e-6, 1e-5),  # DiT's, and the class's default, which DiT's own weights come with
}
SCHEDULER = {  # DiT's chain, for the folder of a pipeline
  "_class_name": "DDIMScheduler",
  "num_train_timesteps": 1000,
  "beta_start": 1e-4,
  "beta_end": 0.02,
  "beta_schedule": "linear",
  "prediction_type": "epsilon",
  "clip_sample": False,
}


def rows(fields: dict) -> list[rename.Row]:
  """The table of a model with `fields` of `models.dit.DiT`."""
  depth = fields["depth"]
  each = lambda name: tuple(f"transformer_blocks.{i}.{EMBEDDER}.{name}" for i in range(depth))
  out = rename.layer("patch_embed/proj", "pos_embed.proj", rename.patches(fields["patch"]))
  for ours, theirs in SHARED.items():
    out += rename.layer(ours, each(theirs), copies=True)
  labels = each("class_embedder.embedding_table.weight")
  out.append(rename.Row("label/table/embedding", labels, copies=True))
  for ours, theirs in TOP.items():
    out += rename.layer(ours, theirs)
  for i in range(depth):
    for ours, theirs in BLOCK.items():
      keys = tuple(f"transformer_blocks.{i}.{name}" for name in theirs)
      out += rename.layer(f"blocks/block_{i:02d}/{ours}", keys)
  return out


def fields(config: dict) -> dict:
  """The fields of `models.dit.DiT` that a config.json says.

  Raises:
    UserError: it is of another class, lacks a field, or says what our model cannot be.
  """
  if config.get("_class_name") not in CLASSES:
    raise UserError(
      f"config.json is of a {config.get('_class_name')}, expected {CLASSES[0]}; check --src."
    )
  for key, known in EXPECTED.items():
    if config.get(key, known[0]) not in known:
      raise UserError(f"config.json has {key}={config[key]!r}, expected {known[0]!r}.")
  try:
    heads, side, z_channels = (
      int(config[key]) for key in ("num_attention_heads", "sample_size", "in_channels")
    )
    outputs = (config["out_channels"] or z_channels) / z_channels
    if outputs not in (1, 2):
      raise ValueError(f"out_channels={config['out_channels']}")
    return dict(
      depth=int(config["num_layers"]),
      num_heads=heads,
      width=heads * int(config["attention_head_dim"]),
      patch=int(config["patch_size"]),
      grid=(side, side),
      z_channels=z_channels,
      num_classes=int(config["num_embeds_ada_norm"]),
      learn_sigma=outputs == 2,
      max_period=MAX_PERIOD,
    )
  except (ArithmeticError, KeyError, TypeError, ValueError) as e:
    raise UserError(f"config.json lacks a field of {CLASSES[0]} or has a wrong one ({e}).") from e


def config(fields: dict) -> dict:
  """The inverse of `fields`.

  Raises:
    UserError: the class has square grids only, and always labels.
  """
  if fields["grid"][0] != fields["grid"][1]:
    raise UserError(f"{CLASSES[0]} takes square latents only, these are {fields['grid']}.")
  return {
    "_class_name": CLASSES[0],
    **{key: known[0] for key, known in EXPECTED.items()},
    "num_attention_heads": fields["num_heads"],
    "attention_head_dim": fields["width"] // fields["num_heads"],
    "in_channels": fields["z_channels"],
    "out_channels": fields["z_channels"] * (2 if fields["learn_sigma"] else 1),
    "num_layers": fields["depth"],
    "sample_size": fields["grid"][0],
    "patch_size": fields["patch"],
    "num_embeds_ada_norm": fields["num_classes"],
  }
