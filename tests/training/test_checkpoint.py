"""Laws of checkpoints: what comes back is what was saved, on any mesh, or it is not used at all."""

import pathlib
import shutil
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dit_jax.core.errors import UserError
from dit_jax.training import checkpoint, manifest, sharding, state

TX = optax.adamw(1e-2)
WIDTH = 8
DATA = {"step": 0, "seed": 1, "fingerprint": "abc"}
META = {"config": "{}", "classes": ["a", "b"]}


def init(key, width=WIDTH, dtype=jnp.float32):
  params = {
    "dense": {"kernel": jax.random.normal(key, (width, 4), dtype), "bias": jnp.zeros(4, dtype)}
  }
  return state.create(params, TX, frozen={"vgg": jnp.arange(3.0)})


def abstract(mesh=None, rules=(), **kwargs):
  shapes = jax.eval_shape(lambda: init(jax.random.key(0), **kwargs))
  mesh = mesh or sharding.make_mesh({}, jax.devices()[:1])
  return jax.tree.map(
    lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place),
    shapes,
    sharding.infer(shapes, mesh, rules),
  )


@jax.jit
def advance(s):
  grads = jax.tree.map(lambda x: jnp.cos(x + s.step), s.params)
  updates, opt = TX.update(grads, s.opt, s.params)
  params = optax.apply_updates(s.params, updates)
  ema = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, s.ema, params)
  return s.replace(step=s.step + 1, params=params, opt=opt, ema=ema)


