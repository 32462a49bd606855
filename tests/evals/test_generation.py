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


def test_real_images_are_seen_once_and_remembered_in_a_file(images, extract, tmp_path):
  take = lambda params, label, index: (images[index], None)
  place, real, found = np.arange(N), known(images), []
  for read in (real.read, None):  # the second time nobody can read them
    side = dataclasses.replace(real, read=read or (lambda at: real.read(at[:0])))
    ask = generation.Generation(take, place, place, side, extract, 1, folder=tmp_path / "kept")
    found.append(fidelity.score(images[:N], ask.reference, extract, ""))
  assert found[0] == found[1]
  (kept,) = (tmp_path / "kept").iterdir()
  assert kept.name.startswith(f"f00d_{N}_{extract.trunk}_{extract.weights}")


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
