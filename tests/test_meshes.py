"""However devices and processes share the work, the content transformer learns the same.

Losses, parameters and images of a tiny run, over meshes, processes and resumes; and what travels
between devices in its compiled step.
"""

import itertools
import math
import os
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_end_to_end as e2e
import test_processes
import test_resume
from jax.sharding import PartitionSpec as P

from dit_jax import train
from dit_jax.core import config as configs
from dit_jax.core import tree as trees
from dit_jax.core import writer
from dit_jax.tasks import dct, latent_stage
from dit_jax.training import sharding, step

RECIPE = pathlib.Path(__file__).parent / "recipes" / "meshes.py"
# Sums in another order differ by a few times 6e-8, float32's rounding; a step carries it on.
RTOL = 1e-5
COLLECTIVE = re.compile(
  r"= (\(.*?\)|\S+) (all-reduce|reduce-scatter|all-gather|(?:ragged-)?all-to-all"
  r"|collective-permute|collective-broadcast|send|recv)(?:-start)?\((.*)"
)
compile_once = e2e.compile_once


def shape_of(devices, **mesh):
  """Sizes of all axes of a mesh."""
  return dict(data=devices, fsdp=1, tensor=1) | mesh


@pytest.fixture(scope="module")
def trained(tmp_path_factory, compile_once):
  """The recipe, and a workdir with its DVAE, trained on one device, and its latents."""
  folder = tmp_path_factory.mktemp("meshes")
  config = configs.load(RECIPE)
  config.data.path = str(e2e.make_images(folder / "images", per_class=8))
  config.mesh = shape_of(1)
  with pytest.MonkeyPatch.context() as patch:
    e2e.machine_of(1, patch)
    train.train_and_evaluate(config, folder / "run", "dvae")
    latent_stage.ensure(config, folder / "run", None)
  return config, folder / "run"


def copy_of(trained, workdir, mesh, latents=True):
  """The config on another mesh, and a workdir that has its DVAE."""
  config, source = configs.from_json(configs.to_json(trained[0])), trained[1]
  ignored = () if latents else ("latents",)
  shutil.copytree(source, workdir, ignore=shutil.ignore_patterns("compiled", *ignored))
  config.mesh = mesh
  return config


def learned(workdir):
  """Metrics of all steps, and the last parameters, of a content transformer."""
  lines = writer.read(workdir / "dct" / "metrics.jsonl")
  return lines, e2e.params_of(e2e.last(workdir, "dct"))


def on_mesh(trained, workdir, mesh, patch):
  """Trains the content transformer on a mesh of this process's devices.

  Returns:
    What it learned; its compiled step, the shapes of its state, and how many capacities it has.
  """
  programs, compile_step = [], step.Step.compile

  def spy(self, state, batch):
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    programs.append((compile_step(self, state, batch), shapes, len(batch["tokens"])))
    return programs[-1][0]

  e2e.machine_of(math.prod(mesh.values()), patch)
  patch.setattr(sharding, "BIG", 64)  # so that small parameters are split too
  patch.setattr(step.Step, "compile", spy)
  train.train_and_evaluate(copy_of(trained, workdir, mesh), workdir, "dct")
  return learned(workdir), *programs[0]


@pytest.fixture(scope="module")
def alone(trained, tmp_path_factory):
  """What one device learns."""
  with pytest.MonkeyPatch.context() as patch:
    return on_mesh(trained, tmp_path_factory.mktemp("alone") / "run", shape_of(1), patch)[0]


@pytest.fixture(scope="module")
def eight(trained, tmp_path_factory):
  """As on_mesh, on eight devices that only split the batch."""
  with pytest.MonkeyPatch.context() as patch:
    return on_mesh(trained, tmp_path_factory.mktemp("eight") / "run", shape_of(8), patch)


def assert_equal_learning(got, want):
  (got_lines, got_params), (want_lines, want_params) = got, want
  assert [line["step"] for line in got_lines] == list(range(1, 7))
  for line, other in zip(got_lines, want_lines, strict=True):
    assert sorted(line) == sorted(other)
    for name in ("loss", "mse", "grad_norm", "param_norm"):
      np.testing.assert_allclose(line[name], other[name], rtol=RTOL, err_msg=name)
  assert list(got_params) == list(want_params)
  for name, x in got_params.items():
    off, scale = (np.linalg.norm(y.ravel()) for y in (x - want_params[name], want_params[name]))
    assert off <= RTOL * scale, f"{name}: {off} of {scale}"


def test_eight_devices_learn_what_one_does(alone, eight):
  assert_equal_learning(eight[0], alone)


def test_the_comparison_sees_one_percent_of_one_array(alone):
  lines, params = alone
  name = max(params, key=lambda name: params[name].size)
  with pytest.raises(AssertionError, match=re.escape(name)):
    assert_equal_learning((lines, params | {name: params[name] * 1.01}), alone)
  assert lines[0]["loss"] != lines[-1]["loss"]


