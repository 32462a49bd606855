"""Lists name images, classes and splits; what they name wrongly is told by its row."""

import json
import os
import pathlib
import re
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dit_jax.core.errors import UserError
from dit_jax.data import sources


def config(path, **changes):
  values = dict(source="folder", path=str(path), image_size=8, holdout=0, only=())
  return SimpleNamespace(**{**values, **changes})


@pytest.fixture
def root(tmp_path):
  for i, name in enumerate(("1.png", "b 2.png", "deep/3.png", "deep/鳥.jpg")):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    Image.new("RGB", (9, 8), (60 * i, 0, 0)).save(tmp_path / name)
  return tmp_path


HEAD = ("path", "label", "superclass")
ROWS = [
  ("deep/3.png", "owl", "bird"),
  ("1.png", "fern", "plant"),
  ("deep/鳥.jpg", "owl", "bird"),
  ("./b 2.png", "tit", "bird"),
]


def written(path, head=HEAD, rows=ROWS):
  if path.suffix == ".jsonl":
    text = "\n".join(json.dumps(dict(zip(head, row, strict=True))) for row in rows)
  else:
    sign = "\t" if path.suffix == ".tsv" else ","
    text = "\n".join(sign.join(row) for row in (head, *rows))
  path.write_text(text + "\n", encoding="utf-8")
  return path


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_a_list_names_images_and_classes(root, ending):
  source = sources.open_source(config(written(root / f"list.{ending}")), "all")
  assert source.classes.levels == (("owl", "tit", "fern"), ("bird", "plant"))
  names = ["deep/3.png", "deep/鳥.jpg", "b 2.png", "1.png"]
  assert [source.name(i) for i in range(4)] == names
  np.testing.assert_array_equal(source.labels, [0, 0, 1, 2])
  np.testing.assert_allclose([x["image"][0, 0, 0] for x in source], [120, 180, 60, 0], atol=3)


def test_a_list_is_the_folder_that_it_describes(tmp_path):
  rows = []
  for i in range(12):
    name = f"{'ab'[i // 6]}/{'wxyz'[i // 3]}/{i}.png"
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / name)
    rows.append((name, name.split("/")[1], name.split("/")[0]))
  path = written(tmp_path / "list.csv", rows=rows[::-1])
  for split in ("train", "heldout"):
    listed = sources.open_source(config(path, holdout=3), split)
    assert listed.fingerprint == sources.open_source(config(tmp_path, holdout=3), split).fingerprint


def test_columns_by_name_and_levels_by_key(root):
  rows = [(n, a, b, "x") for n, a, b in ROWS]
  path = written(root / "list.csv", ("file_name", "species", "kind", "realm"), rows)
  none = sources.open_source(config(path))
  assert none.classes.sizes == (0, 0)
  source = sources.open_source(config(path, label_key="species", super_key="kind,realm"))
  assert source.classes.levels == (("owl", "tit", "fern"), ("bird", "plant"), ("x",))
  flat = sources.open_source(config(path, label_key="kind"))
  assert flat.classes.levels == (("bird", "plant"), ("all",))


def test_numbers_are_classes_in_their_order(root):
  rows = [(name, label) for (name, *_), label in zip(ROWS, ("10", "2", "2", "0"), strict=True)]
  source = sources.open_source(config(written(root / "list.jsonl", HEAD[:2], rows)))
  assert source.classes.children == ("00", "02", "10")


def test_a_column_of_splits(root):
  rows = [(*row, split) for row, split in zip(ROWS, ("train", "val", "train", "test"), strict=True)]
  path = written(root / "list.csv", (*HEAD, "split"), rows)
  assert len(sources.open_source(config(path), "train")) == 2
  assert sources.open_source(config(path), "heldout").name(0) == "1.png"
  assert sources.open_source(config(path, split="test"), "train").name(0) == "b 2.png"


