"""Sizes of a recipe without training it: parameters, tokens, FLOPs, bytes; and whether they fit."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.core import buckets, flops, rng, slots
from dit_jax.core import tree as trees
from dit_jax.core.errors import UserError
from dit_jax.data.hierarchy import ClassTable
from dit_jax.diffusion import losses
from dit_jax.sampling import generate
from dit_jax.tasks import autoencoder, dct, dgt, dit, dvae, hrig, labels, superres
from dit_jax.training import optim, peft, sharding, state

DTYPES = ("float32", "bfloat16")
TRANSFORMERS = {"dgt": dgt, "dct": dct, "dit": dit}


def check_models(config) -> None:
  """Builds every stage's model, loss, optimiser and sampler on shapes alone, before stage one.

  What a later stage would refuse after hours of the earlier ones is refused here. Nothing is
  compiled; no data and no weights are read.

  Raises:
    UserError: names, sizes or numbers of the recipe that do not fit.
  """
  _check_range(config, "seed", 0, 2**32 - 1)
  _check_range(config, "data.workers", 0)
  labels.check(config)
  if autoencoder.pretrained(config):
    _check_dtype(config, "sd_vae")
  meta = latent_meta(config)
  if meta:
    _check_range(config, "latents.batch_size", 1)
    settings = generate.Settings(**config.sampling)
  for name in config.stages:
    peft.of(config, name)
    for field, *ends in (("total_steps", 1), ("every.save", 1), ("ema_decay", 0, 1)):
      _check_range(config, f"{name}.{field}", *ends)
    _check_dtype(config, name)
    optim.make_tx(config[name].optim, config[name].total_steps)
    init, _, loss, frozen = parts(config, name, meta)
    params = jax.eval_shape(init, rng.abstract_key())
    if name in ("dvae", "superres"):
      jax.eval_shape(loss, params, frozen())
    elif name == "dgt":
      _check_range(config, "dgt.label_drop", 0, 1)
    else:
      _check_range(config, f"{name}.diffusion.label_drop", 0, 1)
      _check_diffusion(config[name].diffusion, settings, len(meta["factors"]))
      labels.check_guidance(config, settings)
      if hrig.enabled(config[name]):
        _check_range(config, f"{name}.hrig.depth", 1)
    if name == "dct" and config.dct.buckets not in slots.MODES:
      raise UserError(
        f"dct.buckets={config.dct.buckets!r} is unknown; choose one of {', '.join(slots.MODES)}."
      )


def _check_dtype(config, name: str) -> None:
  if config[name].model.dtype not in DTYPES:
    raise UserError(
      f"{name}.model.dtype={config[name].model.dtype!r} is unknown; choose {' or '.join(DTYPES)}."
    )


def _check_range(config, field: str, low: float, high: float = math.inf) -> None:
  value = functools.reduce(lambda block, part: block[part], field.split("."), config)
  if not low <= value <= high:
    wanted = f"{low} or more" if high == math.inf else f"{low} to {high}"
    raise UserError(f"{field}={value} must be {wanted}.")


def _check_diffusion(block, settings: generate.Settings, num_grains: int) -> None:
  """Calls what would refuse the block: process, schedule and reduction of the loss."""
  schedule = dct.make_process(block).schedule

  def reduced():
    e = jnp.zeros((1, 1, 1))
    cells = jnp.zeros((1, 1, 1), jnp.int32)
    norm = losses.norms(cells, e, num_grains)
    return losses.reduce_terms(e, cells, e, block.loss, norm, tuple(block.grain_weights))

  jax.eval_shape(lambda: (settings.times(schedule), reduced()))


def latent_meta(config, classes: int | tuple[int, ...] = (2, 1)) -> dict:
  """What the latent cache of this recipe will say of its shapes; {} where no stage has latents.

  Args:
    config: a recipe.
    classes: of every level, the children first; a number alone is that of the children.
  """
  if tuple(config.stages) == ("superres",):
    return {}
  classes = (classes, min(classes, 1)) if isinstance(classes, int) else classes
  vae = autoencoder.of(config)
  if not autoencoder.pretrained(config):
    _check_ratios(config.dvae.ratios, vae.factors)
  return vae.layout(config.data.image_size) | {"classes": ClassTable.of_sizes(classes).to_json()}


def _check_ratios(ratios, factors: tuple[int, ...]) -> None:
  if len(ratios) != len(factors):
    raise UserError(
      f"dvae.ratios={tuple(ratios)} must give one share a factor of dvae.model.factors={factors}."
    )
  if not abs(sum(ratios) - 1) <= 1e-6:
    raise UserError(f"dvae.ratios={tuple(ratios)} must sum to 1.")


def tokens(config) -> dict[str, int]:
  """Tokens an image: base, and refined at the mean fine fraction and at most."""
  meta = latent_meta(config)
  if not meta:
    return {"base": 0, "refined_mean": 0, "refined_max": 0}
  regions = meta["regions"][0] * meta["regions"][1]
  if "dit" in config.stages:
    patch = dit.make_model(config, meta).patch
    cells = meta["grid"][0] * meta["grid"][1]
    return {"base": cells // patch**2, "refined_mean": 0, "refined_max": 0}
  refined = (0, *buckets.codes_per_region(meta["factors"])[1:])
  mean = sum(share * m for share, m in zip(config.dvae.ratios, refined, strict=True))
  return {
    "base": regions,
    "refined_mean": round(regions * mean),
    "refined_max": regions * refined[-1],
  }


def pro_blocks(config) -> dict[str, dict[str, list[int]]]:
  """By stage: the blocks with prob-sparse attention, by the most tokens that they can meet."""
  meta, found = latent_meta(config), {}
  for name in config.stages:
    if name not in TRANSFORMERS:
      continue
    model = TRANSFORMERS[name].make_model(config, meta)
    found[name] = {}
    for number, length in enumerate(model.block_tokens):
      if model.attention.of_block(number, length):
        found[name].setdefault(str(length), []).append(number)
  return found


def measure(config, classes: int | tuple[int, ...], mesh) -> dict:
  """By stage: params, those trained, FLOPs an image, bytes of state and activations on a device.

  FLOPs come from the traced functions: two a multiply-add, matrix products and convolutions only,
  the refinement at the mean number of refined tokens. Activations are what the backward pass of
  one micro-batch keeps, before the compiler fuses. Nothing is computed and no weights are read.
  Functions are traced as for a CPU, whose programs can be counted, so no figure depends on the
  device.
  """
  meta = latent_meta(config, classes)
  kinds = ("params", "trainable", "flops_per_image", "state_bytes", "activation_bytes")
  out = {kind: {} for kind in kinds}
  for name in config.stages:
    how = peft.of(config, name)
    init, forward, loss, frozen = parts(config, name, meta)
    whole, trained = (jax.eval_shape(f, rng.abstract_key()) for f in (init, how.init(init)))
    frozen = frozen() | how.base(init)
    out["params"][name], out["trainable"][name] = trees.count(whole), trees.count(trained)
    out["flops_per_image"][name] = {
      "forward": flops.count(forward, whole),
      "train": flops.count(jax.grad(how.over_base(loss)), trained, frozen),
    }
    tx = optim.make_tx(config[name].optim, config[name].total_steps)
    _, born = state.abstract(how.init(init), tx, frozen, mesh, config.sharding)
    out["state_bytes"][name] = _local_bytes(born)
    rows = config[name].batch_size // sharding.num_shards(mesh)
    _, _, loss, _ = parts(config, name, meta, rows // config[name].accum)
    out["activation_bytes"][name] = _kept_bytes(how.over_base(loss), trained, frozen)
  return out


def parts(config, name: str, meta: dict, rows: int = 1):
  """(init, forward, loss, () -> shapes of the frozen weights) of a stage on `rows` images.

  The inputs are made where the functions are traced: an array made outside would be compiled.
  """
  return {"dvae": _dvae, "superres": _superres}.get(name, _transformer)(config, name, meta, rows)


def _dvae(config, name, meta, rows):
  task = dvae.DVAETask(config.dvae, config.data.image_size)

  def batch():
    image = jnp.zeros((rows, *(config.data.image_size,) * 2, 3), jnp.uint8)
    return {"image": image, "grains": jnp.zeros((rows, *meta["regions"]), jnp.int32)}

  def frozen():
    if task.lpips is None:
      return {}
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    return {"lpips": jax.eval_shape(task.lpips.init, rng.abstract_key(), x, x)["params"]}

  def forward(params):
    return task.reconstruct(params, *batch().values())

  def loss(params, frozen):
    keys, step = jax.random.split(jax.random.key(0), rows), jnp.int32(config.dvae.total_steps)
    return task.loss_fn(params, frozen, batch(), keys, task.normalizers(batch()), step)[0]

  return task.init, forward, loss, frozen


def _superres(config, name, meta, rows):
  task = superres.SuperresTask(config.superres, config.data.image_size)

  def batch():
    patch = lambda size: jnp.zeros((rows, size, size, 3), jnp.uint8)
    return {
      "high": patch(task.crop),
      "low": patch(task.crop // superres.FACTOR),
      "index": jnp.zeros(rows, jnp.int32),
    }

  def loss(params, frozen):
    keys = jax.random.split(jax.random.key(0), rows)
    return task.loss_fn(params, frozen, batch(), keys, task.normalizers(batch()), jnp.int32(0))[0]

  return task.init, lambda params: task.enhance(params, batch()["low"]), loss, dict


def _transformer(config, name, meta, rows):
  module = TRANSFORMERS[name]
  model = module.make_model(config, meta)

  def inputs():
    label, grains = jnp.zeros(rows, jnp.int32), jnp.zeros((rows, *meta["regions"]), jnp.int32)
    if name == "dgt":
      return grains, label
    z = jnp.zeros((rows, *meta["grid"], meta["z_channels"]))
    if name == "dit":
      return z, jnp.zeros(rows), label
    mean = max(1, tokens(config)["refined_mean"])
    index = buckets.token_index(np.zeros(grains.shape, np.int32), meta["factors"], mean)
    return z, jnp.zeros(rows), label, grains, jax.tree.map(jnp.asarray, index)

  def forward(params):
    return model.apply(params, *inputs())

  def frozen():
    return {} if name == "dgt" else {"dvae": autoencoder.shapes(config)}  # for previews

  init, attached = lambda key: model.init(key, *inputs()), None
  if name != "dgt":
    attached = hrig.attach(config[name], dct.make_process(config[name].diffusion), meta)
  if attached is not None:
    init = attached.extend(init)

  def loss(params, frozen):
    out = forward(params).astype(jnp.float32)
    if attached is None:
      return jnp.sum(out)
    z, t, *_ = inputs()
    x0_hat = out[..., : z.shape[-1]]  # whatever is predicted: what follows costs the same
    return jnp.sum(out) + attached.rule.loss(params["hrig"], z, x0_hat, z, t, rows)[0]

  return init, forward, loss, frozen


def _kept_bytes(loss, params, frozen) -> int:
  """What the backward pass keeps of the forward pass, without parameters and frozen weights."""

  def kept(params, frozen):
    _, pull = jax.vjp(lambda params: loss(params, frozen), params)
    given = {id(x) for x in jax.tree.leaves((params, frozen))}
    return [x for x in jax.tree.leaves(pull) if id(x) not in given]

  with jax.sharding.use_abstract_mesh(flops.CPU):
    return sum(x.size * x.dtype.itemsize for x in jax.eval_shape(kept, params, frozen))


def _local_bytes(shapes) -> int:
  """What placed shapes take of one device."""
  return sum(
    math.prod(s.sharding.shard_shape(s.shape)) * s.dtype.itemsize for s in jax.tree.leaves(shapes)
  )
