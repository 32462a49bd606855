"""Layouts, names and strays of an image folder; nothing is decoded, so files hold any bytes."""

import os

import pytest

from dit_jax.core.errors import UserError
from dit_jax.data import folder, layout


def make(root, *names):
  for name in names:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(name.encode("utf-8", "surrogateescape"))
  return str(root)


def scan(root):
  return layout.arrange(root, folder.walk(root))


def scanned(root):
  files, empty = scan(str(root))
  return [(f.superclass, f.child, f.name) for f in files], empty


def test_two_levels(tmp_path):
  make(tmp_path, "b/y/2.png", "b/y/10.png", "a/z/1.jpg", "b/x/1.gif")
  got, empty = scanned(tmp_path)
  assert got == [
    ("a", "z", "a/z/1.jpg"),
    ("b", "x", "b/x/1.gif"),
    ("b", "y", "b/y/10.png"),
    ("b", "y", "b/y/2.png"),
  ]
  assert empty == []


def test_one_level_has_one_superclass(tmp_path):
  make(tmp_path, "tit/1.png", "owl/1.png")
  assert scanned(tmp_path)[0] == [("all", "owl", "owl/1.png"), ("all", "tit", "tit/1.png")]


def test_any_number_of_levels(tmp_path):
  make(tmp_path, "b/q/y/s/1.png", "a/p/x/s/1.png", "a/p/x/r/2.png")
  files, empty = scan(str(tmp_path))
  assert [(*f.above, f.superclass, f.child) for f in files] == [
    ("a", "p", "x", "r"), ("a", "p", "x", "s"), ("b", "q", "y", "s")
  ]  # fmt: skip
  assert empty == []


def test_no_level_has_no_class(tmp_path):
  make(tmp_path, "2.png", "1.png")
  assert scanned(tmp_path)[0] == [("", "", "1.png"), ("", "", "2.png")]


def test_sizes_are_those_of_the_files(tmp_path):
  make(tmp_path, "a/long name.png", "a/b.png")
  files, _ = scan(str(tmp_path))
  assert [f.num_bytes for f in files] == [len("a/b.png"), len("a/long name.png")]


def test_extensions_count_in_any_case_and_nothing_else_does(tmp_path):
  names = [f"a/{i}.{e}" for i, e in enumerate(("jpg", "JPEG", "Png", "WEBP", "bmp", "GIF"))]
  strays = ["a/Thumbs.db", "a/.hidden.jpg", "a/._1.jpg", "a/notes.txt", "a/x.jpg.part", "README"]
  make(tmp_path, *names, *strays, "__MACOSX/a/1.jpg", ".git/1.jpg", "a/.cache/1.jpg")
  assert [name for _, _, name in scanned(tmp_path)[0]] == sorted(names)


def test_a_class_without_images_is_reported(tmp_path):
  make(tmp_path, "a/x/1.png", "a/y/notes.txt")
  (tmp_path / "b").mkdir()
  assert scanned(tmp_path)[1] == ["a/y", "b"]


def test_names_of_any_script_and_of_no_encoding(tmp_path):
  latin = os.fsencode(str(tmp_path)) + b"/caf\xe9"
  os.mkdir(latin)
  open(latin + b"/\xff.png", "wb").close()
  make(tmp_path, "鳥 🐦/写真 1.png", "me\u0301sange/1.png")
  got = scanned(tmp_path)[0]
  assert [child for _, child, _ in got] == ["caf\\xe9", "m\u00e9sange", "鳥 🐦"]
  assert all(os.path.exists(tmp_path / name) for _, _, name in got)


@pytest.mark.parametrize(
  ("names", "message"),
  [
    ([], "holds no image"),
    (["a/notes.txt"], "holds no image"),
    (["a/x/1.png", "cover.png"], r"different depths \('a/x/1.png' and 'cover.png'\)"),
    (["a/1.png", "a/x/1.png"], "different depths"),
    (["a/x/1.png", "a/x/y/z/1.png"], r"different depths \('a/x/1.png' and 'a/x/y/z/1.png'\)"),
  ],
)
def test_refuses_layouts_that_name_no_class(tmp_path, names, message):
  make(tmp_path, *names)
  with pytest.raises(UserError, match=message):
    scan(str(tmp_path))


def test_refuses_what_is_no_folder(tmp_path):
  with pytest.raises(UserError, match="does not exist"):
    scan(str(tmp_path / "nowhere"))
  (tmp_path / "a.zip").write_bytes(b"")
  with pytest.raises(UserError, match="is not a folder"):
    scan(str(tmp_path / "a.zip"))


@pytest.mark.parametrize("where", [".", "a"])
def test_refuses_a_folder_without_permission(tmp_path, where, monkeypatch):
  make(tmp_path, "a/1.png")
  refused, scandir = os.path.normpath(tmp_path / where), os.scandir

  def guarded(path):
    if os.path.normpath(path) == refused:
      raise PermissionError(13, "Permission denied", path)
    return scandir(path)

  monkeypatch.setattr(os, "scandir", guarded)  # chmod does not stop root
  with pytest.raises(UserError, match="Permission denied"):
    scan(str(tmp_path))


