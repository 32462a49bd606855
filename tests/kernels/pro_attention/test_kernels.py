"""The TPU and the GPU kernel against the float32 reference, forward and gradients.

On a CPU both are interpreted; on a GPU or a TPU the device's own is compiled and run.

Tolerances: 5e-6 in float32; in bfloat16 2e-2, some steps of its 8 bits at the values' size, against
the float32 reference on the same bfloat16 numbers.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractDevice, AbstractMesh

from dit_jax.kernels.pro_attention import gpu, reference, shapes, tpu
from dit_jax.kernels.pro_attention.settings import DEFAULT, ProSettings, uniforms

HERE = jax.default_backend()
INTERPRET = HERE == "cpu"
KERNELS = {"tpu": tpu.pro_attention, "gpu": gpu.pro_attention}
KERNELS = KERNELS if INTERPRET else {HERE: KERNELS[HERE]}
ATOL = {"float32": 5e-6, "bfloat16": 2e-2}
H200 = AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="gpu")


def uniforms_of(q):
  return uniforms(jax.random.key(1), q.shape[2])


def value_and_pull(fn, q, k, v, g, r, lengths, settings):
  """The result and the gradients of q, k and v along g, in float32."""

  @jax.jit
  def run(q, k, v, g):
    out, pull = jax.vjp(lambda *qkv: fn(*qkv, r, lengths, settings), q, k, v)
    return out, *pull(g.astype(out.dtype))

  return [np.asarray(x, np.float32) for x in run(q, k, v, g)]


def assert_like_reference(kernel, arrays, lengths, settings=DEFAULT, **how):
  r, dtype = uniforms_of(arrays[0]), arrays[0].dtype.name
  got = value_and_pull(functools.partial(kernel, **how), *arrays, r, lengths, settings)
  exact = [x.astype(jnp.float32) for x in arrays]
  want = value_and_pull(reference.pro_attention, *exact, r, lengths, settings)
  chex.assert_trees_all_close(got, want, atol=ATOL[dtype])


@pytest.mark.parametrize("shape", shapes.NAMED, ids=lambda s: s.name)
@pytest.mark.parametrize("name", KERNELS)
def test_named_shapes(name, shape):
  """Also that every named shape is taken: NotImplementedError is a failure here."""
  assert_like_reference(KERNELS[name], *shape.arrays(), interpret=INTERPRET)


def test_the_lists_of_shapes_are_what_they_say():
  """16 shapes of at most 2,048 tokens in every run; with --all 40 that cover 8 x 5 x 2 x 2 = 160.

  A fault that shows at a pair of length and head dim, or at a length or a head dim with a dtype
  and a kind of padding, shows in the 40 as in the 160.
  """
  assert len({shape.name for shape in shapes.NAMED}) == len(shapes.NAMED) == 16
  assert max(shape.n for shape in shapes.NAMED) <= 2048
  assert {shape.d for shape in shapes.NAMED} == set(shapes.HEAD_DIMS)
  assert len({shape.name for shape in shapes.WIDE}) == len(shapes.WIDE) == 160
  assert len(shapes.COVERING) == 40
  assert {shape.name for shape in shapes.COVERING} <= {shape.name for shape in shapes.WIDE}
  for fields in (("n", "d"), ("n", "dtype", "lengths"), ("d", "dtype", "lengths")):
    covered, wide = (
      {tuple(getattr(shape, field) for field in fields) for shape in of}
      for of in (shapes.COVERING, shapes.WIDE)
    )
    assert covered == wide


@pytest.mark.all
@pytest.mark.parametrize(
  "shape", shapes.COVERING if INTERPRET else shapes.WIDE, ids=lambda s: s.name
)
@pytest.mark.parametrize("name", KERNELS)
def test_wide_shapes(name, shape):
  assert_like_reference(KERNELS[name], *shape.arrays(), interpret=INTERPRET)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
  "settings",
  [
    ProSettings(c=1),
    ProSettings(part=1),
    ProSettings(part=3),
    ProSettings(informer_denominator=True),
  ],
  ids=str,
)
def test_other_settings(name, settings):
  arrays, lengths = shapes.Shape(72, 64, "float32", (1.0, 0.4)).arrays()
  assert_like_reference(KERNELS[name], arrays, lengths, settings, interpret=INTERPRET)


@pytest.mark.parametrize("name", KERNELS)
def test_other_tiles(name):
  """Several blocks of keys, and for the GPU keys split over programs."""
  tiles = {
    "tpu": tpu.TPUTiles(block_k=128),
    "gpu": gpu.GPUTiles(block_q=16, block_k=16, keys_a_program=64),
  }[name]
  arrays, lengths = shapes.Shape(300, 72, "float32", (1.0, 0.4)).arrays()
  assert_like_reference(KERNELS[name], arrays, lengths, interpret=INTERPRET, tiles=tiles)


@pytest.mark.parametrize("name", KERNELS)
def test_ties_and_signed_zeros_choose_the_same_rows(name):
  """Queries in few directions give few measures; zeros of both signs are equal.

  Seven rows in eight are zero, so half of the 25 selected are.
  """
  rows = jnp.array([[1.0, 2, 0, 0], [-0.0, 0, 0, 0], [0, 0, 0, 0], [-0.0, -0.0, 0, 0]])
  i = jnp.arange(96)
  q = jnp.tile(rows[jnp.where(i % 8 == 0, 0, 1 + i % 3)], (1, 1, 4))[:, :, None]
  k, v, g = (jax.random.normal(jax.random.key(i), q.shape) for i in range(3))
  assert_like_reference(KERNELS[name], [q, k, v, g], jnp.array([90]), interpret=INTERPRET)


@pytest.mark.parametrize("name", KERNELS)
def test_what_padding_contains_changes_no_bit(name):
  (q, k, v, g), lengths = shapes.Shape(150, 64, "float32", (0.5, 0.0)).arrays()
  there = (jnp.arange(150) < lengths[:, None])[..., None, None]
  r, kernel = uniforms_of(q), functools.partial(KERNELS[name], interpret=INTERPRET)
  run = lambda *a: value_and_pull(kernel, *a, r, lengths, ProSettings())
  got = run(q, k, v, jnp.where(there, g, 0))
  q, k, v = (jnp.where(there, x, 7 * x + 1) for x in (q, k, v))
  chex.assert_trees_all_equal(run(q, k, v, jnp.where(there, g, 0)), got)
  assert not got[0][1].any()


@pytest.mark.parametrize("name", KERNELS)
def test_the_same_again(name):
  (q, k, v, _), lengths = shapes.Shape(100, 72, "bfloat16", (0.8, 1.0)).arrays()
  run = jax.jit(functools.partial(KERNELS[name], interpret=INTERPRET))
  chex.assert_trees_all_equal(
    run(q, k, v, uniforms_of(q), lengths), run(q, k, v, uniforms_of(q), lengths)
  )


@pytest.mark.skipif(not INTERPRET, reason="watches the interpreter")
def test_no_race_and_nothing_read_that_was_not_written():
  """The TPU interpreter watches every access and poisons fresh memory with NaN."""
  params = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
  arrays, lengths = shapes.Shape(160, 72, "float32", (1.0, 0.3), h=1).arrays()
  assert_like_reference(tpu.pro_attention, arrays, lengths, interpret=params)
  assert not jax._src.pallas.mosaic.interpret.interpret_pallas_call.races.races_found


@pytest.mark.parametrize("shape", shapes.NAMED, ids=lambda s: s.name)
def test_every_named_shape_lowers_for_tpu_and_cuda(shape):
  (q, k, v, g), lengths = jax.eval_shape(shape.arrays)
  for name, kernel in (("tpu", tpu.pro_attention), ("gpu", gpu.pro_attention)):

    def both(q, k, v, g, r, lengths, kernel=kernel):
      out, pull = jax.vjp(lambda *qkv: kernel(*qkv, r, lengths), q, k, v)
      return out, pull(g)

    args = q, k, v, g, jax.eval_shape(uniforms_of, q), lengths
    if name == "tpu":
      text = export.export(jax.jit(both), platforms=["tpu"])(*args).mlir_module()
      assert text.count("tpu_custom_call") == 2
    else:
      with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=H200)):
        lowered = jax.jit(both).trace(*args).lower(lowering_platforms=("cuda",))
      assert lowered.as_text().count("__gpu$xla.gpu.triton") == 7


@pytest.mark.parametrize(
  ("name", "settings", "dtype", "message"),
  [
    ("tpu", ProSettings(keys="per_query"), "float32", "keys='per_query'"),
    ("gpu", ProSettings(keys="per_query"), "float32", "keys='per_query'"),
    ("tpu", ProSettings(), "float16", "dtype float16"),
    ("gpu", ProSettings(), "float16", "dtype float16"),
    ("tpu", ProSettings(part=1), "float32", "2100 selected queries"),
    ("gpu", ProSettings(part=1), "float32", "4096 slots"),
  ],
)
def test_what_a_kernel_does_not_take_is_not_implemented(name, settings, dtype, message):
  q = jnp.zeros((1, 2100, 1, 64), dtype)
  with pytest.raises(NotImplementedError, match=message):
    {"tpu": tpu, "gpu": gpu}[name].pro_attention(q, q, q, uniforms_of(q), None, settings)


def test_a_head_too_wide_for_the_gpu_is_not_implemented():
  q = jnp.zeros((1, 16, 1, 136))
  with pytest.raises(NotImplementedError, match="head dim 136"):
    gpu.pro_attention(q, q, q, uniforms_of(q))


def test_a_head_that_does_not_fit_on_the_chip_is_not_implemented():
  q = jnp.zeros((1, 256, 1, 64))
  with pytest.raises(NotImplementedError, match="bytes on chip; 1024 are allowed"):
    tpu.pro_attention(q, q, q, uniforms_of(q), tiles=tpu.TPUTiles(vmem_bytes=1024))


@pytest.mark.parametrize(
  ("tiles", "fields", "message"),
  [
    (tpu.TPUTiles, dict(block_k=100), "block_k=100 must be a positive multiple of 128"),
    (tpu.TPUTiles, dict(max_queries=0), "max_queries=0"),
    (gpu.GPUTiles, dict(block_k=48), "block_k=48 must be a power of two"),
    (gpu.GPUTiles, dict(block_q=8), "block_q=8 must be a power of two, 16 or more"),
    (gpu.GPUTiles, dict(keys_a_program=32), "keys_a_program=32 is below block_k=64"),
  ],
)
def test_tiles_that_make_no_sense_are_refused(tiles, fields, message):
  with pytest.raises(ValueError, match=message):
    tiles(**fields)
