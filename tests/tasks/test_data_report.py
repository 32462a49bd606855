"""What is said of a data set: the thresholds of training, and facts that the pictures bear out."""

import json
import types

import numpy as np
import pytest
import tiny_images
from PIL import Image

from dit_jax.core import entropy
from dit_jax.core.errors import UserError
from dit_jax.data import grain_maps, sources
from dit_jax.sampling import grids
from dit_jax.tasks import data_report

SIZE, REGION, RATIOS = 32, 8, (0.5, 0.5)


def opened(path, size=SIZE):
  wanted = types.SimpleNamespace(
    source="folder", path=str(path), image_size=size, holdout=0, only=()
  )
  return sources.open_source(wanted, "all")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  """Three images of a class, of 40 pixels; the upper half of each is noise."""
  return tiny_images.write(tmp_path_factory.mktemp("images") / "set", per_class=3)


@pytest.fixture(scope="module")
def facts(images):
  return data_report.measure(opened(images), RATIOS, REGION)


def test_thresholds_are_those_of_training(images, facts, tmp_path):
  maps = grain_maps.measure(opened(images), REGION, RATIOS, tmp_path / "entropies.npz")
  assert facts["grains"]["thresholds"] == list(maps.taus)
  assert facts["grains"]["fractions"] == maps.record["fractions"]
  assert facts["grains"]["atoms"] == maps.record["atoms"]


def test_shares_are_those_of_the_pictures(images, facts):
  source, (tau,) = opened(images), facts["grains"]["thresholds"]
  values = np.stack([entropy.region_entropy(item["image"], REGION) for item in source])
  fine = [np.mean(x > tau) for x in values]
  told = facts["fine_fraction"]
  assert told["mean"] == pytest.approx(np.mean(fine))
  assert told["mean"] == pytest.approx(facts["grains"]["fractions"][1])
  assert told["std"] == pytest.approx(np.std(fine))
  ends = told["quantiles"]["0"], told["quantiles"]["50"], told["quantiles"]["100"]
  assert ends == pytest.approx((min(fine), np.median(fine), max(fine)))
  counts, edges = facts["entropies"]["counts"], facts["entropies"]["edges"]
  assert (edges[0], edges[-1]) == pytest.approx((values.min(), values.max()))
  for low, high, count in zip(edges[:-2], edges[1:-1], counts[:-1], strict=True):
    assert count == np.sum((values >= low) & (values < high))
  assert sum(counts) == values.size


def test_json_holds_the_facts(facts):
  assert json.loads(json.dumps(facts)) == facts


def test_broken_images_are_counted_and_named_and_leave_no_trace(images, facts, tmp_path):
  for path in images.rglob("*.png"):
    copy = tmp_path / path.relative_to(images)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(path.read_bytes())
  for i in range(7):
    (tmp_path / "birds" / "gull" / f"broken{i}.png").write_bytes(b"\x89PNG of nothing")
  got = data_report.measure(opened(tmp_path), RATIOS, REGION)
  assert list(got["skipped"]) == [f"birds/gull/broken{i}.png" for i in range(7)]
  same = ("read", "sizes", "entropies", "fine_fraction")
  assert {k: got[k] for k in same} == {k: facts[k] for k in same}
  lines = data_report.lines(got)
  start = lines.index("skipped  7 unreadable") + 1
  *named, rest = lines[start : start + 6]
  assert [line.split(":")[0] for line in named] == [f"  birds/gull/broken{i}.png" for i in range(5)]
  assert all("UnidentifiedImageError" in line for line in named)
  assert rest == "  ..."
  for path in tmp_path.rglob("*.png"):
    path.write_bytes(b"")
  with pytest.raises(UserError, match="none of the 19 images"):
    data_report.measure(opened(tmp_path), RATIOS, REGION)


def test_sizes_are_those_of_the_files(images):
  sizes = data_report.measure(opened(images, 48), RATIOS, REGION)["sizes"]
  assert sizes == {"smaller": 12, "least": 40, "median": 40, "most": 40}
  assert data_report.measure(opened(images, 40), RATIOS, REGION)["sizes"]["smaller"] == 0


