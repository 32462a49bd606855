"""Converts weights between formats: arrays are renamed and transposed, nothing of a file is run.

python -m dit_jax.convert --from=dit --to=ours --src=DiT-XL-2-256x256.pt --dst=dit.safetensors

  dit            facebookresearch/DiT: a .pt file, or .safetensors with the same names
  diffusers-dit  a folder of diffusers' DiTTransformer2DModel
  sd-vae         a folder of diffusers' AutoencoderKL, as Stable Diffusion's
  ours           a .safetensors file that says what model it is of
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from dit_jax.core import cli
from dit_jax.core import tree as trees
from dit_jax.core.errors import UserError
from dit_jax.models import dit as dit_model
from dit_jax.models import sd_vae as vae_model
from dit_jax.nn import conv, embed
from dit_jax.weights import (
  diffusers_dit,
  diffusers_folder,
  dit,
  files,
  limits,
  ours,
  rename,
  sd_vae,
  torch_file,
)

MODELS = {"dit": "dit", "diffusers-dit": "dit", "sd-vae": "sd-vae"}  # by format; ours holds both
PERIODS = {"dit": dit.MAX_PERIOD, "diffusers-dit": diffusers_dit.MAX_PERIOD}  # of their own code
# Heads as published: DiT's files do not say them. Of two sizes of one width the first is DiT's.
HEADS = {width: heads for _, width, heads in reversed(dit_model.SIZES.values())}

FLAGS = flags.FlagValues()
_FORMATS = (*MODELS, "ours")
_FROM = flags.DEFINE_enum("from", None, _FORMATS, "Format of the source.", flag_values=FLAGS)
_TO = flags.DEFINE_enum("to", None, _FORMATS, "Format to write.", flag_values=FLAGS)
_SRC = flags.DEFINE_string("src", "", "File or folder to read.", flag_values=FLAGS)
_DST = flags.DEFINE_string("dst", "", "New file or folder.", flag_values=FLAGS)
_HEADS = flags.DEFINE_integer(
  "num_heads", None, "Of --from=dit, where its width is not a published one.", flag_values=FLAGS
)
_PERIOD = flags.DEFINE_float(
  "max_period",
  None,
  "Of a DiT from another format: the period of the timestep that its weights were trained under, "
  "where the format's own code has another; 10000 for facebook/DiT-XL-2-256 of diffusers.",
  flag_values=FLAGS,
)


def main():
  for name in ("from", "to", "src", "dst"):
    if not FLAGS[name].value:
      raise UserError(f"--{name} is needed; see --help.")
  source, target, dst = _FROM.value, _TO.value, pathlib.Path(_DST.value)
  if _HEADS.value is not None and source != "dit":
    raise UserError(f"--num_heads goes with --from=dit; a {source} source says its own.")
  if _PERIOD.value is not None and source not in PERIODS:
    raise UserError(f"--max_period goes with --from={' or '.join(PERIODS)}, not {source}.")
  _check_pair(MODELS.get(source), target)
  with files.new_path(dst) as new:
    model, fields, leaves = READ[source](pathlib.Path(_SRC.value))
    _check_pair(model, target)
    WRITE[target](new, model, fields, leaves)
  if target == "diffusers-dit" and dst.name == "transformer":
    diffusers_folder.complete_pipeline(dst.parent, diffusers_dit.SCHEDULER)
  if target in PERIODS and (gap := _period_gap(fields, leaves, PERIODS[target])):
    print(f"warning: {dst}: {gap}", file=sys.stderr)
  print(f"{dst}: {model}, {trees.count(leaves):,} parameters, {fields}", file=sys.stderr)


def _check_pair(model: str | None, target: str) -> None:
  if model and target != "ours" and model != MODELS[target]:
    raise UserError(f"The source is a {model}, which --to={target} cannot hold; see --help.")


def _period_gap(fields: dict, leaves: dict, theirs: float) -> str:
  """What a format whose model computes with the period `theirs` changes; "" for nothing.

  Measured on the timestep's embedding, at every step of DiT's chain.
  """
  period = fields.get("max_period", embed.MAX_PERIOD)
  if period == theirs:
    return ""
  t = jnp.arange(diffusers_dit.SCHEDULER["num_train_timesteps"], dtype=jnp.float32)
  mlp = {
    name: {kind: leaves[f"time/{name}/{kind}"].astype(np.float32) for kind in ("kernel", "bias")}
    for name in ("in", "out")
  }
  ours_then, theirs_then = (
    embed.TimestepEmbedder(fields["width"], max_period=x).apply({"params": mlp}, t)
    for x in (period, theirs)
  )
  return (
    f"the model has max_period={period} and this format's own code computes with {theirs}; its "
    f"timestep embedding will differ by up to {np.abs(ours_then - theirs_then).max():.2g} (its "
    f"deviation is {ours_then.std():.2g}); see docs/convert.md"
  )


def shapes(model: str, fields: dict) -> dict[str, jax.ShapeDtypeStruct]:
  """Every leaf of a model by path."""
  like = jax.ShapeDtypeStruct  # no array is made
  if model == "dit":
    net = dit_model.DiT(**fields)
    z = like((1, *net.grid, net.z_channels), jnp.float32)
    arguments = z, like((1,), jnp.float32), like((1,), jnp.int32)
  elif model == "sd-vae":
    net = vae_model.AutoencoderKL(**fields)
    arguments = (like((1, net.factor, net.factor, 3), jnp.float32),)
  else:
    raise ValueError(f"unknown {model=}")
  return trees.flatten(jax.eval_shape(net.init, jax.random.key(0), *arguments)["params"])


def _shapes_of(path, model: str, fields: dict, arrays: dict) -> dict[str, jax.ShapeDtypeStruct]:
  """`shapes` of the model that a file says it is of, once its arrays bear that out."""
  try:
    limits.check(model, fields, arrays)
    return shapes(model, fields)
  except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
    raise limits.no_model(path, e) from e


def _told_period() -> dict:
  return {} if _PERIOD.value is None else {"max_period": _PERIOD.value}


def _positions(fields: dict) -> dict:
  """DiT's fixed table, for a format that has no key for it."""
  rows, cols = (side // fields["patch"] for side in fields["grid"])
  return {diffusers_dit.POSITIONS: embed.sincos_table(rows, cols, fields["width"])}


def _read_ours(path):
  model, fields, leaves = ours.load(path)
  rename.check_leaves(leaves, _shapes_of(path, model, fields, leaves))
  return model, fields, leaves


def _write_ours(path, model: str, fields: dict, leaves: dict) -> None:
  ours.save(path, model, fields, leaves)


def _read_dit(path):
  if path.suffix == ".safetensors":
    arrays = files.load_safetensors(path)[0]
  else:
    arrays = torch_file.load(path, dit.CHECKPOINT_KEYS)
  fields = dit.fields(arrays, _HEADS.value) | _told_period()
  if fields["num_heads"] is None:
    fields["num_heads"] = HEADS.get(fields["width"])
  if fields["num_heads"] is None:
    raise UserError(
      f"{path} has width {fields['width']}, which is not a published one ({sorted(HEADS)}); give "
      "--num_heads."
    )
  wanted = _shapes_of(path, "dit", fields, arrays)
  return "dit", fields, rename.to_ours(dit.rows(fields), arrays, wanted)


def _write_dit(path, model: str, fields: dict, leaves: dict) -> None:
  arrays = rename.to_theirs(dit.rows(fields), leaves)
  if path.suffix == ".safetensors":
    files.save_safetensors(path, arrays, {"format": "pt"})
  elif path.suffix in (".pt", ".pth"):
    torch_file.save(path, arrays)
  else:
    raise UserError(f"--dst must end with .pt or .safetensors, not {path.suffix!r}.")


def _read_diffusers_dit(path):
  config, arrays = diffusers_folder.load(path)
  fields = diffusers_dit.fields(config) | _told_period()
  wanted = _shapes_of(path, "dit", fields, arrays)
  rows = diffusers_dit.rows(fields)
  return "dit", fields, rename.to_ours(rows, arrays, wanted, _positions(fields))


def _write_diffusers_dit(path, model: str, fields: dict, leaves: dict) -> None:
  arrays = rename.to_theirs(diffusers_dit.rows(fields), leaves, _positions(fields))
  diffusers_folder.save(path, diffusers_dit.config(fields), arrays)


def _read_sd_vae(path):
  config, arrays = diffusers_folder.load(path)
  fields = sd_vae.fields(config, conv.num_groups)
  wanted = _shapes_of(path, "sd-vae", fields, arrays)
  return "sd-vae", fields, rename.to_ours(sd_vae.rows(fields), sd_vae.modern(arrays), wanted)


def _write_sd_vae(path, model: str, fields: dict, leaves: dict) -> None:
  arrays = rename.to_theirs(sd_vae.rows(fields), leaves)
  diffusers_folder.save(path, sd_vae.config(fields, conv.num_groups), arrays)


READ = {
  "ours": _read_ours,
  "dit": _read_dit,
  "diffusers-dit": _read_diffusers_dit,
  "sd-vae": _read_sd_vae,
}
WRITE = {
  "ours": _write_ours,
  "dit": _write_dit,
  "diffusers-dit": _write_diffusers_dit,
  "sd-vae": _write_sd_vae,
}

if __name__ == "__main__":
  cli.run(main, FLAGS)
