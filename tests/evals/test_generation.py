"""Drawing in pieces: every row once, features as of the whole, pictures of rows spread evenly."""

import dataclasses

import numpy as np
import pytest

from dit_jax.core.errors import UserError
from dit_jax.evals import features, fidelity, generation
from dit_jax.evals.real import Real
from dit_jax.sampling import grids

SIZE, N = 32, 9


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(0).integers(0, 256, (2 * N, SIZE, SIZE, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def extract():
  return features.Extractor("alexnet", batch=8)


def known(images):
  return Real("the last of them", "f00d", SIZE, images[N:].__getitem__, N)


def test_pieces_are_scored_as_the_whole(images, extract, monkeypatch):
  monkeypatch.setattr(generation, "CHUNK", 4)
  monkeypatch.setattr(generation, "SHOWN", 3)
  index, seen = np.arange(N)[::-1].copy(), []

  def predict(params, label, index):
    seen.append((label, index))
    return images[index] + params, np.full((len(index), 4, 4), label[:, None, None])

  label = np.array([0, 1, 2] * 3)
  ask = generation.Generation(predict, label, index, known(images), extract, 3, seed=5)
  found = ask(np.uint8(0))
  assert [len(rows) for rows, _ in seen] == [4, 4, 1]
  for got, want in zip(zip(*seen, strict=True), (label, index), strict=True):
    np.testing.assert_array_equal(np.concatenate(got), want)
  card = fidelity.score(images[:N][::-1], images[N:], extract, "the last of them", seed=5)
  for name, value in card.metrics.items():
    assert found.metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-7)
  assert (found.facts["seed"], found.facts["reference"]) == (5, "the last of them")
  assert found.facts["reference_fingerprint"] == "f00d"
  assert found.facts["grains"]["shares"] == pytest.approx([1 / 3] * 3)
  shown = images[index[[0, 3, 6]]]
  np.testing.assert_array_equal(found.pictures["samples"], grids.grid(shown))
  np.testing.assert_array_equal(found.pictures["fine regions"], grids.grid(shown))  # all of grain 0
  np.testing.assert_array_equal(found.pictures["real"], grids.grid(images[N + np.array([0, 3, 6])]))
  assert ask(np.uint8(9)).metrics != found.metrics


def test_real_images_are_seen_by_the_trunk_once_and_remembered_by_their_pixels(
  images, extract, tmp_path, monkeypatch
):
  take = lambda params, label, index: (images[index], None)
  place, seen, found = np.arange(N), [], []
  monkeypatch.setattr(features.Extractor, "stream", _counted(features.Extractor.stream, seen))
  other = dataclasses.replace(known(images), read=lambda at: images[N:][at] ^ 1)  # by the same name
  for side in (known(images), known(images), other):
    ask = generation.Generation(take, place, place, side, extract, 1, folder=tmp_path / "kept")
    found.append(ask.reference)
  assert (len(seen), len(list((tmp_path / "kept").iterdir()))) == (2, 2)
  np.testing.assert_array_equal(found[0].features, found[1].features)
  assert (found[0].mu != found[2].mu).any()


def _counted(stream, seen: list):
  return lambda *args: seen.append(args) or stream(*args)


def test_a_reference_of_another_kind_is_refused_before_anything_is_drawn(images, extract, tmp_path):
  made = fidelity.Reference.of(extract(images[N:]), "of 32 px")
  dataclasses.replace(made, image_size=64).save(tmp_path / "large.npz")
  dataclasses.replace(made, trunk="inception").save(tmp_path / "other.npz")
  for name, said in (("large", "of images of 64 px and the run is of 32"), ("other", "trunk of")):
    side = dataclasses.replace(known(images), total=0, file=str(tmp_path / f"{name}.npz"))
    ask = generation.Generation(None, np.zeros(N, int), np.arange(N), side, extract, 1)
    with pytest.raises(UserError, match=said):
      ask(None)


def test_without_maps_no_regions_are_shown(images, extract):
  take = lambda params, label, index: (images[index], None)
  ask = generation.Generation(take, np.zeros(N, int), np.arange(N), known(images), extract, 1)
  found = ask(None)
  assert list(found.pictures) == ["samples", "real"]
  assert "grains" not in found.facts


def test_too_few_are_refused_before_anything_is_drawn(images):
  few = known(images).take(np.arange(3))
  for n, side in ((3, known(images)), (N, few)):
    with pytest.raises(UserError, match="scoring needs 4 images or more a side"):
      generation.Generation(None, np.zeros(n), np.zeros(n), side, None, 1)