def test_a_large_set_is_represented_by_evenly_spaced_images(images, monkeypatch):
  monkeypatch.setattr(data_report, "SHOWN", 1)
  monkeypatch.setattr(data_report, "MAX_PIXELS", 5 * SIZE**2)
  facts = data_report.measure(opened(images), RATIOS, REGION)
  assert (facts["read"], facts["images"]) == (5, 12)
  assert sum(facts["entropies"]["counts"]) == 5 * (SIZE // REGION) ** 2
  assert "read     5 of 12 images, evenly spaced" in data_report.lines(facts)


def test_the_sheet_tints_what_is_fine(images, tmp_path):
  facts = data_report.measure(opened(images), RATIOS, REGION, str(tmp_path / "new" / "sheet.png"))
  sheet = np.asarray(Image.open(facts["sheet"]))
  maps = grain_maps.GrainMaps(facts["grains"]["thresholds"], REGION, {})
  cell, title, shown = SIZE + 2 * grids.MARGIN, 16, list(opened(images))
  assert sheet.shape == (4 * (title + cell), 8 * cell, 3)
  for place, item in enumerate(shown):
    row, column = divmod(place, 8)
    left = column * cell + grids.MARGIN
    for tinted in (0, 1):
      top = (2 * row + tinted) * (title + cell) + title + grids.MARGIN
      picture = sheet[top : top + SIZE, left : left + SIZE].astype(int)
      changed = (picture != item["image"]).any(-1)
      changed = changed.reshape(4, REGION, 4, REGION).any((1, 3))
      np.testing.assert_array_equal(changed, maps.of(item["image"]) * tinted)


def test_a_sheet_that_cannot_be_written_is_told(images, tmp_path):
  (tmp_path / "file").write_text("")
  for sheet in (tmp_path, tmp_path / "file" / "sheet.png"):
    with pytest.raises(UserError, match="cannot be written") as e:
      data_report.measure(opened(images), RATIOS, REGION, str(sheet))
    assert "\n" not in str(e.value)
  assert [p.name for p in tmp_path.iterdir()] == ["file"]


def flat(folder, count=2, side=40):
  """Images of one colour each."""
  folder.mkdir(parents=True)
  for i in range(count):
    Image.new("RGB", (side, side), (40 * i + 30,) * 3).save(folder / f"{i}.png")
  return folder


def test_sets_of_one_class_of_none_and_of_specks(images, tmp_path):
  """Three grains; a class alone; no class; images smaller than a region."""
  finches = opened(images / "birds" / "finch")
  facts = data_report.measure(finches, (0.25, 0.5, 0.25), REGION)
  assert facts["classes"] == {"children": 0, "superclasses": 0}
  assert len(facts["grains"]["thresholds"]) == 2
  assert data_report.lines(facts)[0] == "3 images, 0 classes in 0 superclasses"
  one = tiny_images.write(tmp_path / "one", per_class=2, size=5)
  for name in ("birds/gull", "plants/fern", "plants/moss"):
    for path in (one / name).iterdir():
      path.unlink()
  facts = data_report.measure(opened(one), RATIOS, REGION)
  assert facts["classes"] == {"children": 1, "superclasses": 1}
  assert facts["sizes"] == {"smaller": 2, "least": 5, "median": 5, "most": 5}


def test_where_no_threshold_can_be_it_is_told(images, tmp_path):
  flat(tmp_path / "flat")
  with pytest.raises(UserError, match="no threshold gives a fine share"):
    data_report.measure(opened(tmp_path / "flat"), RATIOS, REGION)
  facts = data_report.measure(opened(tmp_path / "flat"), (1.0,), REGION)  # one grain needs none
  assert facts["fine_fraction"]["mean"] == 0
  assert "one grain" in facts["grains"]["told"]
  with pytest.raises(UserError, match="multiple of 7"):
    data_report.measure(opened(images), RATIOS, 7)


def test_the_histogram_marks_the_thresholds(facts):
  lines = data_report.lines(facts)
  (head,) = [i for i, line in enumerate(lines) if line.startswith("entropy")]
  rows = lines[head + 1 : head + 1 + data_report.BINS]
  (marked,) = [row for row in rows if "threshold" in row]
  low, high = map(float, marked.split()[:2])
  (tau,) = facts["grains"]["thresholds"]
  assert low <= tau <= high
  assert marked.endswith(f"<- threshold {tau:.4f}")
  bars = [row.count("#") for row in rows]
  assert max(bars) == data_report.BAR
  most = int(np.argmax(facts["entropies"]["counts"]))
  assert bars[most] == data_report.BAR
