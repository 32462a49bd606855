"""Laws of the manifest: an untouched directory is whole, a touched one is not."""

import pytest

from dit_jax.training import manifest


@pytest.fixture
def folder(tmp_path):
  for name in ("ema/d/0a", "ema/_METADATA", "state/d/empty", "meta/metadata"):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"" if name.endswith("empty") else name.encode())
  assert not manifest.sealed(tmp_path)
  manifest.write(tmp_path)
  return tmp_path


def test_what_was_written_is_whole(folder):
  assert manifest.sealed(folder)
  assert manifest.problem(folder) == ""


def test_a_copy_is_whole(folder, tmp_path_factory):
  target = tmp_path_factory.mktemp("other") / "a copy"
  folder.rename(target)
  assert manifest.problem(target) == ""


def test_sealing_twice_changes_nothing(folder):
  before = (folder / manifest.NAME).read_text()
  manifest.write(folder)
  assert (folder / manifest.NAME).read_text() == before


@pytest.mark.parametrize("content", [b"", b"ema/d/0b", b"ema/d/0a\0"])
def test_other_bytes_are_named(folder, content):
  (folder / "ema/d/0a").write_bytes(content)
  assert manifest.problem(folder) == "ema/d/0a is not what was written"


def test_a_missing_file_is_named_even_an_empty_one(folder):
  (folder / "state/d/empty").unlink()
  assert manifest.problem(folder) == "state/d/empty is missing"


def test_only_the_parts_asked_for_count(folder):
  (folder / "state/d/empty").write_bytes(b"x")
  assert manifest.problem(folder, ("ema", "meta")) == ""
  assert "state" in manifest.problem(folder, ("state",))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sha256"'])
def test_a_damaged_manifest_is_a_problem(folder, text):
  (folder / manifest.NAME).write_text(text)
  assert "cannot be read" in manifest.problem(folder)
