"""dataset.json, in a zip and in the folder that it unpacks to, gives one and the same set."""

import json
import os
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dit_jax.core.errors import UserError
from dit_jax.data import sources

NAMES = [f"0000{i // 4}/img0000000{i}.png" for i in range(8)]
LABELS = [6, 11, 6, 0, 11, 6, 0, 6]


def config(path, **changes):
  values = dict(source="folder", path=str(path), image_size=8, holdout=0, only=())
  return SimpleNamespace(**{**values, **changes})


def write(root, content):
  """The set as a folder and as the zip of it; returns both paths."""
  for i, name in enumerate(NAMES):
    (root / "set" / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (i, 0, 0)).save(root / "set" / name)
  text = content if isinstance(content, str) else json.dumps(content)
  (root / "set" / "dataset.json").write_text(text)
  with zipfile.ZipFile(root / "set.zip", "w") as archive:
    for name in (*NAMES, "dataset.json"):
      archive.write(root / "set" / name, name)
  return root / "set", root / "set.zip"


PAIRS = [list(pair) for pair in zip(NAMES, LABELS, strict=True)]


def test_labels_are_classes_in_the_order_of_their_numbers(tmp_path):
  paths = write(tmp_path, {"labels": PAIRS[::-1]})
  folder, packed = (sources.open_source(config(path, holdout=2), "train") for path in paths)
  assert folder.classes.levels == (("00", "06", "11"), ("all",))
  assert packed.fingerprint == folder.fingerprint
  for source in (folder, packed):
    for i in range(len(source)):
      number = NAMES.index(source.name(i))
      assert source[i]["image"][0, 0, 0] == number
      assert source.classes.children[source.labels[i]] == f"{LABELS[number]:02}"


def test_no_labels_is_an_unconditional_set(tmp_path):
  for path in write(tmp_path, {"labels": None}):
    source = sources.open_source(config(path))
    assert source.classes.sizes == (0, 0)
    np.testing.assert_array_equal([x["image"][0, 0, 0] for x in source], range(8))


@pytest.mark.parametrize("content", ["{", "", "[" * 100_000, '{"labels": [["a.png", 1]'])
def test_a_damaged_file_is_told(tmp_path, content):
  for path in write(tmp_path, content):
    with pytest.raises(UserError, match=r"dataset.json in .* cannot be read"):
      sources.open_source(config(path))


@pytest.mark.parametrize("prefix", ["set/", "./", "./set/"])
def test_a_zip_packed_from_outside_of_the_folder(tmp_path, prefix):
  folder, packed = write(tmp_path, {"labels": PAIRS})
  with zipfile.ZipFile(packed, "w") as archive:
    for name in (*NAMES, "dataset.json"):
      archive.write(folder / name)
      archive.filelist[-1].filename = prefix + name  # the library itself would drop "./"
      archive.NameToInfo = {}
  with zipfile.ZipFile(packed) as archive:
    assert archive.namelist()[-1] == f"{prefix}dataset.json"
  want, got = (sources.open_source(config(path)) for path in (folder, packed))
  assert got.classes == want.classes
  np.testing.assert_equal(list(got), list(want))


def test_a_name_that_is_no_file_of_the_folder_is_a_broken_image(tmp_path):
  """Names without an image's ending are not met where the folder is looked through."""
  root, _ = write(tmp_path, {"labels": [*PAIRS, *([name, 0] for name in ("gone", "link", "pipe"))]})
  (tmp_path / "secret").write_bytes((root / NAMES[0]).read_bytes())
  (root / "link").symlink_to(tmp_path / "secret")
  os.mkfifo(root / "pipe")
  source = sources.open_source(config(root))
  assert len(list(source)) == len(source) == 11
  assert source.reasons == {
    "gone": "it is not there, or is no file",
    "link": "it leads out of the folder",
    "pipe": "it is not there, or is no file",
  }


@pytest.mark.parametrize("content", [{"images": 3}, [1], "null"])
def test_a_file_of_another_kind_leaves_the_folders(tmp_path, content):
  for path in write(tmp_path, content):
    assert sources.open_source(config(path)).classes.children == ("00000", "00001")


def test_an_image_that_is_missing_is_skipped_by_name(tmp_path):
  for path in write(tmp_path, {"labels": [*PAIRS, ["00009/gone.png", 6]]}):
    source = sources.open_source(config(path))
    assert len(list(source)) == 9
    assert source.skipped == ["00009/gone.png"]


@pytest.mark.parametrize(
  ("labels", "message"),
  [
    (PAIRS[:-2], "no label for '00001/img00000006.png' and 1 more"),
    ([*PAIRS, PAIRS[0]], "twice"),
    ([*PAIRS, ["../x.png", 1]], "outside"),
    ([*PAIRS, ["/x.png", 1]], "must have labels as"),
    ([[name, [0.0, 1.0]] for name in NAMES], "as vectors"),
    ([[name, True] for name in NAMES], "must have labels as"),
    ([[name, -1] for name in NAMES], "the class -1"),
    ({"a": 1}, "must have labels as"),
  ],
)
def test_refusals(tmp_path, labels, message):
  for path in write(tmp_path, {"labels": labels}):
    with pytest.raises(UserError, match=message):
      sources.open_source(config(path))


def test_it_has_no_splits(tmp_path):
  for path in write(tmp_path, {"labels": PAIRS}):
    with pytest.raises(UserError, match=r"data.split='train' asks for .*: splits"):
      sources.open_source(config(path, split="train"))
