"""PatchGAN: what a logit sees, and the hinge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.core import tree
from dit_jax.models import discriminator as gan


def params_of(model, size):
  x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)
  r = np.random.default_rng(0)
  return jax.tree.map(lambda s: jnp.asarray(0.1 * r.normal(size=s.shape), s.dtype), shapes)


def test_size_of_the_published_network():
  """64 filters, 3 layers: 2.77 M weights with norms instead of most biases."""
  params = params_of(gan.PatchGAN(), 64)["params"]
  convs = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 1)
  biases, norms = 64 + 1, 2 * (128 + 256 + 512)
  assert tree.count(params) == convs + biases + norms


@pytest.mark.parametrize("size", [8, 16, 40, 64])
def test_any_size_has_a_patch(size):
  model = gan.PatchGAN(filters=4)
  x = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
  logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
  assert logits.shape == (2, size // 8, size // 8)


def test_a_logit_sees_seventy_pixels(monkeypatch):
  """The published patch; without the norms, whose statistics are the whole image's."""
  monkeypatch.setattr(gan.conv, "group_norm", lambda channels, name: lambda x: x)
  model = gan.PatchGAN(filters=4)
  params = params_of(model, 8)
  x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 96, 96, 3)), jnp.float32)
  slope = jax.jit(jax.grad(lambda x: model.apply(params, x)[0, 6, 6]))(x)[0]
  for axis in (0, 1):
    seen = np.flatnonzero(np.abs(slope).sum((1 - axis, 2)))
    np.testing.assert_array_equal(seen, np.arange(seen[0], seen[0] + 70))


def test_images_do_not_mix():
  model = gan.PatchGAN(filters=4)
  params = params_of(model, 16)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 3)), jnp.float32)
  other = x.at[1].set(3 * x[1] + 1)
  run = jax.jit(lambda x: model.apply(params, x))
  np.testing.assert_array_equal(run(x)[0], run(other)[0])
  assert not np.array_equal(run(x)[1], run(other)[1])


def test_hinge():
  logits = jnp.asarray([[[2.0, 0.5], [-1.0, -3.0]]])
  np.testing.assert_allclose(gan.hinge_real(logits), [(0 + 0.5 + 2 + 4) / 4])
  np.testing.assert_allclose(gan.hinge_fake(logits), [(3 + 1.5 + 0 + 0) / 4])
  np.testing.assert_allclose(gan.generator_loss(logits), [1.5 / 4])
  np.testing.assert_array_equal(gan.hinge_real(-logits), gan.hinge_fake(logits))
