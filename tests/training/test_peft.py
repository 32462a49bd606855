"""Laws of fine-tuning: exact counts, a part and its base make the whole, the base never moves."""

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import numpy_dit as ref
import optax
import pytest

from dit_jax.core import buckets, rng
from dit_jax.core import tree as trees
from dit_jax.core.errors import UserError
from dit_jax.models.dct import DCT
from dit_jax.models.dgt import DGT
from dit_jax.models.dit import DiT, decode_variant
from dit_jax.training import peft, sharding, state, step

SMALL = dict(depth=2, width=8, num_heads=2, patch=2, grid=(4, 4), num_classes=3)
INPUTS = jnp.zeros((1, 4, 4, 4)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
TX = optax.adam(1e-2)
NAMES = [name for name in peft.MASKS if name != "full"]


def init_of(name, **fields):
  model = DiT(**SMALL | peft.FIELDS.get(name, {}) | fields)
  return lambda key: model.init(key, *INPUTS)


def params_of(name, **fields):
  shapes = jax.eval_shape(init_of(name, **fields), rng.abstract_key())
  return ref.random_params(shapes)


def loss_fn(params, frozen, batch, keys, norm, now):
  model = DiT(**SMALL | {k: True for k in ("affine",) if "norm" in params["params"]["final"]})
  noise = rng.normal(rng.stream(keys, "noise"), (4, 4, 4))
  out = model.apply(params, noise, jnp.full(len(noise), 500.0), batch["label"])
  return jnp.sum((out[..., :4] - batch["x"]) ** 2) / norm["rows"], {}


def batch_of(rows=4):
  draw = np.random.default_rng(0)
  x = draw.normal(size=(rows, 4, 4, 4)).astype(np.float32)
  number = np.arange(rows, dtype=np.int32)
  return {"x": x, "label": number % 3, "index": number}


def test_what_each_mask_trains():
  """Of a model with everything that a mask could name."""
  params = params_of("difffit", qk_norm=True)["params"]
  params |= {"hrig": {"conv": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}}}
  params["label"] |= {"fuse": {"kernel": jnp.ones(2)}}
  kinds = {
    "bias": lambda n: n.endswith("/bias") and not n.startswith("hrig/"),
    "norm": lambda n: "norm" in n,
    "gamma": lambda n: "gamma" in n,
    "label": lambda n: n.startswith("label/"),
    "hrig": lambda n: n.startswith("hrig/"),
  }
  wanted = {
    "bitfit": ("bias", "label"),
    "difffit": ("bias", "norm", "gamma", "label"),
    "finediffusion": ("bias", "norm", "label"),
    "efdit": ("bias", "norm", "label", "hrig"),
  }
  assert set(wanted) == set(NAMES)
  for name, parts in wanted.items():
    trained, frozen = (trees.flatten(tree) for tree in peft.Peft(name).split(params))
    assert set(trained) == {n for n in trees.flatten(params) if any(kinds[k](n) for k in parts)}
    assert {"patch_embed/proj/kernel", "position/table"} <= set(frozen)


@pytest.mark.parametrize("name", NAMES)
def test_a_part_and_its_base_are_the_whole(name):
  params, how = params_of(name), peft.Peft(name)
  trained, frozen = how.split(params)
  assert trees.count(trained) + trees.count(frozen) == trees.count(params)
  assert 0 < trees.count(trained) < trees.count(frozen)
  chex.assert_trees_all_equal(peft.merge(trained, frozen), params)
  shapes = how.base(init_of(name))[peft.BASE]
  chex.assert_trees_all_equal_shapes_and_dtypes(shapes, frozen)
  half = peft.Peft(name, "bfloat16").base(init_of(name))
  assert {s.dtype for s in jax.tree.leaves(half)} == {jnp.dtype("bfloat16")}


def test_full_is_what_was_there():
  """The same functions, so the same programs."""
  how, init, fn = peft.Peft(), init_of("full"), object()
  assert (how.init(init), how.over_base(fn), how.base(init), how.fields) == (init, fn, {}, {})


@pytest.mark.parametrize(
  ("name", "classes", "superclasses", "total"),
  [("iNaturalist", 10_000, 11, 12_153_632), ("VegFru", 292, 25, 986_144)],
)
def test_exact_counts_of_the_papers_table(name, classes, superclasses, total):
  """FineDiffusion on DiT-XL/2: 489,632 biases, 131,328 of norms, and its swap table.

  That has a row a class and one a superclass, and no null row.
  """
  del name
  how, model = peft.Peft("finediffusion"), DiT(**decode_variant("XL/2"), grid=(32, 32), affine=True)
  z, t, label = jnp.zeros((1, 32, 32, 4)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), z, t, label)["params"]
  trained = trees.flatten(how.split(shapes)[0])
  label = trees.count({n: s for n, s in trained.items() if n.startswith("label/")})
  norms = trees.count({n: s for n, s in trained.items() if "norm" in n})
  assert trees.count(trained) - norms - label == 489_632
  assert norms == 131_328
  assert 489_632 + norms + (classes + superclasses) * model.width == total


