"""Sizes of a recipe without training it: parameters, tokens, FLOPs, bytes of state."""

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.core import buckets, flops
from dit_jax.core import tree as trees
from dit_jax.core.errors import UserError
from dit_jax.tasks import dct, dgt, dit, dvae
from dit_jax.training import optim, sharding, state


def latent_meta(config, num_children: int) -> dict:
  """What the latent cache of this recipe will say of its shapes."""
  size, factors = config.data.image_size, tuple(config.dvae.model.factors)
  if size % factors[-1]:
    raise UserError(
      f"data.image_size={size} must be a multiple of {factors[-1]}, the largest of "
      f"dvae.model.factors; nearest is {max(1, round(size / factors[-1])) * factors[-1]}."
    )
  return {
    "factors": factors,
    "regions": (size // factors[-1],) * 2,
    "grid": (size // factors[0],) * 2,
    "z_channels": config.dvae.model.z_channels,
    "classes": {"children": [""] * num_children},
  }


def tokens(config) -> dict[str, int]:
  """Tokens an image: base, and refined at the mean fine fraction and at most."""
  meta = latent_meta(config, 0)
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


def measure(config, num_children: int, mesh) -> dict:
  """By stage: params, FLOPs an image and bytes of state on one device of the mesh.

  FLOPs come from the traced functions: two a multiply-add, matrix products and convolutions only,
  the refinement at the mean number of refined tokens. Nothing is computed and no weights are read.
  """
  meta = latent_meta(config, num_children)
  out = {"params": {}, "flops_per_image": {}, "state_bytes": {}}
  for name in config.stages:
    init, forward, loss, frozen = (_dvae if name == "dvae" else _transformer)(config, name, meta)
    params = jax.eval_shape(init, jax.random.key(0))
    grad = jax.grad(loss)
    out["params"][name] = trees.count(params)
    out["flops_per_image"][name] = {
      "forward": flops.count(forward, params),
      "train": flops.count(grad, params, frozen),
    }
    out["state_bytes"][name] = _state_bytes(config[name], params, frozen, mesh)
  return out


def _dvae(config, name, meta):
  task = dvae.DVAETask(config.dvae, config.data.image_size)
  batch = {
    "image": np.zeros((1, *(config.data.image_size,) * 2, 3), np.uint8),
    "grains": np.zeros((1, *meta["regions"]), np.int32),
  }
  frozen = {}
  if task.lpips is not None:
    x = jnp.zeros((1, 64, 64, 3))
    frozen = {"lpips": jax.eval_shape(task.lpips.init, jax.random.key(0), x, x)["params"]}

  def forward(params):
    return task.reconstruct(params, batch["image"], batch["grains"])

  def loss(params, frozen):
    norm = task.normalizers(batch)
    keys = jax.random.split(jax.random.key(0), 1)
    return task.loss_fn(params, frozen, batch, keys, norm, jnp.int32(config.dvae.total_steps))[0]

  return task.init, forward, loss, frozen


def _transformer(config, name, meta):
  module = {"dgt": dgt, "dct": dct, "dit": dit}[name]
  model = module.make_model(config, meta)
  label = jnp.zeros((1,), jnp.int32)
  if name == "dgt":
    args = (jnp.zeros((1, *meta["regions"]), jnp.int32), label)
  else:
    z = jnp.zeros((1, *meta["grid"], meta["z_channels"]))
    args = (z, jnp.zeros((1,)), label)
  if name == "dct":
    grains = np.zeros((1, *meta["regions"]), np.int32)
    mean = max(1, tokens(config)["refined_mean"])
    args += (jnp.asarray(grains), buckets.token_index(grains, meta["factors"], mean))

  def forward(params):
    return model.apply(params, *args)

  frozen = {}
  if name != "dgt":  # the DVAE, for previews
    init, _, _, _ = _dvae(config, "dvae", meta)
    frozen = {"dvae": jax.eval_shape(init, jax.random.key(0))["gen"]}
  return (
    lambda key: model.init(key, *args),
    forward,
    lambda params, frozen: jnp.sum(forward(params).astype(jnp.float32)),
    frozen,
  )


def _state_bytes(block, params, frozen, mesh) -> int:
  """Parameters, optimiser, EMA and frozen weights on one device, by the sharding rules."""
  tx = optim.make_tx(block.optim, block.total_steps)
  shapes = jax.eval_shape(lambda p, f: state.create(p, tx, f), params, frozen)
  placed = sharding.infer(shapes, mesh)
  local = jax.tree.map(
    lambda s, where: int(np.prod(where.shard_shape(s.shape))) * s.dtype.itemsize, shapes, placed
  )
  return sum(jax.tree.leaves(local))
