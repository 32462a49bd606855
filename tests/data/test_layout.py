"""Layouts of names, wherever they come from: classes below splits, and what is no layout."""

import pytest

from dit_jax.core.errors import UserError
from dit_jax.data import layout
from dit_jax.data.images import ImageFile


def arranged(*names, split="", below=""):
  entries = [name if name.endswith("/") else ImageFile(name, 1) for name in names]
  entries = [entry.rstrip("/") if isinstance(entry, str) else entry for entry in entries]
  files, empty = layout.arrange("the set", entries, split, below)
  return [(f.split, *f.above, f.superclass, f.child, f.name) for f in files], empty


SPLIT = ("train/b/y/1.png", "train/a/x/2.png", "val/a/x/1.png", "test/c/z/1.png")


def test_splits_are_no_classes():
  got, _ = arranged(*SPLIT)
  assert got == [
    ("train", "a", "x", "train/a/x/2.png"),
    ("heldout", "a", "x", "val/a/x/1.png"),
    ("train", "b", "y", "train/b/y/1.png"),
  ]


def test_a_split_is_a_set_when_it_is_asked_for():
  assert arranged(*SPLIT, split="test")[0] == [("", "c", "z", "test/c/z/1.png")]
  assert arranged("a/x/1.png", "b/y/1.png", split="a")[0] == [("", "all", "x", "a/x/1.png")]


@pytest.mark.parametrize(
  ("names", "classes"),
  [
    (("train/1.png", "test/2.png"), [("", ""), ("", "")]),
    (("train/x/1.png", "val/x/2.png"), [("all", "x"), ("all", "x")]),
    (("train/a/p/x/1.png", "val/a/p/x/2.png"), [("p", "x"), ("p", "x")]),
  ],
)
def test_every_depth_may_lie_below_splits(names, classes):
  got, _ = arranged(*names)
  assert [row[-3:-1] for row in got] == classes
  assert {row[0] for row in got} == {"train", "heldout"}


def test_a_train_among_vehicles_is_a_class():
  got, _ = arranged("train/1.png", "bus/1.png", "Test/1.png")
  assert [row[2] for row in got] == ["Test", "bus", "train"]


def test_one_of_folders_that_look_like_splits_may_be_chosen_or_alone():
  got, _ = arranged("Train/a/1.png", "Test/a/1.png", split="Test")
  assert [row[-1] for row in got] == ["Test/a/1.png"]
  assert arranged("Training/a/1.png")[0][0][:3] == ("", "Training", "a")


def test_empty_folders_of_a_split_that_is_not_read_are_not_told():
  names = (*SPLIT, "train/", "train/a/", "train/a/none/", "test/c/none/", "val/d/")
  assert arranged(*names)[1] == ["train/a/none", "val/d"]


def test_what_every_name_begins_with_names_no_class():
  got, empty = arranged("birds/", "birds/owl/", "birds/owl/1.png", "birds/tit/", below="birds/")
  assert got == [("", "all", "owl", "birds/owl/1.png")]
  assert empty == ["birds/tit"]
  got, _ = arranged("birds/train/owl/1.png", "birds/val/owl/1.png", below="birds/")
  assert [row[0] for row in got] == ["train", "heldout"]


@pytest.mark.parametrize(
  ("names", "split", "message"),
  [
    (("train/a/1.png", "val/a/1.png", "more/a/1.png"), "", "'train' and 'val' beside 'more'"),
    (("train/a/1.png", "val/a/1.png", "1.png"), "", "beside 'images without a folder'"),
    (("val/a/1.png", "test/a/1.png"), "", "no 'train'"),
    (("Train/a/1.png", "Test/a/1.png"), "", "'Test' and 'Train', which look like splits"),
    (("training/a/1.png", "validation/a/1.png"), "", "'training' and 'validation', which look"),
    (("train/a/1.png", "Test/a/1.png"), "", "rename them 'train' and 'val' or 'test', or choose"),
    (("train_mini/1.png", "val/1.png"), "", "'train_mini' and 'val', which look"),
    (("a/1.png",), "train", "data.split='train' is no split of 'the set'; it has a"),
    (("1.png",), "train", "it has none"),
    (("train/a/b/1.png", "val/a/1.png"), "", "different depths"),
    (("a/",), "", "holds no image"),
  ],
)
def test_refusals(names, split, message):
  with pytest.raises(UserError, match=message):
    arranged(*names, split=split)
