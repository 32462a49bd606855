"""Stable Diffusion's autoencoder: sizes as published, and a law of each of its parts.

Parity with diffusers is in tests/parity/test_diffusers_sd_vae.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.core import tree as trees
from dit_jax.core.errors import UserError
from dit_jax.models import sd_vae

TINY = dict(block_out_channels=(8, 16, 16), layers_per_block=1)


def images(*shape: int):
  return jnp.asarray(np.random.default_rng(1).uniform(-1, 1, shape), jnp.float32)


@pytest.fixture(scope="module")
def tiny():
  model = sd_vae.AutoencoderKL(**TINY)
  x = jnp.zeros((1, 16, 16, 3))
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
  r = np.random.default_rng(0)
  fill = lambda x: (0.3 * r.normal(size=x.shape)).astype(np.float32)
  return model, {"params": jax.tree.map(fill, shapes)}


def test_as_many_parameters_as_published():
  """Stable Diffusion's: 83,653,863, of which the encoder has 34,163,592."""
  model = sd_vae.AutoencoderKL()
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
  assert trees.count(shapes) == 83_653_863
  assert trees.count(shapes["encoder"]) == 34_163_592
  assert model.factor == 8


def test_shapes_there_and_back(tiny):
  model, variables = tiny
  x = images(2, 16, 24, 3)
  moments = model.apply(variables, x, method="encode")
  assert moments.shape == (2, 4, 6, 8)
  assert model.apply(variables, moments[..., :4], method="decode").shape == x.shape
  with pytest.raises(UserError, match="18 x 24 px"):
    model.apply(variables, jnp.zeros((1, 18, 24, 3)), method="encode")


def test_the_call_decodes_the_mean(tiny):
  model, variables = tiny
  x = images(1, 16, 16, 3)
  mean = model.apply(variables, x, method="encode")[..., :4]
  want = model.apply(variables, mean, method="decode")
  np.testing.assert_allclose(model.apply(variables, x), want, atol=1e-5)


def test_images_of_a_batch_are_apart(tiny):
  """Groups and attention mix positions of one image, never images."""
  model, variables = tiny
  x = images(3, 16, 16, 3)
  together = model.apply(variables, x, method="encode")
  alone = model.apply(variables, x[1:2], method="encode")
  np.testing.assert_allclose(together[1:2], alone, atol=1e-4)


def test_bfloat16_is_close_and_comes_out_as_float32(tiny):
  model, variables = tiny
  x = images(1, 16, 16, 3)
  want = model.apply(variables, x)
  got = sd_vae.AutoencoderKL(**TINY, dtype=jnp.bfloat16).apply(variables, x)
  assert got.dtype == jnp.float32
  error = np.sqrt(np.mean((got - want) ** 2)) / want.std()
  assert 1e-4 < error < 0.1
