"""Picture files to double: which, into which, and what is left where something goes wrong."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dit_jax.core.errors import UserError
from dit_jax.tasks import doubled


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "set" / "deeper").mkdir(parents=True)
  for name in ("b.JPG", "a.b.png", ".hidden.png", "deeper/c.png"):
    Image.new("RGB", (3, 2), "red").save(tmp_path / "set" / name)
  (tmp_path / "set" / "notes.txt").write_text("")
  return tmp_path / "set"


@pytest.fixture
def repeats(monkeypatch):
  """A stage that repeats pixels, in place of a trained one."""
  repeat = lambda params, low: jnp.repeat(jnp.repeat(low / 127.5 - 1, 2, 1), 2, 2)
  stage = SimpleNamespace(enhance=repeat)
  monkeypatch.setattr(doubled.superres, "restore", lambda workdir: (stage, {}))


def test_a_folder_gives_its_own_pictures_under_their_stems(folder, tmp_path):
  out = tmp_path / "new" / "out"
  want = {folder / "a.b.png": out / "a.b.png", folder / "b.JPG": out / "b.png"}
  assert doubled.plan(str(folder), str(out)) == want
  assert doubled.plan(str(folder / "b.JPG"), "x/y.png").keys() == {folder / "b.JPG"}
  assert not out.parent.exists()


@pytest.mark.parametrize(
  ("images", "out", "told"),
  [
    ("", "x.png", "--images= does not exist"),
    ("set/none.png", "x.png", "none.png does not exist"),
    ("set", "", "must name a folder, as --images="),
    ("set", "set/a.b.png", "must name a folder"),
    ("set", "set", "itself, which stays as it is"),
    ("set", "set/deeper/..", "itself, which stays as it is"),
    ("set/b.JPG", "set", "must name a .png file, as --images="),
    ("set/a.b.png", "set/a.b.png", "itself, which stays as it is"),
    ("set/b.JPG", "large.jpg", "pictures are written as PNG; name it large.png"),
    ("set/..", "out", "holds no .bmp, .gif, .jpeg, .jpg, .png, .webp itself; subfolders"),
    ("twins", "out", "b.gif and b.png of --images="),
  ],
)
def test_where_pictures_go_must_be_clear(folder, tmp_path, monkeypatch, images, out, told):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "twins").mkdir()
  for name in ("b.gif", "b.png"):
    (tmp_path / "twins" / name).touch()
  with pytest.raises(UserError) as e:
    doubled.plan(images, out)
  assert told in str(e.value)


def test_what_cannot_be_read_is_named_and_the_rest_is_written(folder, tmp_path, repeats):
  (folder / "a.torn.png").write_bytes((folder / "a.b.png").read_bytes()[:40])
  (folder / "gone.png").symlink_to("nowhere")
  plan = doubled.plan(str(folder), str(tmp_path / "out"))
  assert list(doubled.write(plan, "")) == ["a.torn.png", "gone.png"]
  assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.b.png", "b.png"]
  with Image.open(tmp_path / "out" / "a.b.png") as large:
    np.testing.assert_array_equal(np.asarray(large), np.full((4, 6, 3), (255, 0, 0)))
  for name in ("a.b.png", "b.JPG"):
    (folder / name).unlink()
  plan = doubled.plan(str(folder), str(tmp_path / "none"))
  with pytest.raises(UserError, match=r"a\.torn\.png cannot be read .*, nor the 1 beside it"):
    doubled.write(plan, "")
  assert not (tmp_path / "none").exists()


def test_a_full_disk_is_told(folder, tmp_path, repeats, monkeypatch):
  def full(*args):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(doubled.grids, "save_png", full)
  plan = doubled.plan(str(folder), str(tmp_path / "out"))
  with pytest.raises(UserError, match=r"a\.b\.png cannot be written \(No space left on device\)"):
    doubled.write(plan, "")
