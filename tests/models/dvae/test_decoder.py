"""The decoder: its last convolution stands apart, and it knows where a cell is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.models.dvae.decoder import Decoder


def make(**fields) -> Decoder:
  return Decoder(**{**dict(factor=4, width=8, mults=(1, 1, 2), res_blocks=1), **fields})


def shapes_of(decoder: Decoder):
  z = jax.ShapeDtypeStruct((1, 4, 6, 2), jnp.float32)
  return jax.eval_shape(decoder.init_with_output, jax.random.key(0), z)


def fill(shapes, seed=0):
  r = np.random.default_rng(seed)
  return jax.tree.map(lambda s: jnp.asarray(0.2 * r.normal(size=s.shape), s.dtype), shapes)


@pytest.fixture(scope="module")
def built():
  decoder = make(stem=2, attention=False)
  return decoder, fill(shapes_of(decoder)[1])["params"]


def test_head_of_features_is_the_image_and_needs_the_last_kernel_alone(built):
  decoder, params = built
  z = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 6, 2)), jnp.float32)
  image = decoder.apply({"params": params}, z)
  features = decoder.apply({"params": params}, z, method="features")
  last = {"params": {"conv_out": params["conv_out"]}}
  np.testing.assert_array_equal(decoder.apply(last, features, method="head"), image)
  assert image.shape == (2, 16, 24, 3)
  assert set(params["conv_out"]) == {"kernel", "bias"}


def test_copies_of_one_code_can_be_told_apart(built):
  """On a constant latent every cell still decodes to pixels of its own."""
  decoder, params = built
  z = jnp.ones((1, 4, 6, 2))
  image = np.asarray(decoder.apply({"params": params}, z))
  cells = image.reshape(4, 4, 6, 4, 3).transpose(0, 2, 1, 3, 4).reshape(24, -1)
  apart = np.abs(cells[:, None] - cells).max(-1) + np.eye(24)
  assert apart.min() > 1e-4


@pytest.mark.parametrize("stem", [1, 2, 4])
def test_the_levels_above_the_stem_vanish(stem):
  image, shapes = shapes_of(make(stem=stem))
  assert image.shape == (1, 16, 24, 3)
  trunk = shapes["params"]["trunk"]
  assert {int(n.split("_")[1]) for n in trunk if n.startswith("level")} == {
    f for f in (1, 2, 4) if f >= stem
  }
  assert shapes["params"]["conv_out"]["kernel"].shape[-1] == 3 * stem**2


def test_image_is_f32_whatever_the_arithmetic():
  image, shapes = shapes_of(make(dtype=jnp.bfloat16))
  assert image.dtype == jnp.float32
  assert {s.dtype for s in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def test_attention_sits_at_the_latent_grid():
  names = {n for n in shapes_of(make())[1]["params"]["trunk"] if "attn" in n}
  assert names == {"level_4_attn_0"}
