"""Attention against numpy; lengths cut keys off exactly and are safe at 0; what the door takes."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy_dit as ref
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dit_jax.kernels.attention import attention
from dit_jax.kernels.pro_attention import gpu, tpu
from dit_jax.kernels.pro_attention.settings import ProSettings

B, N, H, D = 3, 7, 2, 4
LENGTHS = jnp.array([7, 3, 0])


def inputs(dtype=jnp.float32, scale=1.0):
  shape = (3, B, N, H, D)
  return list((jax.random.normal(jax.random.key(0), shape) * scale).astype(dtype))


def test_matches_numpy_and_ends_at_the_length():
  q, k, v = inputs()
  got = attention(q, k, v, LENGTHS)
  for b, n in enumerate(LENGTHS[:2]):
    for h in range(H):
      want = ref.attention(*(np.asarray(x[b, :, h], np.float64) for x in (q, k[:, :n], v[:, :n])))
      np.testing.assert_allclose(got[b, :, h], want, atol=1e-5)


def test_full_length_is_no_length():
  q, k, v = inputs()
  np.testing.assert_array_equal(attention(q, k, v, jnp.full(B, N)), attention(q, k, v))


def test_what_lies_past_the_length_changes_no_bit_of_value_or_gradient():
  q, k, v = inputs()
  past = (jnp.arange(N) >= LENGTHS[:, None])[..., None, None]
  other = [jnp.where(past, 100 * x[::-1] + 3, x) for x in (q, k, v)]
  kept = lambda x: jnp.where(past, 0, x)
  loss = lambda q, k, v: jnp.sum(jnp.sin(kept(attention(q, k, v, LENGTHS))))
  for f in (lambda *a: kept(attention(*a, LENGTHS)), jax.grad(loss, argnums=(0, 1, 2))):
    for a, b in zip(jax.tree.leaves(f(q, k, v)), jax.tree.leaves(f(*other)), strict=True):
      np.testing.assert_array_equal(a, b)


def test_tokens_of_other_segments_weigh_nothing():
  q, k, v = inputs()
  segments = jnp.array([[0, 0, 1, 1, 1, 0, 2], [5, 4, 5, 9, 9, 9, 9], [1, 1, 1, 1, 1, 1, 1]])
  got = attention(q, k, v, LENGTHS, segments=segments)
  assert bool(jnp.isfinite(got).all())
  for b, n in enumerate(LENGTHS[:2]):
    for number in set(np.asarray(segments[b, :n]).tolist()):
      own = np.flatnonzero(np.asarray(segments[b, :n]) == number)
      for h in range(H):
        want = ref.attention(*(np.asarray(x[b, own, h], np.float64) for x in (q, k, v)))
        np.testing.assert_allclose(np.asarray(got[b, own, h]), want, atol=1e-5)
  with pytest.raises(ValueError, match="segments"):
    attention(q, k, v, LENGTHS, kind="pro", segments=segments)


def test_length_zero_is_finite_in_value_and_gradient():
  f = lambda *a: jnp.sum(attention(*a, jnp.zeros(B, jnp.int32)) ** 2)
  value, grads = jax.value_and_grad(f, argnums=(0, 1, 2))(*inputs())
  assert all(bool(jnp.isfinite(x).all()) for x in (value, *grads))


def test_bf16_inputs_have_float32_scores():
  """Two scores near 45 and 0.07 apart: in bf16, with steps of 0.25 there, they would be equal."""
  q = jnp.ones((1, 2, 1, 2), jnp.bfloat16)
  k = jnp.array([[64, 0], [64, 0.1]], jnp.bfloat16)[None, :, None]
  v = jnp.array([[0, 0], [1, 1]], jnp.bfloat16)[None, :, None]
  got = attention(q, k, v)
  want = ref.attention(*(np.float64(x[0, :, 0]) for x in (q, k, v)))
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float64(got[0, :, 0]), want, atol=3e-3)
  assert want.min() > 0.51


def accelerator(platform):
  device = AbstractDevice(device_kind=platform, num_cores=None, platform=platform)
  return jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=device))


MARKS = {  # what tells the programs apart
  "flash": "flash_attention",
  "tpu": "pro_attention_forward",
  "gpu": "pro_attention_measure",
  "reference": "top_k",
}


@pytest.mark.parametrize(
  ("platform", "kind", "n", "d", "dtype", "want"),
  [
    ("cpu", "full", 256, 72, "bfloat16", "xla"),
    ("cpu", "pro", 256, 72, "bfloat16", "reference"),
    ("gpu", "full", 256, 72, "bfloat16", "cudnn"),
    ("gpu", "full", 257, 72, "bfloat16", "cudnn"),
    ("gpu", "full", 256, 72, "float32", "xla"),
    ("gpu", "full", 256, 144, "bfloat16", "xla"),
    ("gpu", "pro", 256, 72, "bfloat16", "gpu"),
    ("tpu", "full", 256, 72, "bfloat16", "flash"),
    ("tpu", "full", 200, 72, "bfloat16", "flash"),
    ("tpu", "pro", 200, 72, "float32", "tpu"),
    ("tpu", "pro", 200, 72, "float16", "reference"),
  ],
)
def test_the_door_takes_the_first_that_takes_the_shape(
  monkeypatch, platform, kind, n, d, dtype, want
):
  taken = []
  record = lambda q, k, v, implementation, **_: taken.append(implementation) or q
  monkeypatch.setattr(jax.nn, "dot_product_attention", record)  # cuDNN is not here to be asked
  x = jax.ShapeDtypeStruct((2, n, 2, d), jnp.dtype(dtype))
  with accelerator(platform):
    text = str(jax.make_jaxpr(lambda q: attention(q, q, q, kind=kind))(x))
  assert taken + [name for name, mark in MARKS.items() if mark in text] == [want]


@pytest.mark.parametrize(
  ("platform", "settings", "dtype", "want"),
  [
    ("gpu", ProSettings(keys="per_query"), "float32", ["reference"]),
    ("tpu", ProSettings(keys="per_query"), "float32", ["reference"]),
    ("gpu", ProSettings(part=1), "bfloat16", ["cudnn"]),
    ("tpu", ProSettings(part=1), "bfloat16", ["flash"]),
    ("gpu", ProSettings(part=2), "bfloat16", ["cudnn", "reference"]),  # gathered, then cuDNN
    ("tpu", ProSettings(part=2), "bfloat16", ["tpu"]),
    ("gpu", ProSettings(), "float16", ["cudnn", "reference"]),
    ("gpu", ProSettings(part=2), "float32", ["reference"]),
  ],
)
def test_many_queries_and_keys_of_their_own(monkeypatch, platform, settings, dtype, want):
  taken = []
  record = lambda q, k, v, implementation, **_: taken.append(implementation) or q
  monkeypatch.setattr(jax.nn, "dot_product_attention", record)
  x = jax.ShapeDtypeStruct((1, 1024, 2, 64), jnp.dtype(dtype))
  with accelerator(platform):
    fn = lambda q: attention(q, q, q, kind="pro", settings=settings)
    text = str(jax.make_jaxpr(fn)(x))
  assert taken + [name for name, mark in MARKS.items() if mark in text] == want


def test_annealing_from_all_queries_is_dense_with_zeros_past_the_length():
  q, k, v = inputs()
  out = attention(q, k, v, LENGTHS, "pro", settings=ProSettings(part=1))
  there = (jnp.arange(N) < LENGTHS[:, None])[..., None, None]
  np.testing.assert_array_equal(out, jnp.where(there, attention(q, k, v, LENGTHS), 0))
  want = attention(q, k, v, LENGTHS, "pro", "reference", settings=ProSettings(part=1))
  np.testing.assert_allclose(out, want, atol=1e-6)


def test_without_cudnn_the_door_goes_on_to_xla():
  x = jnp.zeros((1, 8, 1, 16), jnp.bfloat16)
  with pytest.raises(NotImplementedError, match="cuDNN"):
    attention(x, x, x, implementation="cudnn")
  with accelerator("gpu"):
    assert "exp" in str(jax.make_jaxpr(lambda x: attention(x, x, x))(x))


def test_unknown_names_are_refused_with_the_known_ones():
  q, k, v = inputs()
  with pytest.raises(
    ValueError, match=r"kind='some' is unknown; expected one of \['full', 'pro'\]"
  ):
    attention(q, k, v, kind="some")
  with pytest.raises(ValueError, match=r"implementation='gpu' is unknown for kind='full'.*'xla'"):
    attention(q, k, v, implementation="gpu")
  with pytest.raises(NotImplementedError, match="float32"):
    attention(q, k, v, implementation="cudnn")


def test_lengths_above_the_capacity_are_refused():
  with pytest.raises(ValueError, match="allowed are 0 to 7"):
    attention(*inputs(), jnp.array([7, 8, 0]))


def test_the_key_decides_and_none_is_fixed():
  q, k, v = (
    jax.random.normal(key, (2, 50, 2, 8)) for key in jax.random.split(jax.random.key(0), 3)
  )
  run = lambda key: np.asarray(attention(q, k, v, kind="pro", key=key))
  np.testing.assert_array_equal(run(None), run(None))
  assert (run(jax.random.key(1)) != run(jax.random.key(2))).any()


@pytest.mark.parametrize("name", ["xla", "reference", "tpu", "gpu"])
def test_under_transformations_and_split_over_a_mesh(name, monkeypatch):
  """jit, vmap, scan, remat and a mesh of 2 x 2 x 2 devices change nothing."""
  if jax.device_count() < 8:
    pytest.skip(f"a mesh of 8 devices is needed, here are {jax.device_count()}")
  for module in (tpu, gpu):
    interpreted = functools.partial(module.pro_attention, interpret=True)
    monkeypatch.setattr(module, "pro_attention", interpreted)
  kind = "full" if name == "xla" else "pro"
  q, k, v, g = (
    jax.random.normal(key, (4, 24, 2, 16)) for key in jax.random.split(jax.random.key(0), 4)
  )
  lengths = jnp.array([24, 9, 1, 17])

  def grads(q, k, v, lengths=lengths):
    fn = lambda q, k, v: attention(q, k, v, lengths, kind, name)
    out, pull = jax.vjp(jax.checkpoint(fn), q, k, v)
    return out, *pull(g[: len(q)])

  want = jax.jit(grads)(q, k, v)
  close = functools.partial(chex.assert_trees_all_close, atol=1e-5)
  stacked = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), (q, k, v))
  mapped = jax.jit(jax.vmap(lambda qkv: attention(*qkv, None, kind, name)))(stacked)
  close(mapped[1], mapped[0, ::-1])
  _, scanned = jax.jit(lambda xs: jax.lax.scan(lambda c, x: (c, grads(*x)), 0, xs))(stacked)
  close(jax.tree.map(lambda x: x[0], scanned), want)

  mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
  where = NamedSharding(mesh, P(("data", "fsdp"), None, "tensor"))
  with jax.set_mesh(mesh):
    split = jax.jit(grads, out_shardings=where)(*jax.device_put((q, k, v), where))
    odd = jax.jit(grads)(q[:3], k[:3], v[:3], lengths[:3])  # does not divide: all on each device
  close(split, want)
  close(odd, jax.tree.map(lambda x: x[:3], want))
