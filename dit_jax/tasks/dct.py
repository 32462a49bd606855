"""The content transformer's stage: multi-grained noise, one diffusion loss over unique codes."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.core import buckets, rng, slots
from dit_jax.core.errors import UserError
from dit_jax.core.tiers import Drop
from dit_jax.data import plan
from dit_jax.diffusion import losses, process, schedules
from dit_jax.models import dct
from dit_jax.models.dvae import dvae
from dit_jax.nn import grains as structure
from dit_jax.nn.attention import AttentionSettings
from dit_jax.tasks import autoencoder, hrig, labels, latent_stage, padding
from dit_jax.tasks.task import Task
from dit_jax.training import peft, sharding


@dataclasses.dataclass(frozen=True)
class DiffusionLoss:
  """The loss of `dct` and, with one grain, of `dit`; noise and weights follow the grain map.

  Attributes:
    apply: (params, z, model_time, label, batch, step) -> raw output, [b, h, w, c or 2 c].
    process: schedule and parameterisation.
    factors: f_1 < ... < f_k of the latents.
    mean, std: latent statistics, [k, c].
    drop: (keys, labels) -> the nodes that the model is shown.
    kind: "unique", "copied" or "grain_means" (D2iT, multi-grained loss; our reconstruction).
    grain_weights: weights of the grains under "grain_means", coarsest first.
    hrig: tasks.hrig.Attached, whose loss is added; None adds nothing.
  """

  apply: Any
  process: process.Process
  factors: tuple[int, ...]
  mean: jax.Array
  std: jax.Array
  drop: Drop
  kind: str = "unique"
  grain_weights: tuple[float, ...] = (1.0, 1.0)
  hrig: Any = None

  def latents(self, batch: dict, keys) -> jax.Array:
    """Standardised posterior samples, [b, h, w, c], with the structure of the grain map."""
    z = dvae.posterior_sample(
      batch["moments"], batch["grains"], rng.stream(keys, "posterior"), self.factors
    )
    return structure.standardize(z, batch["grains"], self.factors, self.mean, self.std)

  def normalizers(self, batch: dict) -> dict:
    """Counts of codes over the global batch: the denominators of every term."""
    cells = structure.cell_grains(batch["grains"], self.factors)
    weights = structure.unique_weights(batch["grains"], self.factors)
    return losses.norms(cells, weights, len(self.factors))

  def __call__(self, params, frozen, batch: dict, keys, norm: dict, step):
    """Sum over the batch of the per-code losses over `norm`, and its parts as metrics."""
    del frozen
    x0 = self.latents(batch, keys)
    t = self.process.schedule.sample_times(rng.stream(keys, "timestep"))
    eps = structure.structured_noise(
      rng.stream(keys, "noise"), batch["grains"], self.factors, x0.shape[-1]
    )
    z = self.process.add_noise(x0, eps, t)
    label = self.drop(rng.stream(keys, "label_drop"), batch["label"])
    out = self.apply(params, z, self.process.schedule.model_time(t), label, batch, step)

    cells = structure.cell_grains(batch["grains"], self.factors)
    weights = structure.unique_weights(batch["grains"], self.factors)
    reduce = lambda e: losses.reduce_terms(e, cells, weights, self.kind, norm, self.grain_weights)
    pred, log_var_mix = self.process.split(out)
    loss = reduce(losses.mse_terms(pred, self.process.target(x0, eps, t)))
    metrics = {"mse": loss}
    x0_hat, _ = self.process.to_x0_eps(pred, z, t)
    if log_var_mix is not None:
      vlb = reduce(losses.vlb_terms(self.process.schedule, x0, z, t, x0_hat, log_var_mix))
      loss, metrics = loss + vlb, metrics | {"vlb_bits": vlb}
    if self.hrig is not None:
      images = norm["cells"] / cells[0].size  # of the full batch
      term, parts = self.hrig.rule.loss(params["hrig"], x0, x0_hat, z, t, images)
      loss, metrics = loss + term, metrics | parts
    return loss, metrics


def make_process(block) -> process.Process:
  """Schedule and parameterisation of a stage's `diffusion` block."""
  schedule = schedules.make_schedule(block.schedule, logit_normal=block.logit_normal)
  return process.Process(schedule, prediction=block.prediction, learn_sigma=block.learn_sigma)


def make_model(config, meta: dict) -> dct.DCT:
  """The model of a config and of the facts that its latents carry."""
  if len(meta["factors"]) < 2:
    raise UserError(
      f"The dct stage needs latents of two grains or more, these have factors "
      f"{tuple(meta['factors'])}; set dvae.model.factors, as (8, 16), or train the stage dit."
    )
  fields = dict(config.dct.model)
  variant = fields.pop("variant", "")
  preset = dct.decode_variant(variant) if variant else {}
  attention = AttentionSettings(**fields.pop("attention", {}))
  return dct.DCT(
    **{**preset, **fields, **peft.of(config, "dct").fields},
    attention=attention,
    factors=tuple(meta["factors"]),
    grid=tuple(meta["grid"]),
    z_channels=meta["z_channels"],
    **labels.fields(config.dct, meta),
    learn_sigma=config.dct.diffusion.learn_sigma,
  )


