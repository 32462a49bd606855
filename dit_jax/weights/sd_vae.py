"""Stable Diffusion's autoencoder as diffusers keeps it: a folder of AutoencoderKL."""

from dit_jax.core.errors import UserError
from dit_jax.weights import rename

CLASS = "AutoencoderKL"
EXPECTED = {  # what the class can be told and our model has not
  "in_channels": 3,
  "out_channels": 3,
  "act_fn": "silu",
  "use_quant_conv": True,
  "use_post_quant_conv": True,
  "mid_block_add_attention": True,
  "shift_factor": None,
  "latents_mean": None,
  "latents_std": None,
}
CONVS = ("conv_in", "conv_out")  # of each half, named alike here and there
RES_NORMS, RES_CONVS = ("norm1", "norm2"), ("conv1", "conv2")  # likewise
ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def rows(fields: dict) -> list[rename.Row]:
  """The table of a model with `fields` of `models.sd_vae.AutoencoderKL`."""
  channels, layers = tuple(fields["block_out_channels"]), fields["layers_per_block"]
  return [
    *rename.layer("quant_conv", "quant_conv", rename.CONV),
    *rename.layer("post_quant_conv", "post_quant_conv", rename.CONV),
    *_half("encoder", "down", "downsamplers", channels, layers),
    *_half("decoder", "up", "upsamplers", channels[::-1], layers + 1),
  ]


def _half(half: str, way: str, sampler: str, channels: tuple[int, ...], layers: int):
  """Rows of the encoder or the decoder, whose levels have `channels` in their order."""
  out = rename.norm(f"{half}/norm_out", f"{half}.conv_norm_out")
  for name in CONVS:
    out += rename.layer(f"{half}/{name}", f"{half}.{name}", rename.CONV)
  mid = f"{half}.mid_block"
  for i in range(2):
    out += _res_block(f"{half}/mid/block_{i + 1}", f"{mid}.resnets.{i}", shortcut=False)
  out += rename.norm(f"{half}/mid/attn_1/norm", f"{mid}.attentions.0.group_norm")
  for ours, theirs in ATTENTION.items():
    out += rename.layer(f"{half}/mid/attn_1/{ours}", f"{mid}.attentions.0.{theirs}")
  inputs = channels[0]
  for i, features in enumerate(channels):
    level, block = f"{half}/level_{i}", f"{half}.{way}_blocks.{i}"
    for j in range(layers):
      out += _res_block(f"{level}_res_{j}", f"{block}.resnets.{j}", shortcut=inputs != features)
      inputs = features
    if i < len(channels) - 1:
      out += rename.layer(f"{level}_{way}/conv", f"{block}.{sampler}.0.conv", rename.CONV)
  return out


def _res_block(ours: str, theirs: str, shortcut: bool) -> list[rename.Row]:
  out = rename.layer(f"{ours}/shortcut", f"{theirs}.conv_shortcut", rename.CONV) if shortcut else []
  for name in RES_NORMS:
    out += rename.norm(f"{ours}/{name}", f"{theirs}.{name}")
  for name in RES_CONVS:
    out += rename.layer(f"{ours}/{name}", f"{theirs}.{name}", rename.CONV)
  return out


def modern(arrays: dict) -> dict:
  """The arrays under today's names: before 2023 the attention's layers were called otherwise."""
  out = {}
  for name, x in arrays.items():
    parts = name.split(".")
    if "attentions" in parts:
      parts = [OLD_ATTENTION.get(part, part) for part in parts]
    out[".".join(parts)] = x
  return out


def fields(config: dict, groups_of) -> dict:
  """The fields of `models.sd_vae.AutoencoderKL` that a config.json says.

  Args:
    config: of the folder.
    groups_of: how many groups our norms have at a number of channels.

  Raises:
    UserError: it is of another class, lacks a field, or says what our model cannot be.
  """
  if config.get("_class_name") != CLASS:
    raise UserError(f"config.json is of a {config.get('_class_name')}, expected {CLASS}.")
  for key, known in EXPECTED.items():
    if config.get(key, known) != known:
      raise UserError(f"config.json has {key}={config[key]!r}, expected {known!r}.")
  try:
    channels = tuple(int(n) for n in config["block_out_channels"])
    out = dict(
      block_out_channels=channels,
      layers_per_block=int(config["layers_per_block"]),
      latent_channels=int(config["latent_channels"]),
    )
    if "scaling_factor" in config:
      out["scaling_factor"] = float(config["scaling_factor"])
    groups = int(config.get("norm_num_groups", 32))
  except (ArithmeticError, KeyError, TypeError, ValueError) as e:
    raise UserError(f"config.json lacks a field of {CLASS} or has a wrong one ({e}).") from e
  if not channels or any(groups_of(n) != groups for n in channels):
    raise UserError(
      f"config.json has norm_num_groups={groups}, ours at {channels} channels are "
      f"{[groups_of(n) for n in channels]}; this autoencoder cannot be converted."
    )
  return out


def config(fields: dict, groups_of) -> dict:
  """The inverse of `fields`.

  Raises:
    UserError: the norms have no number of groups in common.
  """
  channels = tuple(fields["block_out_channels"])
  groups = {groups_of(n) for n in channels}
  if len(groups) != 1:
    raise UserError(f"{CLASS} has one number of groups; ours at {channels} are {sorted(groups)}.")
  levels = len(channels)
  return {
    "_class_name": CLASS,
    **{key: known for key, known in EXPECTED.items() if known is not None},
    "block_out_channels": list(channels),
    "down_block_types": ["DownEncoderBlock2D"] * levels,
    "up_block_types": ["UpDecoderBlock2D"] * levels,
    "layers_per_block": fields["layers_per_block"],
    "latent_channels": fields["latent_channels"],
    "norm_num_groups": groups.pop(),
    "sample_size": 256,  # of tiles, where somebody turns tiling on
    **{key: fields[key] for key in ("scaling_factor",) if key in fields},
  }
