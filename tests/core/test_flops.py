"""FLOPs are counted by hand on small cases, and against XLA where XLA counts the same."""

import jax
import jax.numpy as jnp

from dit_jax.core import flops


def test_matmul():
  a, b = jnp.zeros((5, 7)), jnp.zeros((7, 11))
  assert flops.count(jnp.matmul, a, b) == 2 * 5 * 7 * 11


def test_batched_contraction():
  a, b = jnp.zeros((3, 5, 7)), jnp.zeros((3, 7, 11))
  assert flops.count(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), a, b) == 3 * 2 * 5 * 7 * 11


def test_convolution_by_hand():
  x, w = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 16))
  conv = lambda x, w: jax.lax.conv_general_dilated(
    x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  assert flops.count(conv, x, w) == 2 * (2 * 4 * 4 * 16) * (3 * 3 * 3)


def test_a_scan_counts_every_turn():
  w = jnp.zeros((4, 4))
  body = lambda x, _: (x @ w, None)
  once = flops.count(jnp.matmul, w, w)
  assert flops.count(lambda x: jax.lax.scan(body, x, None, length=9)[0], w) == 9 * once


def test_gradient_of_a_matmul_costs_three():
  a, b = jnp.zeros((5, 7)), jnp.zeros((7, 11))
  f = lambda a, b: jnp.sum(jnp.square(a @ b))
  assert flops.count(jax.grad(f, (0, 1)), a, b) == 3 * 2 * 5 * 7 * 11


def test_jit_and_remat_are_looked_into():
  a = jnp.zeros((6, 6))
  f = jax.jit(jax.checkpoint(lambda a: jnp.sum(jnp.sin(a @ a))))
  assert flops.count(f, a) == 2 * 6**3
  compiled = jax.jit(lambda a: a @ a).lower(a).compile().cost_analysis()
  assert compiled["flops"] == flops.count(lambda a: a @ a, a)
