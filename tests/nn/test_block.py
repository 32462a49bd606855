"""The DiT block: the identity at init, numpy's numbers after, the same under rematerialisation."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_dit as ref
import pytest

from dit_jax.core import tree
from dit_jax.core.errors import UserError
from dit_jax.nn.block import Blocks, DiTBlock

H = jax.random.normal(jax.random.key(0), (2, 5, 8))
C = jax.random.normal(jax.random.key(1), (2, 8))
LENGTHS = jnp.array([5, 3])


def test_starts_as_the_identity():
  block = DiTBlock(8, 2)
  params = block.init(jax.random.key(0), H, C)
  np.testing.assert_array_equal(block.apply(params, H, C, LENGTHS), H)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_stack_matches_numpy_with_weights_that_are_nowhere_zero(qk_norm):
  model = Blocks(2, 8, 2, qk_norm)
  params = ref.random_params(model.init(jax.random.key(0), H, C))
  got, p = model.apply(params, H, C, LENGTHS), ref.as_float64(params["params"])
  for b, n in enumerate(LENGTHS):
    want = ref.blocks(p, np.float64(H[b, :n]), np.float64(C[b]), 2)
    np.testing.assert_allclose(got[b, :n], want, atol=1e-4)


def test_has_the_parameters_of_the_paper():
  """18 d^2 + 15 d: qkv, projection, MLP and six modulations, each with its bias."""
  d = 8
  assert tree.count(DiTBlock(d, 2).init(jax.random.key(0), H, C)) == 18 * d**2 + 15 * d


def grad_of(remat):
  model = Blocks(2, 8, 2, remat=remat)
  params = ref.random_params(model.init(jax.random.key(0), H, C))
  f = lambda p: jnp.sum(jnp.sin(model.apply(p, H, C, LENGTHS)))
  return jax.grad(f), params


def test_remat_recomputes_and_changes_nothing_else():
  (f, params), *others = (grad_of(remat) for remat in ("none", "dots", "full"))
  want, matmuls = jax.jit(f)(params), [str(jax.make_jaxpr(f)(params)).count("dot_general")]
  for g, same_params in others:
    got = jax.jit(g)(same_params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, want)
    matmuls.append(str(jax.make_jaxpr(g)(params)).count("dot_general"))
  assert matmuls[0] < matmuls[1] < matmuls[2], "none recomputes nothing, full everything"


def test_bf16_is_close_to_float32_and_keeps_float32_parameters():
  model, half = Blocks(2, 8, 2), Blocks(2, 8, 2, dtype=jnp.bfloat16)
  params = ref.random_params(half.init(jax.random.key(0), H, C), scale=0.2)
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  got = half.apply(params, H.astype(jnp.bfloat16), C.astype(jnp.bfloat16))
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float32(got), model.apply(params, H, C), atol=0.1)


def test_unknown_remat_is_refused():
  with pytest.raises(UserError, match="remat='some'"):
    Blocks(1, 8, 2, remat="some")
