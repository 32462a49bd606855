"""Programs made of shapes alone: they take what the real stages are given, and count their work."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.core import buckets, flops, slots
from dit_jax.core import config as configs
from dit_jax.core import tree as trees
from dit_jax.core.errors import UserError
from dit_jax.data.plan import Plan
from dit_jax.models import dit
from dit_jax.tasks import abstract, sizes
from dit_jax.training import memory, sharding

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
CLASSES = 5
COLLECTIVE = r" (all-reduce|reduce-scatter|all-gather|all-to-all|collective-permute)(?:-start)?\("


def recipe(name="d2it_xl"):
  c = configs.load(CONFIGS / f"{name}.py", "tiny")
  c.data.image_size = 32
  c.dvae.model.update(width=8, res_blocks=1, decoder_res_blocks=1, attention=False, stem=4)
  c.dvae.loss.disc_weight = 0.0
  return c


def mesh(**axes):
  return sharding.make_mesh(axes, jax.devices()[:8])


def born(prepared):
  """A state of the prepared shapes; frozen weights, which only previews read, are zeros."""
  places = jax.tree.map(lambda s: s.sharding, prepared.state)
  frozen = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), prepared.state.frozen)
  return jax.jit(prepared.init, out_shardings=places)(jax.random.key(0), frozen)


@pytest.fixture(scope="module")
def compiled():
  """The grain transformer's step: the quickest to compile."""
  prepared = abstract.prepare(recipe(), "dgt", CLASSES, mesh(data=8))
  return prepared, prepared.step.compile(prepared.state, prepared.batch)


def test_what_is_prepared_runs_on_arrays_of_its_shapes(compiled):
  prepared, program = compiled
  zeros = lambda s: jax.device_put(jnp.zeros(s.shape, s.dtype), s.sharding)
  state, metrics = program(born(prepared), jax.tree.map(zeros, prepared.batch))
  assert int(state.step) == 1
  assert np.isfinite(float(metrics["loss"]))


def test_donated_buffers_alias(compiled):
  """Parameters, optimizer and average are updated in place, whatever else the step needs."""
  prepared, program = compiled
  carried = (prepared.state.params, prepared.state.opt, prepared.state.ema)
  size = sum(s.size * s.dtype.itemsize for s in jax.tree.leaves(carried))
  analysis = program.memory_analysis()
  assert analysis.alias_size_in_bytes >= size
  assert memory.needed(program) < size + analysis.temp_size_in_bytes + 10_000


def test_a_fine_tune_needs_a_fraction_of_the_memory_and_of_the_work():
  """Blocks of XL's width, as their compiler counts: no gradient, moments, average of matrices.

  `efdit` trains HRIG, whose share is largest beside few blocks, and is measured against a step
  without it.
  """
  need, work, counted = {}, {}, {}
  for name in ("full", "efdit"):
    c = configs.load(CONFIGS / "dit_xl.py")
    c.peft, c.dit.hrig.enabled = name, name == "efdit"
    c.dit.model.update(variant="", depth=2, width=1152, num_heads=16, patch=2, dtype="float32")
    c.dit.batch_size = 1
    one = sharding.make_mesh({}, jax.devices()[:1])
    program = abstract.compile_step(c, "dit", CLASSES, one)
    need[name], work[name] = memory.needed(program), program.cost_analysis()["flops"]
    c.stages = ("dit",)
    counted[name] = sizes.measure(c, CLASSES, one)["flops_per_image"]["dit"]["train"]
    assert counted[name] == pytest.approx(work[name], rel=0.05)
  for cost in (need, work, counted):
    assert cost["efdit"] <= 0.75 * cost["full"]


def test_random_maps_recompile_nothing():
  """Steps of planned images, whatever their maps: one program in the cache of the jitted step."""
  c = recipe()
  c.dct.batch_size = 16
  prepared = abstract.prepare(c, "dct", CLASSES, mesh(data=2, tensor=4))
  assert len(prepared.slots.capacities) > 1
  meta = sizes.latent_meta(c, CLASSES)
  quantum, draw = buckets.quantum(16, meta["factors"]), np.random.default_rng(0)
  tokens = abstract.assumed_tokens(c, meta)
  plan, order, state = Plan(tokens, 16, quantum, seed=0), prepared.slots.order(), born(prepared)
  for now in range(4):
    fine = tokens[plan.positions(now)[order]] // 4
    grains = np.stack([draw.permutation(np.arange(16) < n).reshape(4, 4) for n in fine])
    batch = {
      "grains": grains.astype(np.int32),
      "moments": draw.normal(size=(16, 8, 8, 8)).astype(np.float32),
      "label": draw.integers(0, CLASSES, 16).astype(np.int32),
      "index": np.arange(16, dtype=np.int32) + 16 * now,
      "tokens": slots.tables(grains.astype(np.int32), meta["factors"], prepared.slots),
    }
    state, metrics = prepared.step(state, sharding.put_batch(batch, prepared.step.mesh))
  assert np.isfinite(float(metrics["loss"]))
  assert prepared.step.jitted._cache_size() == 1


