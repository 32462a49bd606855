"""Tables of images: rows by their group, classes by the names that the file itself has."""

import concurrent.futures
import io
import json
import os
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dit_jax.core.errors import UserError
from dit_jax.data import parquet, sources

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def config(path, **changes):
  values = dict(source="folder", path=str(path), image_size=8, holdout=0, only=())
  return SimpleNamespace(**{**values, **changes})


def png(value):
  buffer = io.BytesIO()
  Image.new("RGB", (10, 8), (value, 100, 200)).save(buffer, "PNG")
  return buffer.getvalue()


def write(path, images=range(7), names=None, group=3, image="image", **labels):
  """A table of solid images, with columns of labels and names for those that have them."""
  path.parent.mkdir(parents=True, exist_ok=True)
  rows = [{"bytes": png(i) if isinstance(i, int) else i, "path": None} for i in images]
  table = pa.table({image: pa.array(rows, IMAGE), **labels})
  if names:
    told = {k: {"names": v, "_type": "ClassLabel"} for k, v in names.items()}
    told[image] = {"_type": "Image"}
    meta = {"huggingface": json.dumps({"info": {"features": told}})}
    table = table.replace_schema_metadata(meta)
  pq.write_table(table, path, row_group_size=group)
  return path


def test_rows_are_images_of_named_classes(tmp_path):
  names = {"fine_label": ["owl", "C/V van", "tit"], "coarse_label": ["bird", "thing"]}
  fine, coarse = [2, 0, 1, 1, 0, 2, 2], [0, 0, 1, 1, 0, 0, 0]
  path = write(tmp_path / "a.parquet", names=names, fine_label=fine, coarse_label=coarse)
  source = sources.open_source(config(path))
  assert source.classes.levels == (("owl", "tit", "C-V van"), ("bird", "thing"))
  np.testing.assert_array_equal(source.labels, [0, 0, 1, 1, 1, 2, 2])
  want = [1, 4, 0, 5, 6, 2, 3]
  np.testing.assert_array_equal([x["image"][0, 0, 0] for x in source], want)
  assert [source.name(i) for i in range(7)] == [f"a.parquet/{row:09}" for row in want]
  flat = sources.open_source(config(path, label_key="coarse_label"))
  assert flat.classes.levels == (("bird", "thing"), ("all",))


@pytest.mark.parametrize("kind", ["text", "numbers", "none"])
def test_classes_without_a_dictionary(tmp_path, kind):
  labels = {"text": ["b", "a", "b"], "numbers": [10, 2, 10]}
  columns = {"label": labels[kind]} if kind in labels else {}
  source = sources.open_source(config(write(tmp_path / "a.parquet", range(3), **columns)))
  want = {"text": ("a", "b"), "numbers": ("02", "10"), "none": ()}[kind]
  assert source.classes.children == want
  order = [0, 1, 2] if kind == "none" else [1, 0, 2]
  np.testing.assert_array_equal([x["image"][0, 0, 0] for x in source], order)


@pytest.mark.parametrize("column", ["img", "photo"])
def test_the_column_of_images_by_name_or_because_it_is_the_only_one(tmp_path, column):
  path = write(tmp_path / "a.parquet", range(3), image=column, label=[1, 1, 1])
  assert len(list(sources.open_source(config(path)))) == 3


@pytest.mark.parametrize(
  "names",
  [
    ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet",
     "data/test-00000-of-00001.parquet"),
    ("train/0.parquet", "train/1.parquet", "test/0.parquet"),
    ("train_a.parquet", "train.b.parquet", "test.parquet"),
    ("cifar10_train_0.parquet", "cifar10_train_1.parquet", "cifar10_test.parquet"),
    ("x-train-00000-of-00002.parquet", "x-train-00001-of-00002.parquet",
     "x-test-00000-of-00001.parquet"),
    ("train-00000-of-00002-0a1b.parquet", "train-00001-of-00002-2c3d.parquet",
     "test-00000-of-00001-4e5f.parquet"),
    ("Train.parquet", "Train/0.parquet", "Test.parquet"),
    ("train/part-00000-of-00002.parquet", "train/part-00001-of-00002.parquet",
     "test/part-00000-of-00001.parquet"),
  ],
)  # fmt: skip
def test_splits_by_the_names_of_files_or_folders(tmp_path, names):
  for name, images in zip(names, ([0, 1], [2], [3]), strict=True):
    write(tmp_path / name, images, label=["a"] * len(images))
  train, held = (sources.open_source(config(tmp_path), split) for split in ("train", "heldout"))
  assert sorted(x["image"][0, 0, 0] for x in train) == [0, 1, 2]
  assert [x["image"][0, 0, 0] for x in held] == [3]
  alone = sources.open_source(config(tmp_path, split="test"))
  assert [x["image"][0, 0, 0] for x in alone] == [3]


@pytest.mark.parametrize(
  "names",
  [
    ("test/train.parquet", "train/train.parquet"),
    ("x_test_train.parquet", "train.parquet"),
    ("val/test-00000-of-00001.parquet", "train.parquet"),
  ],
)
def test_a_table_of_two_splits(tmp_path, names):
  for name in names:
    write(tmp_path / name, [0], label=["a"])
  with pytest.raises(UserError, match=r"names the splits test and (train|val); rename it"):
    sources.open_source(config(tmp_path))


