"""Real images in pieces: all of them once, in order, without those that cannot be read."""

import types

import numpy as np
import pytest
import tiny_images

from dit_jax.core.errors import UserError
from dit_jax.data import sources
from dit_jax.evals import real


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  root = tiny_images.write(tmp_path_factory.mktemp("real") / "set", per_class=3, size=24)
  (root / "birds" / "gull" / "1.png").write_bytes(b"\x89PNG of nothing")
  data = dict(source="folder", path=str(root), image_size=16, holdout=0, only=())
  return sources.open_source(types.SimpleNamespace(**data), "all")


def test_pieces_are_the_readable_images_in_order(source):
  known = real.of_source(source, "tiny")
  whole = np.concatenate(list(known.chunks(5)))
  want = [source[i]["image"] for i in range(12) if i != 4]
  np.testing.assert_array_equal(whole, want)
  assert (len(known), known.words, known.classes) == (12, "tiny", tiny_images.CLASSES)
  np.testing.assert_array_equal(known.labels, np.repeat(np.arange(4), 3))


def test_some_of_some(source):
  known = real.of_source(source, "tiny").take(np.array([0, 6, 9])).take(np.array([1, 2]))
  np.testing.assert_array_equal(next(known.chunks()), [source[6]["image"], source[9]["image"]])
  assert (len(known), known.labels.tolist()) == (2, [2, 3])


def test_a_piece_without_readable_images_is_passed_over(source):
  assert [len(x) for x in real.of_source(source, "tiny").take(np.array([4, 5])).chunks(1)] == [1]


def test_an_npz_gives_its_images_and_the_rest(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)
  np.savez(tmp_path / "a.npz", arr_0=images, label=np.arange(5), grains=np.zeros(5))
  known, rest = real.of_npz("samples", tmp_path / "a.npz", 8)
  np.testing.assert_array_equal(np.concatenate(list(known.chunks(2))), images)
  assert (known.words, known.labels.tolist(), set(rest)) == (
    "a.npz",
    [0, 1, 2, 3, 4],
    {"label"},
  )
  np.savez(tmp_path / "b.npz", arr_0=images[:, ::-1])
  assert real.of_npz("samples", tmp_path / "b.npz", 8)[0].fingerprint != known.fingerprint
  np.savez(tmp_path / "c.npz", arr_0=images, label=np.arange(4))
  with pytest.raises(UserError, match=r"label is int64 \[4\]; expected integers \[n\]"):
    real.of_npz("samples", tmp_path / "c.npz", 8)


def test_a_torn_archive_is_told(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
  np.savez_compressed(tmp_path / "a.npz", arr_0=images)
  data = (tmp_path / "a.npz").read_bytes()
  for torn in (data[:60], data[:400] + bytes(4) + data[404:], b""):
    (tmp_path / "b.npz").write_bytes(torn)
    with pytest.raises(UserError, match=r"--reference: .*b\.npz is damaged or no npz"):
      real.of_npz("reference", tmp_path / "b.npz", 8)
