"""Sets that TFDS prepared, without TensorFlow: it writes tiny ones here, as it writes real ones."""

import concurrent.futures
import io
import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from dit_jax.core.errors import UserError
from dit_jax.data import columns, prepared, sources


def config(source="folder", path="", **changes):
  values = dict(source=source, path=str(path), image_size=32, holdout=0, only=())
  return SimpleNamespace(**{**values, **changes})


def png(value, mode="RGB"):
  buffer = io.BytesIO()
  Image.new(mode, (32, 32), (value, 100, 200) if mode == "RGB" else 1).save(buffer, "PNG")
  buffer.seek(0)
  return buffer


def prepare(root, name, features, parts, file_format="array_record"):
  """A set with the features of a real one; parts: {split: labels of every image}, numbered on."""
  box = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
  fill = {"bbox": box, "head_bbox": box, "segmentation_mask": png(1, "L")}
  starts = dict(zip(parts, np.cumsum([0, *map(len, parts.values())]).tolist(), strict=False))

  class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
      return {split: self._generate_examples(split) for split in parts}

    def _generate_examples(self, split):
      for i, labels in enumerate(parts[split], starts[split]):
        for buffer in fill.values():
          if hasattr(buffer, "seek"):
            buffer.seek(0)
        example = {**{key: fill.get(key, "x") for key in features}, "image": png(i), **labels}
        yield i, {key: example[key] for key in features}

  Tiny.name = name
  Tiny(data_dir=root, file_format=file_format).download_and_prepare()
  return root


def features_of(name):
  return dict(tfds.builder(name).info.features)


TRAIN, TEST = [(0, 4), (5, 1), (99, 2), (5, 1), (1, 1), (0, 4), (0, 4)], [(1, 1), (5, 1)]


def labels(*pairs):
  return [{"label": label, "coarse_label": coarse} for label, coarse in pairs]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  """CIFAR-100 with seven images to train on and two to test."""
  root = tmp_path_factory.mktemp("tfds")
  parts = {"train": labels(*TRAIN), "test": labels(*TEST)}
  return prepare(root, "cifar100", features_of("cifar100"), parts)


def test_a_set_by_name_and_by_its_folder(data_dir):
  train = sources.open_source(config("tfds:cifar100", data_dir), "train")
  folder = sources.open_source(config(path=data_dir / "cifar100" / "1.0.0"), "train")
  assert folder.fingerprint == train.fingerprint
  for position, item in enumerate(train):
    label, coarse = TRAIN[item["image"][0, 0, 0]]
    assert train.classes.full_name(item["label"]) == f"{coarse:02}/{label:02}"
    assert train.name(position).startswith("train/")
  assert sorted(x["image"][0, 0, 0] for x in train) == list(range(7))
  held = sources.open_source(config("tfds:cifar100", data_dir), "heldout")
  assert sorted(x["image"][0, 0, 0] for x in held) == [7, 8]
  assert held.classes == train.classes
  alone = sources.open_source(config("tfds:cifar100", data_dir, split="test", holdout=2), "all")
  assert len(alone) == 2
  assert "tensorflow" not in sys.modules


def test_only_names_its_superclasses(data_dir):
  source = sources.open_source(config("tfds:cifar100", data_dir, only=("04",)), "train")
  assert (len(source), source.classes.superclasses) == (3, ("04",))


def test_another_feature_may_be_the_class(data_dir):
  source = sources.open_source(config("tfds:cifar100", data_dir, label_key="coarse_label"))
  assert source.classes.sizes == (3, 1)


def test_threads_may_read(data_dir):
  source = sources.open_source(config("tfds:cifar100", data_dir), "all")
  want = [source[i]["image"][0, 0, 0] for i in range(9)]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    got = [x["image"][0, 0, 0] for x in pool.map(source.__getitem__, list(range(9)) * 20)]
  assert got == want * 20


@pytest.mark.parametrize(
  ("name", "label", "above"),
  [
    ("caltech_birds2011", {"label": 3}, "all"),
    ("oxford_flowers102", {"label": 101}, "all"),
    ("imagenet2012", {"label": 15}, "all"),
    ("i_naturalist2018", {"label": 8141, "supercategory": 2}, "supercategory"),
    ("oxford_iiit_pet", {"label": 9, "species": 1}, "species"),
  ],
)
def test_sets_that_people_have(tmp_path, name, label, above):
  features = features_of(name)
  prepare(tmp_path, name, features, {"train": [label, label]})
  source = sources.open_source(config(f"tfds:{name}", tmp_path))
  names = lambda key: columns.by_number([label[key]], features[key].names, "")
  named = lambda key: names(key)[label[key]]
  want = "all" if above == "all" else named(above)
  assert source.classes.levels == ((named("label"),), (want,))
  assert sorted(x["image"][0, 0, 0] for x in source) == [0, 1]


def test_text_is_a_class_too_and_no_label_is_unconditional(tmp_path):
  features = {"image": tfds.features.Image(), "kind": tfds.features.Text()}
  prepare(tmp_path, "texts", features, {"train": [{"kind": k} for k in ("b", "a/c", "b")]})
  assert sources.open_source(config("tfds:texts", tmp_path)).classes.sizes == (0, 0)
  source = sources.open_source(config("tfds:texts", tmp_path, label_key="kind"))
  assert source.classes.children == ("a-c", "b")


