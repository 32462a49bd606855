"""A stage as shapes: its real train step and its real sampling programs, without data or weights.

They compile for devices that need not exist (core.targets), which tells whether a recipe fits them.
The refined tokens of the images are assumed: normal around the recipe's fine fraction with the
deviation that photographs have.
"""

import dataclasses
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.core import buckets, rng, slots
from dit_jax.sampling import generate
from dit_jax.tasks import autoencoder, dct, dgt, dvae, latent_stage, sizes, superres
from dit_jax.training import optim, peft, sharding, state, step

DEVIATION = 0.2  # of the fine fraction among photographs: 0.18 to 0.26


@dataclasses.dataclass(frozen=True)
class Prepared:
  """The train step of a stage, in the last of its phases.

  Attributes:
    step: for `step.compile(state, batch)`, or to be called.
    init: (key, frozen, start) -> state; see training.state.abstract.
    state, batch: ShapeDtypeStructs with their places on the mesh.
    slots: of the batch; None where no stage refines.
  """

  step: step.Step
  init: Any
  state: Any
  batch: dict
  slots: slots.Slots | None


def prepare(config, name: str, classes, mesh) -> Prepared:
  """A stage's train step on a mesh of real devices or of a target's.

  Args:
    config: a recipe.
    name: the stage.
    classes: as sizes.latent_meta takes them.
    mesh: from sharding.make_mesh.
  """
  block, meta = config[name], sizes.latent_meta(config, classes)
  init, phases, normalizers = _trained(config, name, meta)
  _, _, _, frozen = sizes.parts(config, name, meta)
  tx, how = optim.make_tx(block.optim, block.total_steps), peft.of(config, name)
  kept = frozen() | how.base(init)
  born, shapes = state.abstract(how.init(init), tx, kept, mesh, config.sharding)
  jitted = step.make_step(
    loss_fn=how.over_base(phases[-1][1]),
    normalizers=normalizers,
    tx=tx,
    ema_decay=block.ema_decay,
    seed=config.seed,
    accum=block.accum,
    mesh=mesh,
    state_shardings=jax.tree.map(lambda s: s.sharding, shapes),
  )
  shared = None
  if name == "dct":
    shared = assumed_slots(config, meta, sharding.num_shards(mesh) * block.accum)
  batch = _batch(config, name, meta, shared)
  rows = jax.tree.map(lambda _: sharding.batch_sharding(mesh), batch)
  return Prepared(jitted, born, shapes, sharding.placed(batch, rows), shared)


def compile_step(config, name: str, classes, mesh):
  """The executable of a stage's train step; the arguments are those of `prepare`."""
  prepared = prepare(config, name, classes, mesh)
  return prepared.step.compile(prepared.state, prepared.batch)


def compile_sampling(config, name: str, classes, devices):
  """The executable that draws with a stage: its images (at the most tokens), maps or latents."""
  meta = sizes.latent_meta(config, classes)
  init, _, _ = _trained(config, name, meta)
  params = jax.eval_shape(init, rng.abstract_key())
  if name == "dvae":
    places, encode = latent_stage.encoder(config, devices)
    size, zeros = config.data.image_size, np.zeros
    rows = {"image": zeros((places.total, size, size, 3), np.uint8)}
    rows["grains"] = zeros((places.total, *meta["regions"]), np.int32)
    return encode.lower(*places.shapes(params["gen"], rows)).compile()
  meta = meta | {"latent_stats": _no_statistics(meta)}
  if name == "dgt":
    model = dgt.make_model(config, meta)
    maps = lambda params, *args: model.apply(params["dgt"], *args)
    content = None
    process = dct.make_process(config.dct.diffusion)
  else:
    module = sizes.TRANSFORMERS[name]
    maps, process = None, dct.make_process(config[name].diffusion)
    model = module.make_model(config, meta)
    content = latent_stage.gated_content(module.content_fn, model, process)
  models = latent_stage.sampling_models(config, meta, process, content, maps)
  generator = generate.Generator(models, generate.Settings(**config.sampling), devices)
  if name == "dgt":
    return generator.compile_maps({"dgt": params})
  return generator.compile_images({"content": params, "dvae": autoencoder.shapes(config)})


def _batch(config, name: str, meta: dict, shared: slots.Slots | None) -> dict:
  """Shapes of a global batch."""
  rows, size = config[name].batch_size, config.data.image_size
  array = lambda dtype, *shape: jax.ShapeDtypeStruct((rows, *shape), dtype)
  if name == "superres":
    large, small = config.superres.crop, config.superres.crop // superres.FACTOR
    high, low = (array(jnp.uint8, side, side, 3) for side in (large, small))
    return {"high": high, "low": low, "index": array(jnp.int32)}
  batch = {
    "grains": array(jnp.int32, *meta["regions"]),
    "label": array(jnp.int32),
    "index": array(jnp.int32),
  }
  if name == "dvae":
    return batch | {"image": array(jnp.uint8, size, size, 3)}
  batch["moments"] = array(jnp.float32, *meta["grid"], 2 * meta["z_channels"])
  if shared:
    zeros = np.zeros(batch["grains"].shape, np.int32)
    tables = slots.tables(zeros, meta["factors"], shared)
    batch["tokens"] = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tables)
  return batch


def assumed_tokens(config, meta: dict, count: int = 1000) -> np.ndarray:
  """Refined tokens of `count` images with fine fractions as photographs', or all the budget's."""
  codes = np.array((0, *buckets.codes_per_region(meta["factors"])[1:]))
  regions = meta["regions"][0] * meta["regions"][1]
  most, mean = regions * int(codes[-1]), regions * float(np.dot(config.dvae.ratios, codes))
  normal = statistics.NormalDist(mean, DEVIATION * most)
  if config.dct.buckets == "budget":
    return np.full(count, int(mean) // codes[1] * codes[1])
  tokens = [normal.inv_cdf((i + 0.5) / count) for i in range(count)]
  return (np.clip(tokens, 0, most) // codes[1] * codes[1]).astype(int)


def assumed_slots(config, meta: dict, groups: int) -> slots.Slots:
  """The slots of a step on such images."""
  tokens, batch_size = assumed_tokens(config, meta), config.dct.batch_size
  quantum = buckets.quantum(meta["regions"][0] * meta["regions"][1], meta["factors"])
  return slots.of_mode(config.dct.buckets, tokens, batch_size, quantum, groups)


def _trained(config, name: str, meta: dict):
  """(init, phases, normalizers) of a stage."""
  if name == "dvae":
    task = dvae.DVAETask(config.dvae, config.data.image_size)
    return task.init, ((0, task.loss_fn),), task.normalizers
  if name == "superres":
    task = superres.SuperresTask(config.superres, config.data.image_size)
    return task.init, ((0, task.loss_fn),), task.normalizers
  if name == "dgt":
    model = dgt.make_model(config, meta)
    return dgt.make_init(model), dgt.make_phases(config, model, meta), dgt.normalizers
  module = sizes.TRANSFORMERS[name]
  content = dct.make_content(
    config, name, meta, _no_statistics(meta), module.make_model, module.content_fn
  )
  return content.init, content.phases, content.loss.normalizers


def _no_statistics(meta: dict) -> dict:
  shape = (len(meta["factors"]), meta["z_channels"])
  return {"mean": np.zeros(shape), "std": np.ones(shape)}
