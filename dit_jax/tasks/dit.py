"""The plain diffusion transformer's stage, on the latents of a one-grain DVAE."""

from dit_jax.core.errors import UserError
from dit_jax.models import dit
from dit_jax.nn.attention import AttentionSettings
from dit_jax.tasks import dct, labels, latent_stage
from dit_jax.tasks.task import Task
from dit_jax.training import peft


def make_model(config, meta: dict) -> dit.DiT:
  """The model of a config and of the facts that its latents carry."""
  if len(meta["factors"]) != 1:
    raise UserError(
      f"The dit stage takes latents of one grain, these have factors {tuple(meta['factors'])}; "
      "set dvae.model.factors to one number, as (8,), or train the stages dgt and dct."
    )
  fields = dict(config.dit.model)
  variant = fields.pop("variant", "")
  preset = dit.decode_variant(variant) if variant else {}
  attention = AttentionSettings(**fields.pop("attention", {}))
  return dit.DiT(
    **{**preset, **fields, **peft.of(config, "dit").fields},
    attention=attention,
    grid=tuple(meta["grid"]),
    z_channels=meta["z_channels"],
    **labels.fields(config.dit, meta),
    learn_sigma=config.dit.diffusion.learn_sigma,
  )


def content_fn(model: dit.DiT):
  """The model as `sampling.generate.Models.content`: grains and tokens say nothing here."""
  return lambda params, z, t, label, grains, tokens, rngs=None: model.apply(
    params, z, t, label, rngs=rngs
  )


def build(config, workdir, mesh) -> Task:
  """The stage on the latent cache of `workdir`, which it makes if it is missing."""
  cache = latent_stage.ensure(config, workdir, mesh)
  statistics = latent_stage.statistics(cache)
  content = dct.make_content(config, "dit", cache.meta, statistics, make_model, content_fn)
  return dct.content_task(config, workdir, cache, "dit", content, content_fn)