def run(directory, s, until: int, save_at=()):
  """Advances to step `until`, saving on the way; returns the states by step."""
  states = {}
  checkpoints = checkpoint.Checkpoints(directory)
  while int(s.step) < until:
    s = advance(s)
    states[int(s.step)] = s
    if int(s.step) in save_at:
      assert checkpoints.save(int(s.step), s, DATA | {"step": int(s.step)}, META)
  checkpoints.close()
  return states


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A directory with steps 1 and 2, and the states; tests work on copies."""
  directory = tmp_path_factory.mktemp("saved") / "stage"
  return directory, run(directory, init(jax.random.key(0)), 2, save_at=(1, 2))


@pytest.fixture
def copy(saved, tmp_path):
  shutil.copytree(saved[0], tmp_path / "cp y")
  return tmp_path / "cp y"


def test_nothing_to_restore_is_none(tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path / "new")
  assert checkpoints.latest() is None
  assert checkpoints.read_meta() is None
  assert checkpoints.restore(abstract()) is None
  with pytest.raises(UserError, match="no checkpoint"):
    checkpoints.restore_ema()


def test_resume_equals_straight(saved, copy):
  straight = run(copy.parent / "other", init(jax.random.key(0)), 4)[4]
  restored = checkpoint.Checkpoints(copy).restore(abstract())
  assert (restored.step, restored.data["step"]) == (2, 2)
  assert restored.data["fingerprint"] == "abc"
  assert restored.meta["classes"] == ["a", "b"]
  chex.assert_trees_all_equal(restored.state, saved[1][2])
  resumed = run(copy, restored.state, 4, save_at=(3, 4))[4]
  chex.assert_trees_all_equal(resumed, straight)
  assert checkpoint.Checkpoints(copy).steps() == [3, 4]  # keep = 2


def test_a_donated_state_is_saved_as_it_was(tmp_path):
  s = init(jax.random.key(0))
  want = jax.device_get(s)
  overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x + 100, s), donate_argnums=0)
  with_save = checkpoint.Checkpoints(tmp_path)
  with_save.save(0, s, DATA, META)
  overwrite(s)
  with_save.close()
  chex.assert_trees_all_equal(with_save.restore(abstract()).state, want)


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 2, "fsdp": 2}, {"fsdp": 2}])
def test_any_mesh_reads_what_any_other_wrote(saved, copy, sizes):
  rules = [(r".*kernel", ("fsdp",))]
  devices = jax.devices()[: int(np.prod(list(sizes.values())))]
  target = abstract(sharding.make_mesh(sizes, devices), rules)
  got = checkpoint.Checkpoints(copy).restore(target).state
  chex.assert_trees_all_equal(jax.device_get(got), jax.device_get(saved[1][2]))
  places = [
    (x.sharding, y.sharding) for x, y in zip(*map(jax.tree.leaves, (got, target)), strict=True)
  ]
  assert all(a == b for a, b in places)
  again = checkpoint.Checkpoints(copy)
  again.save(3, got, DATA, META)
  again.close()
  back = checkpoint.Checkpoints(copy).restore(abstract()).state
  chex.assert_trees_all_equal(jax.device_get(back), jax.device_get(saved[1][2]))


def test_another_device_count_reads_it(saved, copy):
  code = """
    import sys, jax
    from dit_jax.training import checkpoint
    ema, meta, step = checkpoint.Checkpoints(sys.argv[1]).restore_ema()
    print(jax.device_count(), step, meta["classes"], float(ema["dense"]["kernel"].sum()))
  """
  root = str(pathlib.Path(checkpoint.__file__).parents[2])
  env = {
    "PYTHONPATH": root,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=3",
  }
  argv = [sys.executable, "-c", "\n".join(x.strip() for x in code.splitlines()), str(copy)]
  out = subprocess.run(argv, env=env, capture_output=True, text=True, check=True).stdout
  want = float(saved[1][2].ema["dense"]["kernel"].sum())
  assert out.split(" ", 1)[0] == "3"
  assert float(out.split()[-1]) == pytest.approx(want, rel=1e-6)


def test_the_same_step_twice_is_left_alone(saved, copy):
  before = manifest_of(copy / "2")
  checkpoints = checkpoint.Checkpoints(copy)
  assert not checkpoints.save(2, saved[1][1], DATA, META)
  checkpoints.close()
  assert manifest_of(copy / "2") == before


def manifest_of(path):
  return (path / manifest.NAME).read_text()


def test_ema_and_meta_are_read_alone(saved, copy):
  shutil.rmtree(copy / "2" / "state")
  shutil.rmtree(copy / "frozen")
  ema, meta, step = checkpoint.Checkpoints(copy).restore_ema()
  chex.assert_trees_all_equal(ema, saved[1][2].ema)
  assert (step, meta["config"]) == (2, "{}")
  assert checkpoint.Checkpoints(copy).restore_ema(1)[2] == 1
  with pytest.raises(UserError, match="there are: 1, 2"):
    checkpoint.Checkpoints(copy).restore_ema(7)


@pytest.mark.parametrize(
  ("kwargs", "told"),
  [
    ({"width": 6}, r"state/params/dense/kernel: float32\[8, 4\] -> float32\[6, 4\]"),
    ({"dtype": jnp.bfloat16}, r"float32\[4\] -> bfloat16\[4\]"),
  ],
  ids=str,
)
def test_another_model_is_refused(copy, kwargs, told):
  with pytest.raises(UserError, match=told):
    checkpoint.Checkpoints(copy).restore(abstract(**kwargs))


def test_missing_and_extra_leaves_are_refused_five_at_a_time(copy):
  target = abstract()
  del target.params["dense"]["bias"]
  leaf = target.params["dense"]["kernel"]
  target = target.replace(params=target.params | {f"new{i}": leaf for i in range(6)})
  with pytest.raises(UserError, match="and 2 more") as refused:
    checkpoint.Checkpoints(copy).restore(target)
  assert str(refused.value).count("absent -> ") == 5


def test_frozen_parameters_that_a_run_lacks_are_refused(copy):
  with pytest.raises(UserError, match="frozen/vgg"):
    checkpoint.Checkpoints(copy).restore(abstract().replace(frozen={}))


def test_foreign_directories_and_leftovers_are_no_checkpoints(saved, copy, capsys):
  (copy / "9").mkdir()
  (copy / "12").mkdir()
  (copy / "12" / "note.txt").write_text("mine")
  (copy / "7.orbax-checkpoint-tmp").mkdir()
  (copy / "metrics.jsonl").write_text("{}")
  checkpoints = checkpoint.Checkpoints(copy)
  assert checkpoints.latest() == 2
  assert checkpoints.restore(abstract()).step == 2
  assert "12 is no checkpoint" in capsys.readouterr().err
  assert (copy / "aside" / "12" / "note.txt").read_text() == "mine"
  assert not (copy / "7.orbax-checkpoint-tmp").exists()
  for step in (9, 12):
    assert checkpoints.save(step, saved[1][2], DATA, META)
  checkpoints.close()
  assert checkpoints.steps() == [9, 12]


def flip(path):
  content = bytearray(path.read_bytes())
  if content:
    content[len(content) // 2] ^= 1
  path.write_bytes(content)


DAMAGES = {
  "flip": flip,
  "zero": lambda path: path.write_bytes(bytes(path.stat().st_size)),
  "truncate": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
  "delete": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_to_every_file_is_found(saved, tmp_path, damage):
  """Only what restoring never reads may change unseen."""
  source = saved[0] / "2"
  files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
  unseen = set()
  for file in files:
    shutil.copytree(source, tmp_path / "2")
    DAMAGES[damage](tmp_path / "2" / file)
    unchanged = (
      damage != "delete" and (tmp_path / "2" / file).read_bytes() == (source / file).read_bytes()
    )
    if not unchanged and not (manifest.sealed(tmp_path / "2") and manifest.problem(tmp_path / "2")):
      unseen.add(str(file))
    shutil.rmtree(tmp_path / "2")
  assert len(files) > 12
  allowed = {"_CHECKPOINT_METADATA", "commit_success.txt"}
  assert unseen <= allowed | ({manifest.NAME} if damage == "delete" else set())


@pytest.mark.parametrize("file", ["_CHECKPOINT_METADATA", "commit_success.txt", manifest.NAME])
@pytest.mark.parametrize("damage", ["zero", "delete"])
def test_files_that_hold_no_arrays_never_cost_the_run(saved, copy, file, damage):
  DAMAGES[damage](copy / "2" / file)
  checkpoints = checkpoint.Checkpoints(copy)
  restored = checkpoints.restore(abstract())
  chex.assert_trees_all_equal(restored.state, saved[1][restored.step])
  assert checkpoints.save(3, restored.state, DATA, META)
  checkpoints.close()
  assert checkpoints.latest() == 3


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(saved, copy, capsys, damage):
  arrays = [p for p in (copy / "2" / "state").rglob("d/*") if p.is_file()]
  DAMAGES[damage](max(arrays, key=lambda p: p.stat().st_size))
  assert checkpoint.Checkpoints(copy).restore_ema()[2] == 2  # ema itself is whole
  checkpoints = checkpoint.Checkpoints(copy)
  assert (checkpoints.latest(), checkpoints.whole()) == (2, 1)
  restored = checkpoints.restore(abstract())
  assert restored.step == 1
  chex.assert_trees_all_equal(restored.state, saved[1][1])
  assert "2 is damaged" in capsys.readouterr().err
  # The run reaches step 2 again and saves it: the damaged one is out of the way.
  again = run(copy, restored.state, 2, save_at=(2,))[2]
  chex.assert_trees_all_equal(again, saved[1][2])
  chex.assert_trees_all_equal(checkpoint.Checkpoints(copy).restore(abstract()).state, again)


def test_where_all_are_damaged_nothing_is_moved_or_started_over(copy):
  for step in (1, 2):
    DAMAGES["delete"](copy / str(step) / "ema" / "_METADATA")
  for _ in range(2):
    with pytest.raises(UserError, match=r"none of the checkpoints \[1, 2\]"):
      checkpoint.Checkpoints(copy).restore(abstract())
  with pytest.raises(UserError, match="damaged"):
    checkpoint.Checkpoints(copy).restore_ema()
  assert checkpoint.Checkpoints(copy).whole() is None
  assert checkpoint.Checkpoints(copy).steps() == [1, 2]


def test_an_unreadable_checkpoint_without_a_manifest_falls_back_too(copy):
  (copy / "2" / manifest.NAME).unlink()
  (copy / "2" / "state" / "_METADATA").write_text("{")
  assert checkpoint.Checkpoints(copy).restore(abstract()).step == 1


def test_a_newer_format_is_refused(copy, monkeypatch):
  monkeypatch.setattr(checkpoint, "FORMAT", 0)
  with pytest.raises(UserError, match="update dit_jax"):
    checkpoint.Checkpoints(copy).restore_ema()


def test_a_failed_save_is_told_and_training_goes_on(saved, copy, capsys, monkeypatch):
  def full(_):
    raise OSError(28, "No space left on device")

  checkpoints = checkpoint.Checkpoints(copy)
  with monkeypatch.context() as patch:
    patch.setattr(manifest, "write", full)
    checkpoints.save(3, saved[1][2], DATA, META)
    checkpoints.wait()
    assert "step 3 was not written" in capsys.readouterr().err
    checkpoints.save(4, saved[1][2], DATA, META)
    with pytest.raises(OSError, match=r"step 4 was not written.*No space.*usable checkpoint: 2"):
      checkpoints.close()
  assert checkpoints.steps() == [1, 2]
  assert not list(copy.glob("*tmp*"))
  assert checkpoints.save(5, saved[1][2], DATA, META)
  checkpoints.close()
  assert checkpoints.steps() == [2, 5]


def test_a_directory_that_cannot_be_made_is_the_users_to_fix(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot be written"):
    checkpoint.Checkpoints(tmp_path / "file" / "stage").restore(abstract())
