"""What a config names is opened by its kind; every kind reads from bytes or a path."""

import types

import pytest

from dit_jax.core.errors import UserError
from dit_jax.data import stores


def config(path="", **changes):
  return types.SimpleNamespace(**{"source": "folder", "path": str(path), **changes})


def test_a_folder_is_a_store(tmp_path):
  (tmp_path / "owl").mkdir()
  (tmp_path / "owl" / "1.png").write_bytes(b"x")
  store, files, empty = stores.open_store(config(tmp_path))
  assert isinstance(store, stores.Store)
  assert store.read(files[0].name) == str(tmp_path / "owl" / "1.png")
  assert (store.where, empty) == (str(tmp_path), [])


def test_an_unknown_source_is_told_the_known_ones():
  with pytest.raises(UserError, match="'imagenet' is unknown; use 'folder'"):
    stores.open_store(config(source="imagenet"))
