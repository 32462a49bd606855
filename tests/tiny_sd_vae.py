"""Recipes on a tiny autoencoder of Stable Diffusion's kind, its file and a base's, for tests."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers

from dit_jax.core import config as configs
from dit_jax.core import tree as trees
from dit_jax.models import dit, sd_vae
from dit_jax.nn import embed
from dit_jax.weights import ours

RECIPES = pathlib.Path(__file__).resolve().parents[1] / "configs"
VAE = dict(block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, scaling_factor=0.25)
DIT = dict(depth=1, width=32, num_heads=2, patch=2)  # as the tiny recipe's
SIZE = 32


def drawn(model, seed, *inputs):
  """Random leaves of a model by path."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
  draw, leaves = initializers.normal(0.1), trees.flatten(shapes)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  return {n: np.asarray(draw(k, s.shape)) for k, (n, s) in zip(keys, leaves.items(), strict=True)}


def write_vae(path, seed=0, **fields):
  model = sd_vae.AutoencoderKL(**VAE | fields)
  ours.save(path, "sd-vae", VAE | fields, drawn(model, seed, jnp.zeros((1, 8, 8, 3))))
  return path


def write_dit(path):
  """As published: every leaf has an effect, and the positions are the fixed ones."""
  fields = DIT | dict(grid=(16, 16), z_channels=4, num_classes=7)
  inputs = jnp.zeros((1, 16, 16, 4)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
  arrays = drawn(dit.DiT(**fields), 1, *inputs)
  arrays["position/table"] = embed.sincos_table(8, 8, DIT["width"])
  ours.save(path, "dit", fields, arrays)
  return path


def recipe(images, path=""):
  config = configs.load(RECIPES / "dit_xl.py", "tiny,sd_vae")
  config.data.update(path=str(images), source="folder", image_size=SIZE, workers=0)
  config.data.update(holdout=3, classes=(4, 2))
  config.sd_vae.path = str(path)
  config.sd_vae.model.update(VAE)
  config.dit.model.update(DIT)
  config.dit.total_steps = 2
  return config


def fine_tune(images, base, **block):
  """What efdit_inat.py changes of its base, on small sizes."""
  config, want = recipe(images), configs.load(RECIPES / "efdit_inat.py")
  config.init_from, config.peft, config.frozen_dtype = str(base), want.peft, want.frozen_dtype
  config.dit.labels, config.dit.hrig = want.dit.labels, want.dit.hrig
  config.sd_vae.update(block)
  return config