def test_tables_that_are_missing_are_told(tmp_path):
  for name in ("train-00000-of-00005", "train-00003-of-00005", "test-00000-of-00001"):
    write(tmp_path / f"{name}.parquet", [0], label=["a"])
  for path in (tmp_path, tmp_path / "train-00000-of-00005.parquet"):
    with pytest.raises(UserError, match=r"only [12] of the 5 tables .*train-\*-of-00005"):
      sources.open_source(config(path))
  assert len(sources.open_source(config(tmp_path, split="test"))) == 1


def test_a_split_of_another_name_is_one(tmp_path):
  for name, images in (("train", [0]), ("train_mini", [1])):
    write(tmp_path / f"{name}-00000-of-00001.parquet", images, label=["a"])
  assert [x["image"][0, 0, 0] for x in sources.open_source(config(tmp_path))] == [0]


def test_threads_share_few_groups(tmp_path, monkeypatch):
  monkeypatch.setattr(parquet, "KEPT_BYTES", 2000)
  path = write(tmp_path / "a.parquet", range(60), label=["a"] * 60)
  source = sources.open_source(config(path))
  wanted = list(np.random.default_rng(0).integers(0, 60, 300))
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    got = [x["image"][0, 0, 0] for x in pool.map(source.__getitem__, wanted)]
  np.testing.assert_array_equal(got, wanted)
  store = source._store
  assert store._bytes == sum(rows.nbytes for rows in store._groups.values()) <= 2000


def test_a_row_without_an_image_is_skipped_by_name(tmp_path):
  path = write(tmp_path / "a.parquet", [0, None, b"no image", 3], label=["a"] * 4)
  source = sources.open_source(config(path))
  assert [int(x["index"]) for x in source] == [0, 3, 3, 3]
  assert source.skipped == ["a.parquet/000000001", "a.parquet/000000002"]


def test_the_fingerprint_sees_labels_and_content(tmp_path):
  def fingerprint(**changes):
    path = write(tmp_path / "a.parquet", **{"images": range(7), "label": ["a"] * 7, **changes})
    return sources.open_source(config(path)).fingerprint

  before = fingerprint()
  assert before == fingerprint()
  assert len({before, fingerprint(label=["b"] * 7), fingerprint(images=[b"x" * 99] * 7)}) == 3


def test_images_win_over_a_table_beside_them(tmp_path):
  write(tmp_path / "notes.parquet", label=["a"] * 7)
  (tmp_path / "owl").mkdir()
  (tmp_path / "owl" / "1.png").write_bytes(png(1))
  assert sources.open_source(config(tmp_path)).classes.children == ("owl",)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda p: p.write_bytes(b"PAR1 no table"), "cannot be read as a parquet table"),
    (lambda p: pq.write_table(pa.table({"label": [1]}), p), "one, 'image', must hold bytes"),
    (lambda p: write(p, label=["a", "b/c", *"aaaaa"]), "has 'b/c'"),
    (lambda p: write(p, label=["a", None, *"aaaaa"]), "in every row"),
    (lambda p: write(p, label=[0.5] * 7), "text or whole numbers"),
    (lambda p: write(p, label=[0] * 6 + [9], names={"label": ["a"]}), "the class 9"),
    (lambda p: write(p, images=[], label=pa.array([], pa.int64())), "they have no row"),
  ],
)
def test_refusals(tmp_path, make, message):
  make(tmp_path / "a.parquet")
  for path in (tmp_path / "a.parquet", tmp_path):
    with pytest.raises(UserError, match=message):
      sources.open_source(config(path))


def test_damage_in_the_classes_is_told_and_in_the_images_skipped(tmp_path):
  path = write(tmp_path / "a.parquet", label=["a"] * 7)
  with pq.ParquetFile(path) as f:
    group = f.metadata.row_group(1)
  whole = path.read_bytes()
  for chunk in (group.column(i) for i in range(group.num_columns)):
    at = chunk.dictionary_page_offset or chunk.data_page_offset
    path.write_bytes(whole[:at] + b"\xff" * 12 + whole[at + 12 :])
    if chunk.path_in_schema != "label":
      source = sources.open_source(config(path))
      list(source)
      assert source.skipped == [f"a.parquet/{row:09}" for row in (3, 4, 5)]
      continue
    with pytest.raises(UserError, match=r"'label' of .*a.parquet' cannot be read"):
      sources.open_source(config(path))


def test_hidden_folders_are_not_looked_into_and_closed_ones_told(tmp_path, monkeypatch):
  """Tests may be run by root, whom all folders let in."""
  listdir = os.listdir

  def closed(path):
    if str(path).endswith("closed"):
      raise PermissionError(13, "Permission denied", path)
    return listdir(path)

  monkeypatch.setattr(os, "listdir", closed)
  write(tmp_path / "a" / "a.parquet")
  write(tmp_path / ".closed" / "b.parquet")
  assert parquet.find(str(tmp_path)) == ["a/a.parquet"]
  write(tmp_path / "closed" / "b.parquet")
  with pytest.raises(UserError, match=r"closed' cannot be read \(Permission denied\)"):
    parquet.find(str(tmp_path))


def test_a_group_too_large_to_be_read_for_one_image(tmp_path, monkeypatch):
  monkeypatch.setattr(parquet, "MAX_GROUP_BYTES", 100)
  with pytest.raises(UserError, match="row_group_size=100"):
    sources.open_source(config(write(tmp_path / "a.parquet")))


def test_a_table_behind_a_link_out_of_the_folder(tmp_path):
  write(tmp_path / "b" / "a.parquet")
  (tmp_path / "a").mkdir()
  os.symlink(tmp_path / "b" / "a.parquet", tmp_path / "a" / "a.parquet")
  with pytest.raises(UserError, match="leads out of its folder"):
    sources.open_source(config(tmp_path / "a"))
