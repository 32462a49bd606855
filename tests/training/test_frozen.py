"""Laws of frozen parameters: saved once by content, whole or refused."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from etils import epath

from dit_jax.core.errors import UserError
from dit_jax.training import checkpoint, frozen, state

TREE = {"vgg": {"kernel": jnp.arange(12.0).reshape(3, 4)}, "scale": (jnp.ones(2), jnp.zeros(2))}


def abstract(tree=TREE):
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


@pytest.fixture
def folder(tmp_path):
  return epath.Path(tmp_path) / "frozen"


def test_round_trip_keeps_structure_and_values(folder):
  name = frozen.save(folder, TREE)
  chex.assert_trees_all_equal(frozen.restore(folder, name, abstract()), TREE)


def test_equal_content_is_written_once(folder):
  name = frozen.save(folder, TREE)
  files = {path: path.stat().mtime for path in (folder / name).iterdir()}
  assert frozen.save(folder, jax.tree.map(jnp.copy, TREE)) == name
  assert {path: path.stat().mtime for path in (folder / name).iterdir()} == files
  assert frozen.save(folder, jax.tree.map(lambda x: x + 1, TREE)) != name
  assert len(list(folder.iterdir())) == 2


def test_an_empty_tree_needs_no_folder(folder):
  assert frozen.save(folder, {}) == ""
  assert frozen.restore(folder, "", {}) == {}
  assert not folder.exists()


def test_a_flipped_bit_is_refused(folder):
  name = frozen.save(folder, TREE)
  files = [p for p in (folder / name / "d").iterdir()]
  files += [p for p in (folder / name / "ocdbt.process_0" / "d").iterdir()]
  refused = 0
  for path in files:
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    try:
      chex.assert_trees_all_equal(frozen.restore(folder, name, abstract()), TREE)
    except UserError:
      refused += 1
    path.write_bytes(content)
  assert refused > 0  # never restored wrong; some files are not read at all


def test_missing_or_other_parameters_are_refused(folder):
  name = frozen.save(folder, TREE)
  with pytest.raises(UserError, match="cannot be read"):
    frozen.restore(folder, "0123", abstract())
  for tree in ({}, {"vgg": TREE["vgg"]}):
    with pytest.raises(UserError, match="of another model"):
      frozen.restore(folder, name, abstract(tree))
  with pytest.raises(UserError, match="of another model"):
    frozen.restore(folder, "", abstract())


def test_checkpoints_name_them_and_hold_none(tmp_path):
  tx = optax.sgd(0.1)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  s = state.create({"w": jnp.ones(3)}, tx, TREE)
  for step in (1, 2):
    checkpoints.save(step, s, {}, {})
  checkpoints.close()
  (saved,) = (tmp_path / "frozen").iterdir()
  assert checkpoints.read_meta()["frozen"] == saved.name
  assert not list((tmp_path / "2").rglob("*vgg*"))
  chex.assert_trees_all_equal(checkpoints.restore(abstract(s)).state.frozen, TREE)
