"""The grain transformer's stage: label -> grain map, by masked discrete diffusion."""

import jax.numpy as jnp
import numpy as np

from dit_jax.core import rng
from dit_jax.core.errors import UserError
from dit_jax.core.tiers import Drop
from dit_jax.models import dgt
from dit_jax.nn.attention import AttentionSettings
from dit_jax.sampling import generate, grain_maps, grids, parallel
from dit_jax.tasks import labels, latent_stage
from dit_jax.tasks.task import Task
from dit_jax.training import peft


def make_model(config, meta: dict) -> dgt.DGT:
  """The model of a config and of the facts that its latents carry."""
  fields = dict(config.dgt.model)
  attention = AttentionSettings(**fields.pop("attention", {}))
  if attention.dense_snr:
    raise UserError(
      f"dgt.model.attention.dense_snr={attention.dense_snr} has no meaning: grain maps are drawn "
      "without a noise level; set it to 0."
    )
  return dgt.DGT(
    **{**fields, **peft.of(config, "dgt").fields},
    attention=attention,
    grid=tuple(meta["regions"]),
    num_grains=len(meta["factors"]),
    **labels.fields(config.dgt, meta),
  )


def make_loss(model: dgt.DGT, drop: Drop, seed: int = 0):
  """The mean any-order bound per cell, in nats (D2iT stage 2a; our reconstruction)."""

  def loss_fn(params, frozen, batch, keys, norm, step):
    del frozen
    cells, masked = dgt.mask_tokens(rng.stream(keys, "mask"), batch["grains"], model.num_grains)
    label = drop(rng.stream(keys, "label_drop"), batch["label"])
    rngs = {"attention": rng.step_key(seed, step, "attention")}
    logits = model.apply(params, cells, label, rngs=rngs)
    nats = dgt.masked_cross_entropy(logits, batch["grains"], masked).sum() / norm["images"]
    return nats, {"nats_per_cell": nats}

  return loss_fn


def normalizers(batch: dict) -> dict:
  """The number of images of the global batch."""
  return {"images": jnp.float32(batch["label"].shape[0])}


def make_phases(config, model: dgt.DGT, meta: dict) -> tuple:
  """The losses of a run, as in tasks.task.Task."""
  drop = labels.drop(config.dgt, meta, config.dgt.label_drop)
  return tuple(
    (start, make_loss(model.clone(attention=attention), drop, config.seed))
    for start, attention in model.attention.phases(config.dgt.total_steps, model.block_tokens)
  )


def make_init(model: dgt.DGT):
  """key -> params."""
  one = lambda *shape: jnp.zeros((1, *shape), jnp.int32)
  return lambda key: model.init(key, one(*model.grid), one())


def build(config, workdir, mesh) -> Task:
  """The stage on the latent cache of `workdir`, which it makes if it is missing."""
  cache = latent_stage.ensure(config, workdir, mesh)
  model = make_model(config, cache.meta)
  return latent_stage.task(
    config,
    cache,
    name="dgt",
    init=make_init(model),
    phases=make_phases(config, model, cache.meta),
    normalizers=normalizers,
    preview=map_preview(config, model, cache.meta, latent_stage.shown_rows(cache)),
  )


def map_preview(config, model: dgt.DGT, meta: dict, shown: dict):
  """(params, frozen) -> picture of the data's maps above the model's of their labels; white: fine.

  Args:
    config: of the run.
    model: whose parameters `params` are.
    meta: facts of the latents.
    shown: rows of the latents.
  """
  settings = generate.Settings(**config.sampling)
  base = labels.tree(config.dgt, meta).ancestors(settings.guidance_level)
  places = parallel.Rows(settings.microbatch)

  def sample(params, rows):
    return grain_maps.sample_maps(
      lambda cells, label: model.apply(params, cells, label),
      rows["label"],
      rng.sample_keys(config.seed, rows["index"]),
      shape=model.grid,
      num_grains=model.num_grains,
      steps=settings.map_steps,
      temperature=settings.map_temperature,
      order=settings.map_order,
      guidance=settings.map_guidance,
      null_label=jnp.asarray(base)[rows["label"]],
    )

  draw, rows = places.jit(sample), {name: shown[name] for name in ("label", "index")}

  def preview(params, frozen):
    del frozen
    maps = shown["grains"], places.run(draw, params, rows)
    pictures = [_as_pictures(grains, model.num_grains) for grains in maps]
    return grids.blocks([("data", pictures[0]), ("samples", pictures[1])])

  return preview


def _as_pictures(grains, num_grains: int) -> np.ndarray:
  grey = np.asarray(grains, np.float32) * 255 / (num_grains - 1)
  return np.repeat(grey.astype(np.uint8).repeat(4, 1).repeat(4, 2)[..., None], 3, axis=-1)