def test_links_inside_are_followed_and_links_outside_refused(tmp_path):
  root = tmp_path / "root"
  make(root, "a/x/1.png")
  make(tmp_path, "outside/2.png", "root_too/3.png")
  (root / "a" / "y").mkdir()
  (root / "a/y/1.png").symlink_to("../x/1.png")
  (root / "b").symlink_to("a")
  assert [name for _, _, name in scanned(root)[0]] == [
    "a/x/1.png", "a/y/1.png", "b/x/1.png", "b/y/1.png"
  ]  # fmt: skip
  for link, target in (("a/y/2.png", "outside/2.png"), ("a/z", "root_too")):
    (root / link).symlink_to(tmp_path / target)
    with pytest.raises(UserError, match="leads out of the image folder"):
      scan(str(root))
    (root / link).unlink()


@pytest.mark.parametrize(
  ("link", "target"),
  [
    ("val", "train"),
    ("val", "train/a"),
    ("test/a", "../train/a"),
    ("test/a/2.png", "../../train/a/1.png"),
    ("val", "test"),
  ],
)
def test_a_link_from_one_split_to_another_is_refused(tmp_path, link, target):
  make(tmp_path, "train/a/1.png", "test/b/1.png")
  (tmp_path / link).parent.mkdir(exist_ok=True)
  (tmp_path / link).symlink_to(target)
  with pytest.raises(UserError, match=r"leads to images of the split '\w+', .* remove it"):
    scan(str(tmp_path))


def test_two_splits_behind_links_to_one_folder(tmp_path):
  make(tmp_path, ".all/a/1.png")
  for split in ("train", "val"):
    (tmp_path / split).symlink_to(".all")
  with pytest.raises(UserError, match="leads to images of the split"):
    scan(str(tmp_path))


def test_links_within_a_split_and_between_classes_are_followed(tmp_path):
  make(tmp_path / "split", "train/a/1.png", "test/a/1.png")
  (tmp_path / "split/train/b").symlink_to("a")
  names = [name for _, _, name in scanned(tmp_path / "split")[0]]
  assert names == ["test/a/1.png", "train/a/1.png", "train/b/1.png"]
  make(tmp_path / "plain", "train/1.png", "car/1.png")
  (tmp_path / "plain/bus").symlink_to("train")
  assert [c for _, c, _ in scanned(tmp_path / "plain")[0]] == ["bus", "car", "train"]


def test_the_root_itself_may_be_a_link(tmp_path):
  make(tmp_path / "real", "a/1.png")
  (tmp_path / "link").symlink_to("real")
  assert scanned(tmp_path / "link") == scanned(tmp_path / "real")


def test_loops_end(tmp_path):
  make(tmp_path, "a/x/1.png")
  (tmp_path / "a/x/loop").symlink_to("..")
  assert len(scanned(tmp_path)[0]) == 1
  (tmp_path / "a/up").symlink_to("..")
  assert len(scanned(tmp_path)[0]) == 1
  (tmp_path / "b/y").mkdir(parents=True)  # two folders that lead to each other
  (tmp_path / "b/y/to_x").symlink_to("../../a/x")
  (tmp_path / "a/x/to_y").symlink_to("../../b/y")
  with pytest.raises(UserError, match="different depths"):
    scan(str(tmp_path))


def test_a_link_to_itself_is_a_broken_image_by_name(tmp_path):
  make(tmp_path, "a/1.png")
  for name in ("2.png", "notes"):
    (tmp_path / "a" / name).symlink_to(name)
  files, _ = scan(str(tmp_path))
  assert [(f.name, f.num_bytes) for f in files] == [("a/1.png", 7), ("a/2.png", 0)]


def test_a_link_into_a_folder_without_permission_is_a_broken_image(tmp_path, monkeypatch):
  make(tmp_path, "a/1.png")
  (tmp_path / "a/2.png").symlink_to("../b/2.png")
  scandir = os.scandir

  class Refused:
    """An entry as the system gives it to who may not look behind it."""

    def __init__(self, entry):
      self.name, self.path, self.is_symlink = entry.name, entry.path, entry.is_symlink

    def is_dir(self):
      raise PermissionError(13, "Permission denied", self.path)

    is_file = stat = is_dir

  wrap = lambda path: [Refused(e) if e.is_symlink() else e for e in scandir(path)]
  monkeypatch.setattr(os, "scandir", wrap)  # chmod does not stop root
  files, _ = scan(str(tmp_path))
  assert [(f.name, f.num_bytes) for f in files] == [("a/1.png", 7), ("a/2.png", 0)]


def test_a_dangling_link_is_an_image_to_be_counted_and_a_pipe_is_none(tmp_path):
  make(tmp_path, "a/1.png")
  (tmp_path / "a/2.png").symlink_to("nowhere.png")
  os.mkfifo(tmp_path / "a/3.png")
  files, _ = scan(str(tmp_path))
  assert [(f.name, f.num_bytes) for f in files] == [("a/1.png", 7), ("a/2.png", 0)]