def content_fn(model: dct.DCT):
  """The model as `sampling.generate.Models.content`; in training with `rngs`."""
  return lambda params, z, t, label, grains, tokens, rngs=None: model.apply(
    params, z, t, label, grains, tokens, rngs=rngs
  )


@dataclasses.dataclass(frozen=True)
class Content:
  """A diffusion stage before it meets data: `dct` or `dit`, which differ in their model alone.

  Attributes:
    model: the transformer.
    loss: of its first phase's attention.
    phases: as in tasks.task.Task.
    init: key -> params.
  """

  model: Any
  loss: DiffusionLoss
  phases: tuple
  init: Any


def make_content(
  config, name: str, meta: dict, statistics: dict, make_model, content_fn
) -> Content:
  """The stage of a config and of the facts and statistics that its latents carry."""
  model, block = make_model(config, meta), config[name]
  factors = tuple(meta["factors"])

  def apply_of(attention):
    content = content_fn(model.clone(attention=attention))

    def apply(params, z, t, label, batch, step):
      rngs = {"attention": rng.step_key(config.seed, step, "attention")}
      return content(params, z, t, label, batch["grains"], batch.get("tokens"), rngs)

    return apply

  process = make_process(block.diffusion)
  attached = hrig.attach(block, process, meta)
  loss = DiffusionLoss(
    apply=apply_of(model.attention),
    process=process,
    factors=factors,
    mean=jnp.asarray(statistics["mean"], jnp.float32),
    std=jnp.asarray(statistics["std"], jnp.float32),
    drop=labels.drop(block, meta, block.diffusion.label_drop),
    kind=block.diffusion.loss,
    grain_weights=tuple(block.diffusion.grain_weights),
    hrig=attached,
  )
  phases = tuple(
    (start, dataclasses.replace(loss, apply=apply_of(attention)))
    for start, attention in model.attention.phases(block.total_steps, model.block_tokens)
  )

  def init(key):
    z = jnp.zeros((1, *meta["grid"], meta["z_channels"]))
    args = [z, jnp.zeros((1,)), jnp.zeros((1,), jnp.int32)]
    if len(factors) > 1:
      grains = np.zeros((1, *meta["regions"]), np.int32)
      index = buckets.token_index(grains, factors, capacity=1)
      args += [jnp.asarray(grains), jax.tree.map(jnp.asarray, index)]
    return model.init(key, *args)

  return Content(model, loss, phases, init if attached is None else attached.extend(init))


def build(config, workdir, mesh) -> Task:
  """The stage on the latent cache of `workdir`, which it makes if it is missing."""
  cache = latent_stage.ensure(config, workdir, mesh)
  statistics = latent_stage.statistics(cache)
  content = make_content(config, "dct", cache.meta, statistics, make_model, content_fn)
  block, factors = config.dct, tuple(cache.meta["factors"])
  tokens, quantum = latent_stage.num_tokens(cache), latent_stage.quantum(cache)
  groups = sharding.num_shards(mesh) * block.accum
  shapes = slots.of_mode(block.buckets, tokens, block.batch_size, quantum, groups)
  if jax.process_index() == 0:
    print(_describe(shapes, padding.overhead(content.model, tokens, shapes)), flush=True)
  how = plan.reading(tokens, factors, quantum, shapes, config.seed)
  return content_task(config, workdir, cache, "dct", content, content_fn, **how)


def content_task(config, workdir, cache, name: str, content: Content, content_fn, **how) -> Task:
  """The stage on a latent cache; `how` as for latent_stage.task."""
  gate = functools.partial(
    latent_stage.gated_content, content_fn, content.model, content.loss.process
  )
  measured = None
  if content.loss.hrig is not None:
    measured = hrig.measured(config, workdir, name, content.loss, gate(own_times=True))
  return latent_stage.task(
    config,
    cache,
    name=name,
    init=content.init,
    phases=content.phases,
    normalizers=content.loss.normalizers,
    frozen={"dvae": autoencoder.load(config, workdir)[0]},
    preview=latent_stage.picture_preview(config, cache, content.loss, gate()),
    measured=measured,
    **how,
  )


def _describe(shapes: slots.Slots, overhead: float) -> str:
  """The slots of a step in a line."""
  pairs = zip(shapes.counts, shapes.capacities, strict=True)
  return (
    "[dct] slots of a step, images x refined tokens: "
    + ", ".join(f"{count} x {capacity}" for count, capacity in pairs)
    + f"; {overhead:.3f} times the FLOPs that the images need"
  )
