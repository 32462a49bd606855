"""HRIG in the stages `dit` and `dct`: its network beside theirs, and its strength in checkpoints.

R_phi's parameters are a tree of their own, "hrig/...", beside the transformer's "params/...".
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.core import buckets, rng
from dit_jax.core.errors import UserError
from dit_jax.data import grain_maps, sources
from dit_jax.diffusion import hrig
from dit_jax.diffusion.process import Process
from dit_jax.models.superres import LatentEnhancer
from dit_jax.nn import fourier_pair
from dit_jax.nn import grains as structure
from dit_jax.sampling import parallel
from dit_jax.tasks import autoencoder, latent_stage

HELD_OUT = 64  # latents that decide the strength, each at a time of its own


@dataclasses.dataclass(frozen=True)
class Attached:
  """HRIG on latents of a shape.

  Attributes:
    rule: loss and correction.
    model: E.
    grid, channels: of the latents.
    factors: f_1 < ... < f_k of them.
  """

  rule: hrig.HRIG
  model: LatentEnhancer
  grid: tuple[int, int]
  channels: int
  factors: tuple[int, ...]

  def extend(self, init):
    """key -> the tree of `init` and this one's under "hrig"."""

    def extended(key):
      z = jnp.zeros((1, *self.grid, self.channels))
      own = self.model.init(jax.random.fold_in(key, 1), fourier_pair.down(z), z, jnp.zeros(1))
      return {**init(key), "hrig": own["params"]}

    return extended

  def projection(self, grains):
    """P_g: the mean over each code's copies, 0 on the coarsest cells; None where all are fine."""
    if len(self.factors) == 1:
      return None
    coarse = structure.cell_grains(grains, self.factors)[..., None] == 0
    return lambda x: jnp.where(coarse, 0.0, structure.project(x, grains, self.factors))


def enabled(block) -> bool:
  """Whether a stage's block asks for HRIG."""
  return block.get("hrig", {}).get("enabled", False)


def check(config, name: str, process: Process) -> None:
  """Raises UserError where a stage's HRIG has no time to act at, or no image to be measured on."""
  hrig.window_times(process.schedule, config[name].hrig.snr, 1)
  try:
    sources.open_source(config.data, "heldout")  # small classes may have no n-th image
  except UserError as e:
    raise UserError(
      f"{name}.hrig.enabled needs held-out images, which decide its strength: {e}"
    ) from e


def attach(block, process: Process, meta: dict) -> Attached | None:
  """HRIG as a stage's block asks for it; None without `hrig` or with hrig.enabled=False.

  Args:
    block: of the stage; hrig.{enabled, depth, snr, weight, frequency_weight, stop_gradient}.
    process: of the stage.
    meta: facts of the latents: grid, z_channels, factors.

  Raises:
    UserError: a number out of range.
  """
  if not enabled(block):
    return None
  fields = {k: v for k, v in block.hrig.items() if k not in ("enabled", "depth")}
  model = LatentEnhancer(depth=block.hrig.depth)
  enhance = lambda params, *args: model.apply({"params": params}, *args)
  rule = hrig.HRIG(process.schedule, enhance, fourier_pair.down, fourier_pair.high_pass, **fields)
  return Attached(rule, model, tuple(meta["grid"]), meta["z_channels"], tuple(meta["factors"]))


def correction(block, process: Process, meta: dict):
  """`sampling.generate.Models.correct_x0` of a checkpoint's meta; None at strength 0."""
  attached, strength = attach(block, process, meta), meta.get("hrig", {}).get("strength", 0.0)
  if attached is None or not strength:
    return None

  def correct_x0(params, x0, z, t, grains):
    correct = attached.rule.correct_x0(
      params["content"]["hrig"], strength, attached.projection(grains)
    )
    return correct(x0, z, t)

  return correct_x0


def measured(config, workdir, name: str, loss, content):
  """(params, frozen) -> {"hrig": what `choose_strength` says of held-out latents}.

  Args:
    config: of the run, whose data must have a held-out split.
    workdir: holds the autoencoder.
    name: "dit" or "dct".
    loss: tasks.dct.DiffusionLoss, with HRIG attached.
    content: (params, z, model_time, label, grains, tokens) -> raw output, every row at a time of
      its own; what is sampled with at those times.

  Raises:
    UserError: no image is held out.
  """
  rows = held_out(config, workdir, HELD_OUT)
  attached, process, factors = loss.hrig, loss.process, loss.factors
  rows["t"] = hrig.window_times(process.schedule, attached.rule.snr, len(rows["label"]))
  rows["tokens"] = None
  if len(factors) > 1:
    regions = rows["grains"][0].size
    most = buckets.num_tokens(rows["grains"], factors).max()
    capacity = int(buckets.capacity_for(most, regions, factors))
    rows["tokens"] = buckets.token_index(rows["grains"], factors, capacity)
  places = parallel.Rows(config.sampling.microbatch)

  def errors(params, rows):
    t, keys = rows["t"], rng.sample_keys(config.seed, rows["index"])
    x0 = loss.latents(rows, keys)
    eps = structure.structured_noise(
      rng.stream(keys, "noise"), rows["grains"], factors, x0.shape[-1]
    )
    z = process.add_noise(x0, eps, t)
    model_time = process.schedule.model_time(t)
    shown = rows["label"], rows["grains"], rows["tokens"]
    pred, _ = process.split(content(params, z, model_time, *shown))
    x0_hat, _ = process.to_x0_eps(pred, z, t)
    project = attached.projection(rows["grains"])
    return attached.rule.errors(params["hrig"], x0, x0_hat, z, t, project)

  compiled = places.jit(errors)

  def measure(params, frozen):
    del frozen
    chosen = hrig.choose_strength(places.run(compiled, params, rows))
    if jax.process_index() == 0:
      print(
        "[{}] hrig: strength {strength}, high-band error of {} held-out latents "
        "{error_plain:.4f} -> {error:.4f}".format(name, len(rows["t"]), **chosen),
        flush=True,
      )
    return {"hrig": chosen}

  return measure


def held_out(config, workdir, count: int) -> dict:
  """Rows of held-out images as the latent cache would hold them, spread evenly over the split.

  Their order is the seed's: the split's is by class, and who gives them times would give each class
  times of its own.
  """
  source = sources.open_source(config.data, "heldout")
  vae_params, thresholds = autoencoder.load(config, workdir)
  maps = grain_maps.GrainMaps.from_record(thresholds)
  places, encode = latent_stage.encoder(config)
  take = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)
  take = np.random.default_rng(config.seed).permutation(take)
  items = [source[int(i)] for i in take]
  rows = {name: np.stack([item[name] for item in items]) for name in items[0]}
  rows = latent_stage.with_grains(config, maps, rows)
  pictures = {name: rows[name] for name in ("image", "grains")}
  rows["moments"] = places.run(encode, vae_params, pictures)
  return {name: rows[name] for name in ("moments", "grains", "label", "index")}
