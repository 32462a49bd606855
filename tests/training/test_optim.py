"""Laws of the optimizer: schedules hit their corners, muon takes block matrices alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dit_jax.core.errors import UserError
from dit_jax.training import optim

BLOCK = dict(
  name="adamw",
  lr=0.1,
  warmup_steps=0,
  schedule="constant",
  b1=0.9,
  b2=0.999,
  weight_decay=0.0,
  clip=0.0,
)
PARAMS = {
  "patch_embed": {"kernel": jnp.ones((4, 6))},
  "blocks": {
    "block_00": {
      "attn": {"qkv": {"kernel": jnp.ones((6, 8)), "bias": jnp.ones(8)}},
      "adaln": {"proj": {"kernel": jnp.ones((6, 12))}},
    }
  },
  "final": {"linear": {"kernel": jnp.ones((6, 4))}},
}
GRADS = jax.tree.map(
  lambda x: jnp.asarray(np.random.default_rng(x.size).normal(size=x.shape)), PARAMS
)


def updates(params=PARAMS, grads=GRADS, **changes):
  tx = optim.make_tx(BLOCK | changes, 100)
  got, _ = tx.update(grads, tx.init(params), params)
  return got


def test_warmup_is_linear_and_its_first_step_moves():
  lr = optim.learning_rate(BLOCK | dict(warmup_steps=4), 100)
  np.testing.assert_allclose([lr(i) for i in range(6)], [0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_cosine_starts_at_lr_and_ends_at_zero(warmup):
  lr = optim.learning_rate(BLOCK | dict(schedule="cosine", warmup_steps=warmup), 100)
  rates = np.array([float(lr(i)) for i in range(101)])
  assert rates.max() == pytest.approx(0.1)
  assert rates[100] == pytest.approx(0.0, abs=1e-9)
  assert np.all(np.diff(rates[max(warmup - 1, 0) :]) <= 0)


def test_a_constant_schedule_does_not_know_the_total():
  one, two = (optim.learning_rate(BLOCK | dict(warmup_steps=5), total) for total in (10, 99))
  assert [float(one(i)) for i in range(20)] == [float(two(i)) for i in range(20)]


def test_clip_bounds_what_the_optimizer_sees():
  huge = jax.tree.map(lambda g: 1e6 * g, GRADS)
  norm = optax.tree.norm(GRADS)
  a = updates(grads=huge, clip=1.0, name="adam")
  b = updates(grads=jax.tree.map(lambda g: g / norm, GRADS), name="adam")
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4), a, b)


def test_weight_decay_pulls_kernels_only():
  zero = jax.tree.map(jnp.zeros_like, GRADS)
  got = updates(grads=zero, weight_decay=0.5)["blocks"]["block_00"]["attn"]["qkv"]
  np.testing.assert_allclose(got["kernel"], -0.05, rtol=1e-6)  # -lr * decay * 1
  np.testing.assert_array_equal(got["bias"], 0)


def test_muon_takes_block_matrices_and_adam_the_rest():
  muon, adam = updates(name="muon"), updates(name="adamw")
  block = muon["blocks"]["block_00"]
  # An orthogonalised update has singular values near one another.
  s = np.linalg.svd(block["attn"]["qkv"].pop("kernel"), compute_uv=False)
  assert s.max() / s.min() < 2
  adam["blocks"]["block_00"]["attn"]["qkv"].pop("kernel")
  jax.tree.map(np.testing.assert_array_equal, muon, adam)


@pytest.mark.parametrize(
  ("change", "told"),
  [
    (dict(name="sgd"), "optim.name='sgd'"),
    (dict(schedule="step"), "optim.schedule='step'"),
    (dict(lr=0.0), "optim.lr"),
    (dict(clip=-1.0), "optim.clip"),
    (dict(warmup_steps=-1), "optim.warmup_steps"),
    (dict(schedule="cosine", warmup_steps=100), "warmup_steps=100"),
    (dict(name="adam", weight_decay=0.1), "adamw"),
  ],
  ids=str,
)
def test_wrong_fields_are_refused(change, told):
  with pytest.raises(UserError, match=told):
    optim.make_tx(BLOCK | change, 100)