@pytest.mark.all
@pytest.mark.parametrize(
  "mesh", [shape_of(2, fsdp=4), shape_of(2, fsdp=2, tensor=2)], ids=lambda x: str(list(x.values()))
)
def test_split_parameters_learn_the_same(trained, alone, tmp_path, monkeypatch, mesh):
  assert_equal_learning(on_mesh(trained, tmp_path / "run", mesh, monkeypatch)[0], alone)


@pytest.mark.all
def test_two_processes_of_four_devices_learn_the_same(trained, alone, tmp_path):
  """By the command, from the latents on; the pieces travel over the loopback."""
  workdir = tmp_path / "run"
  config = copy_of(trained, workdir, shape_of(8), latents=False)
  config.dct.every.preview = 6
  (tmp_path / "recipe.json").write_text(configs.to_json(config))
  (tmp_path / "recipe.py").write_text(test_resume.RECIPE)
  flags = [f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f]
  four = "--xla_force_host_platform_device_count=4"
  environment = os.environ | {"XLA_FLAGS": " ".join([*flags, four])}
  test_processes.Pair(tmp_path / "recipe.py", workdir, environment).finish()
  assert_equal_learning(learned(workdir), alone)
  assert (workdir / "dct" / "previews" / "step_00000006.png").exists()
  names = ("key.json", "meta.json", "shard_00000.bin", "shard_00001.bin")  # a shard a process
  for name in names:
    assert (workdir / "latents" / name).read_bytes() == (trained[1] / "latents" / name).read_bytes()


def images_of(task, patch, processes, first=0, steps=201):
  """Of every step the images of all processes, sorted: index and sum of the moments.

  An image and its flipped copy share their index.
  """
  patch.setattr(jax, "process_count", lambda: processes)
  found = [[] for _ in range(steps)]
  for index in range(processes):
    patch.setattr(jax, "process_index", lambda index=index: index)
    batches = task.batches(first)
    for images, batch in zip(found, itertools.islice(batches, steps), strict=True):
      assert len(batch["index"]) == 32 // processes
      sums = batch["moments"].sum((1, 2, 3)).tolist()
      images += zip(batch["index"].tolist(), sums, strict=True)
    batches.close()
  return [sorted(images) for images in found]


def test_steps_use_the_same_images_however_they_are_shared_out(trained, monkeypatch):
  config, workdir = trained
  meshes = {n: sharding.make_mesh(shape_of(n), jax.devices()[:n]) for n in (1, 8)}
  tasks = {n: dct.build(config, workdir, mesh) for n, mesh in meshes.items()}
  want = images_of(tasks[1], monkeypatch, processes=1)
  assert want[0] != want[1]
  for processes in (1, 2, 4):
    assert images_of(tasks[8], monkeypatch, processes) == want
  for shards, processes in ((1, 1), (8, 2), (8, 4)):
    assert images_of(tasks[shards], monkeypatch, processes, first=77, steps=124) == want[77:]


def collectives(text: str) -> list[tuple[str, int, str]]:
  """(kind, elements of its results, the model's operation) of all that devices exchange."""
  found = []
  for line in text.splitlines():
    if match := COLLECTIVE.search(line):
      shapes, kind, rest = match.groups()
      sizes = [
        math.prod(int(n) for n in dims.split(",") if n)
        for dims in re.findall(r"\w+\[([\d,]*)\]", shapes)
      ]
      found.append((kind, sum(sizes), "".join(re.findall(r'op_name="([^"]*)"', rest))))
  return found


def test_only_gradients_and_scalars_travel_between_devices(eight):
  _, program, state, capacities = eight
  found = collectives(program.as_text())
  assert [x for x in found if x[0] not in ("all-reduce", "reduce-scatter")] == []
  sizes = {name: math.prod(x.shape) for name, x in trees.flatten(state.params).items()}
  refined = sum(size for name, size in sizes.items() if "/refine/" in name)
  # XLA may sum the refinement's gradients over devices before it adds those of the capacities.
  sent, once = sum(size for _, size, _ in found), sum(sizes.values())
  assert capacities > 1
  assert refined > 0
  assert once <= sent <= once + (capacities - 1) * refined + 16  # and a few scalars


def test_activations_that_travel_are_found():
  """A product whose summed axis is split otherwise than its rows."""
  mesh = sharding.make_mesh(shape_of(8))
  place = sharding.batch_sharding(mesh)
  x = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=place)

  def fn(x):
    return x[::-1], jax.lax.with_sharding_constraint(x * 2, P(None, "data")), x.sum()

  with jax.set_mesh(mesh):
    text = jax.jit(fn, out_shardings=(place, None, None)).lower(x).compile().as_text()
  kinds = {kind for kind, _, _ in collectives(text)}
  assert "all-reduce" in kinds
  assert kinds & {"collective-permute", "all-gather"}
  assert "all-to-all" in kinds


def test_the_step_writes_the_state_where_it_was(eight):
  _, program, state, _ = eight
  carried = jax.tree.leaves((state.params, state.opt, state.ema))
  size = sum(x.size * x.dtype.itemsize for x in carried)
  assert program.memory_analysis().alias_size_in_bytes >= size
