"""What every archive must keep to; the archives themselves are in test_zips.py and test_tars.py."""

import pytest

from dit_jax.core.errors import UserError
from dit_jax.data import archives
from dit_jax.data.images import BrokenImage


def names(*members):
  return [clean for _, clean, _ in archives.named("the set", ((name, None) for name in members))]


def test_strays_and_what_is_no_image_do_not_count():
  got = names("./a/1.PNG", "a/2.jpg", "a/.x.png", ".git/1.png", "__MACOSX/1.png", "a/x.txt", "a/b/")
  assert got == ["a/1.PNG", "a/2.jpg"]


@pytest.mark.parametrize(
  "name", ["../x.png", "a/..", "/x.png", "c:\\x.png", "a\\x.png", "a\0.png", "x" * 256, "./../x"]
)
def test_no_name_leads_outside(name):
  with pytest.raises(UserError, match=r"'the set' has a member .* do not trust it"):
    names("a/1.png", name)


def test_a_hostile_name_is_shown_short():
  with pytest.raises(UserError) as told:
    names("/" + "x" * 10_000)
  assert len(str(told.value)) < 250


@pytest.mark.parametrize("name", ["dataset.json", "metadata.csv", "metadata.jsonl"])
def test_a_file_of_classes_that_is_not_read_is_told(name):
  assert archives.tells(f"a/{name}")
  assert not archives.tells(f"a/x{name}")
  for place in ("", "birds/", *(() if name == "dataset.json" else ("train/", "birds/test/"))):
    with pytest.raises(UserError, match=f"holds '{place}{name}', .* unpack it"):
      archives.refuse_told("the set", [place + name], "birds/")
    archives.refuse_told("the set", [place + name], "birds/", known=name)
  archives.refuse_told("the set", [f"owl/{name}", f"birds/owl/{name}"], "birds/")


def test_what_the_disk_refuses_is_a_broken_image(tmp_path):
  (tmp_path / "a").write_bytes(b"four")
  file = archives.File(str(tmp_path / "a"))
  assert file.pread(9, 1) == b"our"
  with pytest.raises(BrokenImage, match=r"cannot be read .Invalid argument."):
    file.pread(9, -1)


@pytest.mark.parametrize(
  ("path", "members", "prefix"),
  [
    ("x/birds.zip", ["birds/a/1.png", "birds/b/1.png"], "birds/"),
    ("birds.TAR", ["birds/a/1.png"], "birds/"),
    ("birds.zip", ["birds/a/1.png", "b/1.png"], ""),
    ("birds.zip", ["birdsong/1.png"], ""),
    ("b.ir.ds.tar", ["b.ir.ds/1.png"], "b.ir.ds/"),
  ],
)
def test_the_folder_of_the_archives_own_name(path, members, prefix):
  assert archives.wrapper(path, members) == prefix