def test_missing_and_broken_files_are_skipped_by_name(root):
  (root / "broken.png").write_bytes(b"no image")
  os.symlink("nowhere.png", root / "link.png")
  rows = [*ROWS, *((f"{name}.png", "owl", "bird") for name in ("gone", "broken", "link"))]
  source = sources.open_source(config(written(root / "list.csv", rows=rows)), "all")
  assert len(list(source)) == 7
  assert source.skipped == ["broken.png", "gone.png", "link.png"]


def test_halves_of_surrogate_pairs_are_no_files_and_mended_classes(root):
  rows = [*ROWS, ("\ud800.png", "\udfffowl", "bird"), ("x\ud800/1.png", "tit", "bird")]
  source = sources.open_source(config(written(root / "list.jsonl", rows=rows)), "all")
  assert source.classes.children == ("owl", "tit", "\ufffdowl", "fern")
  assert len(list(source)) == 6
  assert source.skipped == ["x\ufffd/1.png", "\ufffd.png"]


def test_a_taxonomy_goes_over_a_flat_list(root):
  (root / "taxa.csv").write_text("class,kind\nowl,bird\ntit,bird\nfern,plant\n")
  path = written(root / "list.csv", HEAD[:2], [row[:2] for row in ROWS])
  source = sources.open_source(config(path, taxonomy=str(root / "taxa.csv")))
  assert source.classes.superclasses == ("bird", "plant")


def test_metadata_of_an_image_folder(root):
  written(root / "metadata.jsonl", ("file_name", "label"), [row[:2] for row in ROWS])
  source = sources.open_source(config(root))
  assert source.classes.children == ("fern", "owl", "tit")
  (root / "metadata.jsonl").unlink()
  for split, rows in (("train", ROWS[:1]), ("test", ROWS[2:3])):
    (root / split / "deep").mkdir(parents=True)
    for name, *_ in rows:
      (root / name).rename(root / split / name)
    written(root / split / "metadata.csv", ("file_name", "label"), [row[:2] for row in rows])
  train, held = (sources.open_source(config(root), split) for split in ("train", "heldout"))
  assert (train.name(0), held.name(0)) == ("train/deep/3.png", "test/deep/鳥.jpg")
  assert held[0]["image"][0, 0, 0] > 170


def with_metadata(root, **splits):
  """Splits with a list each; {split: (columns of classes, rows of classes)}."""
  for split, (head, classes) in splits.items():
    (root / split).mkdir()
    rows = []
    for i, values in enumerate(classes):
      Image.new("RGB", (8, 8)).save(root / split / f"{i}.png")
      rows.append((f"{i}.png", *values))
    written(root / split / "metadata.csv", ("file_name", *head), rows)
  return config(root)


def test_metadata_of_all_splits_names_one_set_of_classes(tmp_path):
  numbers = {
    n: (("label",), [(str(i),) for i in range(m)]) for n, m in (("train", 11), ("test", 10))
  }
  data = with_metadata(tmp_path, **numbers)
  train, held = (sources.open_source(data, split) for split in ("train", "heldout"))
  assert train.classes.children == held.classes.children == tuple(f"{i:02}" for i in range(11))
  np.testing.assert_array_equal(train.labels, range(11))
  np.testing.assert_array_equal(held.labels, range(10))


@pytest.mark.parametrize("head", [("superclass", "label"), ("class",)])
def test_metadata_of_splits_with_other_columns(tmp_path, head):
  rows = [("bird", "owl")[-len(head) :]]
  data = with_metadata(tmp_path, train=(("label",), [("owl",)]), test=(head, rows))
  with pytest.raises(UserError, match=rf"columns of classes, label and {', '.join(head)}; name"):
    sources.open_source(data)
  data.split = "train"
  assert sources.open_source(data).classes.children == ("owl",)


def test_metadata_without_a_class_leaves_the_folders(tmp_path):
  (tmp_path / "owl").mkdir()
  Image.new("RGB", (8, 8)).save(tmp_path / "owl" / "1.png")
  for text in ("file_name,text\nowl/1.png,a bird\n", "id,label\n1,2\n", ""):
    (tmp_path / "metadata.csv").write_text(text)
    assert sources.open_source(config(tmp_path)).classes.children == ("owl",)