@pytest.mark.parametrize("fields", [{"affine": True}, {"affine": True, "gamma": True}], ids=str)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_is_added_changes_no_bit_of_a_stock_model(fields, dtype):
  """Affine at (1, 0) and gamma at 1, in every transformer; away from there they matter."""
  common = dict(depth=1, width=8, num_heads=2, num_classes=3, dtype=dtype)
  draw, label = jax.random.normal(jax.random.key(0), (2, 4, 4, 4)), jnp.array([1, 3])
  maps = jnp.array([[[0, 1], [1, 0]], [[1, 1], [0, 0]]])
  z, t = draw, jnp.array([3.0, 800.0])
  index = jax.tree.map(jnp.asarray, buckets.token_index(np.asarray(maps), (4, 8), 8))
  cases = [
    (DiT, dict(patch=2, grid=(4, 4)), (z, t, label)),
    (DCT, dict(refine_depth=1, factors=(4, 8), grid=(4, 4)), (z, t, label, maps, index)),
    (DGT, dict(grid=(2, 2)), (maps, label)),
  ]
  for cls, own, args in cases:
    stock, tuned = cls(**common, **own), cls(**common, **own, **fields)
    base = ref.random_params(jax.eval_shape(stock.init, jax.random.key(0), *args))
    start = tuned.init(jax.random.key(1), *args)
    added = set(trees.flatten(start)) - set(trees.flatten(base))
    kinds = {name.rpartition("/")[2] for name in added}
    assert kinds == {"scale", "bias"} | (
      {"gamma_attn", "gamma_mlp"} if "gamma" in fields else set()
    )
    params, out = peft.merge(start, base), jax.jit(stock.apply)(base, *args)
    apply = jax.jit(tuned.apply)
    np.testing.assert_array_equal(apply(params, *args), out)
    for name in added:
      moved = trees.flatten(params) | {name: 1.5 + 0 * trees.flatten(params)[name]}
      assert (apply(peft.merge({}, moved), *args) != out).any(), name


def test_gradients_are_those_of_the_whole():
  params, how = params_of("finediffusion"), peft.Peft("finediffusion")
  trained, frozen = how.split(params)
  batch = jax.tree.map(jnp.asarray, batch_of())
  rest = batch, rng.image_keys(0, jnp.int32(0), batch["index"]), {"rows": 4.0}, 0
  grad = lambda fn: jax.jit(jax.grad(lambda *args: fn(*args)[0]))
  want, _ = how.split(grad(loss_fn)(params, {}, *rest))
  got = grad(how.over_base(loss_fn))(trained, {peft.BASE: frozen}, *rest)
  chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-5)


def run(name, dtype="float32", steps=10, mesh=None, accum=1, tx=TX):
  """So many real steps; (state before, state after) on the host."""
  how, init = peft.Peft(name, dtype), lambda key: ref.random_params(init_of(name)(key))
  trained, frozen = how.split(params_of(name))
  cast = lambda x, s: x.astype(s.dtype)
  kept = {peft.BASE: jax.tree.map(cast, frozen, how.base(init)[peft.BASE])}
  places = None
  born = state.create(trained, tx, kept)
  if mesh is not None:
    places = sharding.infer(born, mesh, [(r".*/(attn|mlp)/\w+/kernel", ("fsdp",))])
    born = jax.device_put(born, places)
  before = jax.device_get(born)
  fn = step.make_step(
    loss_fn=how.over_base(loss_fn),
    normalizers=lambda batch: {"rows": jnp.float32(len(batch["label"]))},
    tx=tx,
    ema_decay=0.9,
    seed=0,
    accum=accum,
    mesh=mesh,
    state_shardings=places,
  )
  batch = batch_of() if mesh is None else sharding.put_batch(batch_of(), mesh)
  for _ in range(steps):
    born, metrics = fn(born, batch)
  assert int(metrics["skipped"]) == 0
  return before, jax.device_get(born)


@pytest.mark.parametrize("dtype", peft.DTYPES)
def test_ten_steps_move_what_is_trained_and_no_bit_of_the_rest(dtype):
  before, after = run("finediffusion", dtype)
  assert {x.dtype.name for x in jax.tree.leaves(after.frozen)} == {dtype}
  for name, x in trees.flatten(after.frozen).items():
    assert x.tobytes() == trees.flatten(before.frozen)[name].tobytes()
  for tree in ("params", "ema"):
    old, new = (trees.flatten(getattr(s, tree)) for s in (before, after))
    assert all((x != old[name]).any() for name, x in new.items())
  assert {x.dtype.name for x in jax.tree.leaves(after.params)} == {"float32"}
  moments = 2 * trees.count(after.params)
  assert moments <= trees.count(after.opt) <= moments + 2


def test_a_split_base_and_micro_batches_change_nothing():
  mesh = sharding.make_mesh({"data": 1, "fsdp": 2}, jax.devices()[:2])
  sgd = optax.sgd(
    1e-3
  )  # Adam would blow the rounding of a zero gradient up: that of the keys' bias
  _, want = run("finediffusion", steps=2, tx=sgd)
  _, got = run("finediffusion", steps=2, mesh=mesh, accum=2, tx=sgd)
  chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-4)


def test_the_autoencoder_is_always_trained_whole():
  config = ml_collections.ConfigDict({"peft": "efdit", "frozen_dtype": "bfloat16"})
  assert peft.of(config, "dvae") == peft.Peft()
  assert peft.of(config, "dct") == peft.Peft("efdit", "bfloat16")
  assert peft.of(ml_collections.ConfigDict(), "dct") == peft.Peft()  # an older run's


@pytest.mark.parametrize(
  ("fields", "told"),
  [
    (dict(name="lora"), "peft='lora' is unknown; choose one of full, bitfit, difffit, "),
    (dict(dtype="float16"), "frozen_dtype='float16' is unknown; choose one of float32, bfloat16"),
  ],
)
def test_unknown_names_are_refused(fields, told):
  with pytest.raises(UserError, match=told):
    peft.Peft(**fields)
