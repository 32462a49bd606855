"""What makes latents of images and images of latents, whichever it is.

A run trains a DVAE of its own (its stage `dvae`), or takes Stable Diffusion's autoencoder (its
block `sd_vae`), one grain, whose file is copied into the workdir: whoever has the workdir can
sample, and a resumed run does not need the file.
"""

import filecmp
import pathlib
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.experimental import multihost_utils

from dit_jax.core import config as configs
from dit_jax.core import files, rng
from dit_jax.core import tree as trees
from dit_jax.core.errors import UserError
from dit_jax.data import grain_maps
from dit_jax.models import sd_vae
from dit_jax.sampling.generate import to_float
from dit_jax.tasks import dvae
from dit_jax.training.checkpoint import Checkpoints
from dit_jax.weights import ours, rename

COPY = "sd_vae.safetensors"  # of the workdir


class Autoencoder(NamedTuple):
  """An encoder and a decoder, on parameters that they do not hold.

  Attributes:
    moments: (params, images uint8 [b, H, W, 3], grain maps) -> [b, h, w, 2 n_z].
    decode: (params, latents [b, h, w, n_z]) -> images in [-1, 1], not clipped.
    init: key -> params.
    factors: f_1 < ... < f_k of its codes.
    z_channels: n_z.
    statistics: {"mean", "std"} by grain and channel that its latents are standardised with; None
      where they are measured.
  """

  moments: Callable
  decode: Callable
  init: Callable
  factors: tuple[int, ...]
  z_channels: int
  statistics: dict[str, list] | None

  def layout(self, image_size: int) -> dict:
    """factors, regions and grid (rows, cols), z_channels of the latents of square images.

    Raises:
      UserError: the size is no multiple of the largest factor.
    """
    most = self.factors[-1]
    if image_size % most:
      raise UserError(
        f"data.image_size={image_size} must be a multiple of {most}, the largest factor of the "
        f"autoencoder; nearest is {max(1, round(image_size / most)) * most}."
      )
    return {
      "factors": self.factors,
      "regions": (image_size // most,) * 2,
      "grid": (image_size // self.factors[0],) * 2,
      "z_channels": self.z_channels,
    }


def of(config) -> Autoencoder:
  """The autoencoder of a recipe.

  Raises:
    UserError: the recipe has none, or two.
  """
  there = [name for name in ("dvae", "sd_vae") if name in config]
  if len(there) != 1:
    raise UserError(
      f"the recipe has {' and '.join(there) or 'no autoencoder'}; give one of the blocks dvae, a "
      "stage that is trained, and sd_vae."
    )
  return _stable(config.sd_vae.model) if pretrained(config) else _own(config)


def pretrained(config) -> bool:
  """Whether a recipe takes Stable Diffusion's autoencoder."""
  return "sd_vae" in config


def shapes(config) -> dict:
  """Of its parameters."""
  return jax.eval_shape(of(config).init, rng.abstract_key())


def load(config, workdir) -> tuple[Any, dict]:
  """(averaged parameters, record of the thresholds for grain maps) of a workdir's autoencoder.

  Raises:
    UserError: it is not there, not trained to its end, or damaged.
  """
  workdir = pathlib.Path(workdir)
  if pretrained(config):
    return _read(config, workdir / COPY), grain_maps.one_grain(of(config).factors[-1])
  ema, meta, step = Checkpoints(workdir / "dvae").restore_ema()
  if step < config.dvae.total_steps:
    raise UserError(
      f"the dvae stage in {workdir} is at step {step} of {config.dvae.total_steps}; train it to "
      "its end first, without --stage (and delete its newest checkpoint if that is damaged)."
    )
  return ema["gen"], meta["thresholds"]


def check(config, workdir) -> None:
  """Refuses, before anything is written, an autoencoder that cannot be had.

  Raises:
    UserError: the base of a fine-tune knows other latents; or a file that is needed is missing,
      damaged or of another model.
  """
  if not any(name in config.stages for name in ("dgt", "dct", "dit")):
    return
  if source := run_of(config.get("init_from", "")):
    theirs = configs.from_json((source / "config.json").read_text(encoding="utf-8"))
    if pretrained(theirs) != pretrained(config):
      raise UserError(
        f"init_from={config.init_from} knows the latents of {_words(theirs)}, and this recipe has "
        f"{_words(config)}; take a recipe with the same autoencoder."
      )
  if pretrained(config):
    _check_file(config, pathlib.Path(workdir) / COPY)
  elif (folder := donor(config)) and not Checkpoints(pathlib.Path(workdir) / "dvae").steps():
    _check_dvae(config, folder)


def adopt(config, workdir) -> None:
  """Copies what others trained into the workdir: a file, or the DVAE of a fine-tune's base."""
  workdir = pathlib.Path(workdir)
  if pretrained(config):
    if jax.process_index() == 0 and not (workdir / COPY).exists():
      with files.in_one_move(workdir / COPY) as half:
        shutil.copyfile(_file(config), half)
  elif folder := donor(config):
    _adopt_dvae(config, folder, workdir / "dvae")
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices("autoencoder taken over")


def run_of(init_from: str) -> pathlib.Path | None:
  """The workdir of ours that `init_from` is, or that the stage's folder it names lies in."""
  path = pathlib.Path(init_from).expanduser()
  folders = (path, path.parent) if init_from and path.is_dir() else ()
  return next((folder for folder in folders if (folder / "config.json").exists()), None)


def donor(config) -> pathlib.Path | None:
  """The folder of the DVAE that the base was trained on, where the base is a run of ours."""
  workdir = run_of(config.get("init_from", ""))
  if workdir is None or "dvae" not in config or not Checkpoints(workdir / "dvae").steps():
    return None
  return workdir / "dvae"


def _adopt_dvae(config, folder: pathlib.Path, target: pathlib.Path) -> None:
  """Copies the newest checkpoint of a DVAE, whose latents alone the base knows."""
  if Checkpoints(target).steps():
    return
  step = _check_dvae(config, folder)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices("dvae chosen")  # all have seen that there is none
  if jax.process_index() == 0:
    target.mkdir(exist_ok=True)
    half = target / "adopted.tmp"
    shutil.rmtree(half, ignore_errors=True)  # of a run killed here
    shutil.copytree(folder / str(step), half)
    half.rename(target / str(step))
    print(f"[dvae] taken over from {folder / str(step)}: the base knows its latents", flush=True)


def _check_dvae(config, folder: pathlib.Path) -> int:
  """The step of a base's DVAE, if this recipe could have trained it; all processes call it."""
  checkpoints = Checkpoints(folder)
  step = checkpoints.whole()
  if step is None:
    raise UserError(f"every checkpoint in {folder}, the base's DVAE, is damaged; put back a copy.")
  old = configs.from_json(checkpoints.read_meta(step)["config"])
  model = lambda c: {"dvae": {"model": c.dvae.model}, "data": {"image_size": c.data.image_size}}
  if found := configs.resume_differences(model(old), model(config)):
    raise UserError(
      f"the DVAE of init_from={config.init_from} is another one, stored -> wanted: "
      f"{'; '.join(found[:5])}; set its values in the recipe."
    )
  if step < config.dvae.total_steps:
    raise UserError(
      f"the DVAE of init_from={config.init_from} is at step {step}; set dvae.total_steps={step}, "
      f"which now is {config.dvae.total_steps}, or train it to its end."
    )
  return step


def _check_file(config, copy: pathlib.Path) -> None:
  """Refuses the file of Stable Diffusion's autoencoder, unless it is what the run stands on."""
  source, base = _file(config), run_of(config.get("init_from", ""))
  if not copy.exists():
    if not source:
      raise UserError(
        "sd_vae.path is empty; give the .safetensors file that python -m dit_jax.convert "
        "--from=sd-vae --to=ours makes of Stable Diffusion's autoencoder."
      )
    _read(config, source)
  for known in (copy, *([base / COPY] if base else [])):
    if source and source.exists() and known.exists() and not filecmp.cmp(known, source, False):
      raise UserError(
        f"sd_vae.path={source} is not the autoencoder in {known}, whose latents this run stands "
        "on; give that one, or none."
      )


def _file(config) -> pathlib.Path | None:
  """The file to copy: the recipe's, or that of the base."""
  base = run_of(config.get("init_from", ""))
  path = config.sd_vae.path or (base / COPY if base else "")
  return pathlib.Path(path).expanduser() if path else None


def _words(config) -> str:
  return "Stable Diffusion's autoencoder (sd_vae)" if pretrained(config) else "a DVAE of its own"


def _read(config, path: pathlib.Path) -> dict:
  """Parameters of Stable Diffusion's autoencoder from a file of ours."""
  model, fields, leaves = ours.load(path)
  if model != "sd-vae":
    raise UserError(f"{path} is of a {model}, expected an sd-vae; give the autoencoder's file.")
  want = {name: x for name, x in config.sd_vae.model.items() if name != "dtype"}
  if other := [f"{k}: {x} -> {want[k]}" for k, x in fields.items() if want.get(k, x) != x]:
    raise UserError(
      f"{path} is another autoencoder than sd_vae.model, stored -> wanted: {', '.join(other)}; set "
      "its values in the recipe."
    )
  rename.check_leaves(leaves, trees.flatten(shapes(config)))
  return traverse_util.unflatten_dict(leaves, sep="/")


def _own(config) -> Autoencoder:
  model = dvae.make_model(config.dvae.model)
  stage = lambda: dvae.DVAETask(config.dvae, config.data.image_size)
  return Autoencoder(
    moments=lambda params, *batch: stage().encode_moments({"gen": params}, *batch),
    decode=lambda params, z: stage().decode({"gen": params}, z),
    init=lambda key: stage().init(key)["gen"],  # without its critic
    factors=model.factors,
    z_channels=model.z_channels,
    statistics=None,
  )


def _stable(fields) -> Autoencoder:
  fields = {**fields, "block_out_channels": tuple(fields.block_out_channels)}
  model = sd_vae.AutoencoderKL(**fields | {"dtype": jnp.dtype(fields["dtype"])})
  apply = lambda params, x, method: model.apply({"params": params}, x, method=method)
  row = lambda value: [[value] * model.latent_channels]
  return Autoencoder(
    moments=lambda params, images, grains: apply(params, to_float(images), "encode"),
    decode=lambda params, z: apply(params, z, "decode"),
    init=lambda key: model.init(key, jnp.zeros((1, model.factor, model.factor, 3)))["params"],
    factors=(model.factor,),
    z_channels=model.latent_channels,
    statistics={"mean": row(0.0), "std": row(1 / model.scaling_factor)},
  )
