"""Grain maps of a data set: thresholds are made once, on these images, and never mixed up."""

import json

import numpy as np
import pytest

from dit_jax.core.errors import UserError
from dit_jax.data import grain_maps
from dit_jax.data.grain_maps import GrainMaps, measure

REGION = 8
RATIOS = {2: (0.5, 0.5), 3: (0.4, 0.35, 0.25)}


class Images:
  """Pictures of flat and noisy regions; counts how often one is read."""

  def __init__(self, n=24, size=32, seed=0, white=0.0, broken=()):
    rng = np.random.default_rng(seed)
    cells = size // REGION
    contrast = rng.uniform(0, 60, (n, cells, cells, 1)) * (rng.random((n, cells, cells, 1)) > white)
    base = np.where(contrast > 0, rng.uniform(70, 180, contrast.shape), 255)
    base, contrast = (x.repeat(REGION, 1).repeat(REGION, 2) for x in (base, contrast))
    pixels = base + contrast * rng.uniform(-1, 1, (n, size, size, 3))
    self.images = pixels.round().astype(np.uint8)
    self.fingerprint = f"{seed}-{n}"
    self.broken, self.reads = set(broken), []

  def __len__(self):
    return len(self.images)

  def __getitem__(self, position):
    self.reads.append(position)
    while position in self.broken:  # as sources.ImageSource does
      position = (position + 1) % len(self)
    return {"image": self.images[position], "index": np.int32(position + 100)}


@pytest.fixture
def path(tmp_path):
  return tmp_path / "run" / "entropies.npz"


@pytest.mark.parametrize("k", [2, 3])
def test_thresholds_are_made_once_and_come_back_equal(path, k):
  source = Images()
  first = measure(source, REGION, RATIOS[k], path)
  assert len(first.taus) == k - 1
  assert sorted(source.reads) == list(range(len(source)))
  before = path.read_bytes()
  source.reads.clear()
  again = measure(source, REGION, RATIOS[k], path)
  assert source.reads == []
  assert (again.taus, again.record, again.region) == (first.taus, first.record, first.region)
  assert path.read_bytes() == before
  assert [p.name for p in path.parent.iterdir()] == [path.name]
  assert json.loads(json.dumps(first.record)) == first.record


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(source=Images(seed=1)), "fingerprint: 0-24 -> 1-24"),
    (dict(ratios=(0.4, 0.6)), r"ratios: \[0.5, 0.5\] -> \[0.4, 0.6\]"),
    (dict(region=16), "region: 8 -> 16"),
    (dict(max_images=12), "images: 24 -> 12"),
  ],
)
def test_thresholds_of_anything_else_are_refused(path, change, message):
  measure(Images(), REGION, RATIOS[2], path)
  before = path.read_bytes()
  want = dict(source=Images(), region=REGION, ratios=RATIOS[2], path=path)
  with pytest.raises(UserError, match=message) as e:
    measure(**want | change)
  assert "\n" not in str(e.value)
  assert path.read_bytes() == before


def test_another_entropy_function_is_refused(path, monkeypatch):
  maps = measure(Images(), REGION, RATIOS[2], path)
  monkeypatch.setattr(grain_maps, "FUNCTION", "grey KDE entropy, 64 bins")
  with pytest.raises(UserError, match="function: grey KDE entropy, 256 bins"):
    measure(Images(), REGION, RATIOS[2], path)
  with pytest.raises(UserError, match="'grey KDE entropy, 64 bins'; train the dvae"):
    GrainMaps.from_record(maps.record)


def test_one_grain_needs_no_thresholds(path):
  source = Images()
  maps = measure(source, REGION, (1.0,), path)
  assert (maps.taus, maps.record["fractions"]) == ((), [1.0])
  assert not path.exists()
  assert source.reads == []
  batch = maps.add_to({"image": source.images[:3], "index": np.arange(3)})
  np.testing.assert_array_equal(batch["grains"], np.zeros((3, 4, 4)))
  again = GrainMaps.from_record(json.loads(json.dumps(maps.record)))
  np.testing.assert_array_equal(again.of(source.images[0]), np.zeros((4, 4)))