def test_the_newest_version_and_the_config(data_dir, tmp_path):
  for way in ("a/1.0.0", "a/9.0.0", "a/10.0.0", "b/one/1.0.0", "c/one/1.0.0", "c/two/2.0.0"):
    shutil.copytree(data_dir / "cifar100" / "1.0.0", tmp_path / way)
  (tmp_path / "a" / "11.0.0").mkdir()  # not ready
  got = [
    prepared.folder_of(f"tfds:{name}", str(tmp_path)).removeprefix(f"{tmp_path}/")
    for name in ("a", "a:9.0.0", "b", "b:one", "c:two", "c/one/1.0.0")
  ]
  assert got == ["a/10.0.0", "a/9.0.0", "b/one/1.0.0", "b/one/1.0.0", "c/two/2.0.0", "c/one/1.0.0"]
  with pytest.raises(UserError, match=r"has the configs one, two .*'tfds:c:one'"):
    prepared.folder_of("tfds:c", str(tmp_path))


def test_the_environment_says_where_sets_are(data_dir, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
  assert prepared.folder_of("tfds:cifar100", "") == str(data_dir / "cifar100" / "1.0.0")


@pytest.mark.parametrize(
  ("source", "message"),
  [
    ("tfds:cifar10", "not prepared in .*; did you mean 'cifar100'.* tfds build cifar10 --file_"),
    ("tfds:", "must be 'tfds:NAME'"),
    ("tfds:../x", "must be 'tfds:NAME'"),
    ("tfds:/etc", "must be 'tfds:NAME'"),
  ],
)
def test_names_that_are_not_there(data_dir, source, message):
  with pytest.raises(UserError, match=message):
    sources.open_source(config(source, data_dir))


def damaged(data_dir, tmp_path, file, change):
  folder = tmp_path / "set"
  shutil.copytree(data_dir / "cifar100" / "1.0.0", folder)
  (path,) = folder.glob(file)
  path.write_bytes(change(path.read_bytes()))
  return config(path=folder)


@pytest.mark.parametrize(
  ("file", "change", "message"),
  [
    ("features.json", lambda b: b"{", "features.json in .* cannot be read"),
    ("features.json", lambda b: b"[" * 100_000, "features.json in .* cannot be read"),
    ("features.json", lambda b: b.replace(b"tensorflow_datasets.", b"os.", 1), "do not trust it"),
    ("features.json", lambda b: b"{}", "cannot be read as a set of TFDS"),
    ("dataset_info.json", lambda b: b"{}", "cannot be read as a set|in the format"),
    ("dataset_info.json", lambda b: b.replace(b"array_record", b"tfrecord"), "format tfrecord"),
    ("*-train*", lambda b: b[: len(b) // 2], "a record of the split 'train'"),
  ],
)
def test_damage_is_told(data_dir, tmp_path, file, change, message):
  with pytest.raises(UserError, match=message):
    sources.open_source(damaged(data_dir, tmp_path, file, change))


FEATURES = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
LEGACY = {"x": {"type": "dit_jax_evil.X", "content": {}}}
PROTO = json.dumps({"features": {"x": {"pythonClassName": "dit_jax_evil.X"}}})


@pytest.mark.parametrize(
  "features",
  [
    {"type": "dit_jax_evil.X", "content": {}},
    {"type": FEATURES, "content": LEGACY},
    {"type": FEATURES, "content": PROTO, "proto_cls": "tensorflow_datasets.FeaturesDict"},
    {"pythonClassName": "dit_jax_evil.X", "tensor": {}},
    {"python_class_name": "dit_jax_evil.X", "tensor": {}},
    {"pythonClassName": FEATURES, "jsonFeature": {"json": json.dumps(LEGACY)}},
    {"python_class_name": FEATURES, "json_feature": {"json": json.dumps(LEGACY)}},
  ],
)
def test_no_spelling_makes_tfds_import_another_module(data_dir, tmp_path, monkeypatch, features):
  (tmp_path / "dit_jax_evil.py").write_text("")
  monkeypatch.syspath_prepend(tmp_path)
  change = lambda _: json.dumps(features).encode()
  with pytest.raises(UserError, match=r"names 'dit_jax_evil.X', .* do not trust it"):
    sources.open_source(damaged(data_dir, tmp_path, "features.json", change))
  assert "dit_jax_evil" not in sys.modules


@pytest.mark.parametrize("text", ["{", "[" * 100_000])
def test_damage_within_a_text_of_features(data_dir, tmp_path, text):
  features = {"pythonClassName": FEATURES, "jsonFeature": {"json": text}}
  change = lambda _: json.dumps(features).encode()
  with pytest.raises(UserError, match=r"features.json in .* cannot be read"):
    sources.open_source(damaged(data_dir, tmp_path, "features.json", change))


def test_a_feature_may_be_called_type(tmp_path):
  features = {"image": tfds.features.Image(), "type": tfds.features.ClassLabel(names=["a", "b"])}
  prepare(tmp_path, "types", features, {"train": [{"type": 1}, {"type": 0}]})
  source = sources.open_source(config("tfds:types", tmp_path, label_key="type"))
  assert source.classes.children == ("a", "b")


def test_an_unreadable_record_is_skipped_by_name(data_dir):
  source = sources.open_source(config("tfds:cifar100", data_dir), "train")
  split, number = source.name(2).split("/")
  broken = dict(enumerate(source._store._records[split]))
  broken[int(number)] = {"image": b"no image"}
  source._store._records[split] = broken
  assert len(list(source)) == 7
  assert source.skipped == [f"{split}/{number}"]


def test_no_image_and_no_such_feature(data_dir, tmp_path):
  prepare(tmp_path, "texts", {"text": tfds.features.Text()}, {"train": [{"text": "a"}]})
  info = json.loads((tmp_path / "texts" / "1.0.0" / "dataset_info.json").read_text())
  assert info["fileFormat"] == "array_record"
  with pytest.raises(UserError, match="has no image, only text"):
    sources.open_source(config("tfds:texts", tmp_path))
  with pytest.raises(UserError, match="label_key names 'fine', no column of"):
    sources.open_source(config("tfds:cifar100", data_dir, label_key="fine"))