@pytest.mark.parametrize(
  ("name", "stage"), [("d2it_xl", "dvae"), ("d2it_xl", "dct"), ("dit_xl", "dit")]
)
def test_a_batch_is_cut_into_rows_or_groups(name, stage):
  c = recipe(name)
  c[stage].update(batch_size=16, accum=2)
  prepared = abstract.prepare(c, stage, CLASSES, mesh(data=2, fsdp=2, tensor=2))
  rows = {name: s.shape[0] for name, s in trees.flatten(prepared.batch).items()}
  assert {n for name, n in rows.items() if "tokens" not in name} == {16}
  assert {n for name, n in rows.items() if "tokens" in name} == ({8} if stage == "dct" else set())
  assert (prepared.slots is None) == (stage != "dct")
  for s in jax.tree.leaves(prepared.batch):
    assert s.sharding.shard_shape(s.shape)[0] * 4 == s.shape[0]


def test_images_of_the_autoencoder_stay_on_their_device():
  """With its critic, which sees real and drawn images in one batch: gradients travel alone."""
  c = recipe()
  c.dvae.loss.update(disc_weight=0.75, disc_filters=8)
  text = abstract.compile_step(c, "dvae", CLASSES, mesh(data=8)).as_text()
  assert set(re.findall(COLLECTIVE, text)) == {"all-reduce"}


def test_spectra_of_latents_are_taken_where_the_latents_are():
  """HRIG's transforms, which the compiler would split over no images, gather none."""
  c = recipe("dit_xl")
  c.dit.model.depth = c.dit.hrig.depth = 1
  c.dit.hrig.enabled = True
  text = abstract.compile_step(c, "dit", CLASSES, mesh(data=8)).as_text()
  assert set(re.findall(COLLECTIVE, text)) == {"all-reduce"}
  spectra = re.findall(r"= c64\[(\d+),\S+ fft\(", text)
  assert {int(rows) for rows in spectra} == {c.dit.batch_size // 8}


@pytest.mark.parametrize("mode", slots.MODES)
def test_assumed_images_are_as_the_recipe_says(mode):
  c = recipe()
  c.dct.buckets, c.dct.batch_size = mode, 64
  meta = {"factors": (8, 16), "regions": (16, 16)}
  tokens = abstract.assumed_tokens(c, meta)
  assert tokens.mean() / 1024 == pytest.approx(0.5, abs=0.01)
  spread = 0 if mode == "budget" else abstract.DEVIATION
  assert tokens.std() / 1024 == pytest.approx(spread, abs=0.01)
  shapes = abstract.assumed_slots(c, meta, 8)
  assert (len(shapes.capacities) > 1) == (mode == "mixed")
  assert sum(shapes.counts) == 64


def test_flops_of_two_layers_are_those_that_the_compiler_counts():
  """Unrolled, on a CPU, whose compiler counts additions and exponentials too: 2 %."""
  model = dit.DiT(depth=2, width=768, num_heads=12, patch=2, grid=(16, 16), num_classes=10)
  z = jnp.zeros((2, 16, 16, 4)), jnp.zeros(2), jnp.zeros(2, jnp.int32)
  params = jax.eval_shape(model.init, jax.random.key(0), *z)
  counted = jax.jit(model.apply).lower(params, *z).compile().cost_analysis()["flops"]
  assert flops.count(model.apply, params, *z) == pytest.approx(counted, rel=0.02)


class Device:
  """A device with a limit, or none."""

  def __init__(self, limit):
    self.limit = limit

  def memory_stats(self):
    return self.limit and {"bytes_limit": self.limit}


def test_a_program_that_does_not_fit_is_refused_with_what_helps(compiled):
  program = compiled[1]
  for limit in (None, memory.needed(program)):
    memory.check("dct", program, Device(limit))
  with pytest.raises(UserError, match=r"dct does not fit: 0\.0. GiB .*dct.accum.*remat.*mesh.fsdp"):
    memory.check("dct", program, Device(memory.needed(program) - 1))
  with pytest.raises(UserError) as refused:
    memory.check("dvae", program, Device(1))
  assert "remat" not in str(refused.value)