def rows(*names):
  return [(name, "owl", "bird") for name in names]


@pytest.mark.parametrize(
  ("head", "lines", "message"),
  [
    (HEAD, [], "has no row"),
    (("where", "label"), [("1.png", "a")], "the columns where, label; one must be the file"),
    (HEAD, rows("../x.png"), "row 1 .* no path below the list's own folder"),
    (HEAD, rows("1.png", "deep/../../x.png"), "row 2 .* no path below"),
    (HEAD, rows("/etc/x.png"), "no path below"),
    (HEAD, rows(""), "no path below"),
    (HEAD, rows("out/x.png"), "no path below"),
    (HEAD, rows("out.png"), "no path below"),
    (HEAD, rows("1.png", "deep/../1.png"), "row 2 .* again"),
    (HEAD, [("1.png", " ", "bird")], "row 1 .* has ' ' in 'label'"),
    (HEAD, [("1.png", "a/b", "bird")], "has 'a/b' in 'label'"),
    (HEAD, [("1.png", "owl", "")], "has '' in 'superclass'"),
    (HEAD, [("1.png", "owl")], "2 values for 3 columns"),
    (("path", "label", "label"), rows("1.png"), "names a column twice"),
    (("path", "label", "split"), rows("1.png"), "it has the splits|no split|no 'train'"),
  ],
)
def test_refusals(root, tmp_path_factory, head, lines, message):
  outside = tmp_path_factory.mktemp("outside")
  Image.new("RGB", (8, 8)).save(outside / "x.png")
  os.symlink(outside, root / "out")
  os.symlink(outside / "x.png", root / "out.png")
  changes = {"split": "train"} if "split" in head else {}
  with pytest.raises(UserError, match=message):
    sources.open_source(config(written(root / "list.csv", head, lines), **changes))


@pytest.mark.parametrize(
  "text", ['{"path": "1.png"}\n{"file": "1.png"}', "[1]", "{", "[" * 100_000, '{"path": \0}']
)
def test_lines_that_are_no_objects(root, text):
  (root / "list.jsonl").write_text(text)
  with pytest.raises(UserError, match=r"list.jsonl' cannot be read"):
    sources.open_source(config(root / "list.jsonl"))


def test_bytes_that_are_no_text(root):
  (root / "list.csv").write_bytes(b"path,label\n\xff.png,a\n")
  with pytest.raises(UserError, match=r"list.csv' cannot be read"):
    sources.open_source(config(root / "list.csv"))


def test_the_documented_list_of_vegfru(tmp_path):
  """The command of docs/data.md, on lists of the form that the set has."""
  text = (pathlib.Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
  (command,) = re.findall(r"```\n(cd VEGFRU .*?)```", text, re.S)
  root = tmp_path / "VEGFRU"
  (root / "vegfru_list").mkdir(parents=True)
  images = {"train": ("veg200_images/leek/v_01_02_0001.jpg", "fru92_images/fig/f_02_01_0007.jpg")}
  images |= {"val": ("veg200_images/leek/v_01_02_0002.jpg",), "test": ("fru92_images/fig/f_1.jpg",)}
  for split, names in images.items():
    for name in names:
      (root / name).parent.mkdir(parents=True, exist_ok=True)
      Image.new("RGB", (8, 8)).save(root / name)
    for kind, numbers in (("", (7, 290)), ("sup", (0, 15))):
      rows = [f"{name} {numbers[name.startswith('fru')]}\n" for name in names]
      (root / "vegfru_list" / f"{kind}vegfru_{split}.txt").write_text("".join(rows))
  subprocess.run(["bash", "-ec", command], cwd=tmp_path, check=True)
  source = sources.open_source(config(root / "vegfru.csv"), "train")
  assert source.classes.levels == (("leek", "fig"), ("00", "15"))
  assert len(source) == 2
  assert len(sources.open_source(config(root / "vegfru.csv"), "heldout")) == 1
  assert sources.open_source(config(root)).classes.levels == (
    ("fig", "leek"), ("fru92_images", "veg200_images")
  )  # fmt: skip