@pytest.mark.parametrize("k", [2, 3])
def test_stored_maps_are_those_computed_afresh(path, k):
  source = Images()
  measure(source, REGION, RATIOS[k], path)
  stored = measure(source, REGION, RATIOS[k], path)
  fresh = GrainMaps.from_record(json.loads(json.dumps(stored.record)))
  batch = {"image": source.images, "index": np.arange(100, 124), "label": np.arange(24)}
  a, b = stored.add_to(batch), fresh.add_to(batch)
  assert (a["grains"].dtype, a["grains"].shape) == (np.int32, (24, 4, 4))
  np.testing.assert_array_equal(a["grains"], b["grains"])
  np.testing.assert_array_equal(a["grains"], [fresh.of(x) for x in source.images])
  assert set(np.unique(a["grains"])) == set(range(k))
  assert a["label"] is batch["label"]
  assert "grains" not in batch


def test_a_map_goes_by_the_images_own_index(path):
  source = Images()
  maps = measure(source, REGION, RATIOS[2], path)
  order = np.random.default_rng(3).permutation(24)
  got = maps.add_to({"image": source.images[order], "index": order + 100})["grains"]
  want = maps.add_to({"image": source.images, "index": np.arange(100, 124)})["grains"]
  np.testing.assert_array_equal(got, want[order])
  assert len({x.tobytes() for x in want}) > 20


@pytest.mark.parametrize("white", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("ratios", [(0.5, 0.5), (0.8, 0.2), (0.4, 0.35, 0.25)])
def test_the_fine_share_is_what_was_asked_for(path, ratios, white):
  """Within 1 %, or within the mass of equal regions at the threshold: those cannot be split."""
  source = Images(n=40, white=white)
  maps = measure(source, REGION, ratios, path)
  grains = np.stack([maps.of(image) for image in source.images])
  for g, (tau, atom) in enumerate(zip(maps.taus, maps.record["atoms"], strict=True)):
    realised = np.mean(grains <= g)
    assert abs(realised - sum(ratios[: g + 1])) <= max(0.01, atom), (tau, atom)
  shares = np.bincount(grains.ravel(), minlength=len(ratios)) / grains.size
  np.testing.assert_allclose(maps.record["fractions"], shares, atol=1e-12)


def test_a_kill_while_measuring_leaves_no_file(path):
  class Killed(Images):
    def __getitem__(self, position):
      if len(self.reads) == 5:
        raise KeyboardInterrupt
      return super().__getitem__(position)

  with pytest.raises(KeyboardInterrupt):
    measure(Killed(), REGION, RATIOS[2], path)
  assert not path.exists()
  assert measure(Images(), REGION, RATIOS[2], path).taus


def test_a_kill_while_writing_leaves_nothing_that_passes_for_the_file(path, monkeypatch):
  def torn(file, **arrays):
    file.write(b"half of a zip")
    raise KeyboardInterrupt

  want = measure(Images(), REGION, RATIOS[2], path.with_name("other.npz"))
  with monkeypatch.context() as patch:
    patch.setattr(np, "savez_compressed", torn)
    with pytest.raises(KeyboardInterrupt):
      measure(Images(), REGION, RATIOS[2], path)
  assert not path.exists()
  assert measure(Images(), REGION, RATIOS[2], path).record == want.record


def test_a_broken_images_neighbour_counts_once(path):
  whole, broken = Images(), Images(broken=(4, 5))
  maps = measure(broken, REGION, RATIOS[2], path)
  kept = np.delete(whole.images, (4, 5), axis=0)
  share = np.mean([maps.of(image) for image in kept])
  assert maps.record["fractions"][1] == pytest.approx(share, abs=1e-12)


def test_a_large_set_is_represented_by_images_from_all_over_it(path):
  source = Images(n=50)
  maps = measure(source, REGION, RATIOS[2], path, max_images=6)
  assert source.reads == [0, 10, 20, 29, 39, 49]
  assert maps.record["images"] == 6
  rest = maps.add_to({"image": source.images[3:4], "index": np.array([103])})
  np.testing.assert_array_equal(rest["grains"][0], maps.of(source.images[3]))


def test_images_without_any_difference_are_refused(path):
  source = Images()
  source.images[:] = 255
  with pytest.raises(UserError, match="use a single grain"):
    measure(source, REGION, RATIOS[2], path)
  assert not path.exists()


def test_the_description_tells_thresholds_shares_and_a_grain_that_never_occurs(path, tmp_path):
  maps = measure(Images(), REGION, RATIOS[2], path)
  text = maps.describe()
  assert f"{maps.taus[0]:.4f} nats" in text
  assert f"{maps.record['fractions'][1]:.2%}" in text
  assert "NEVER" not in text
  unused = GrainMaps((1.0, 1.0), REGION, {**maps.record, "fractions": [0.5, 0.0, 0.5]})
  assert "NEVER USED" in unused.describe()
  assert "one grain" in measure(Images(), REGION, (1.0,), tmp_path / "k1.npz").describe()
