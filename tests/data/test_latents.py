"""The latent cache: what goes in comes out; no half-written, stale or damaged one is ever read."""

import concurrent.futures
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from dit_jax.core.errors import UserError
from dit_jax.data.hierarchy import ClassTable
from dit_jax.data.latents import LatentSource, check, latent_stats, write
from dit_jax.data.pipeline import batch_at

CLASSES = ClassTable.from_pairs([("owl", "barn"), ("tit", "blue")])
KEY = {"vae": "0123abcd", "data": "fedc", "taus": (1.9, 3.25), "image_size": 64, "flip": True}


def records(n=12, h=8, nz=3, regions=4, grains=2, seed=0):
  """Images and their flipped copies, in turn."""
  rng = np.random.default_rng(seed)
  return [
    {
      "moments": rng.normal(size=(h, h, 2 * nz)).astype(np.float32),
      "grains": rng.integers(0, grains, (regions, regions), np.uint8),
      "label": np.int32(i // 2 % 2),
      "index": np.int32(i // 2 + 100),
      "flipped": i % 2,
    }
    for i in range(n)
  ]


@pytest.fixture
def cache(tmp_path):
  write(tmp_path / "cache", {**KEY, "classes": CLASSES.to_json()}, iter(records()))
  return tmp_path / "cache"


def test_round_trip(cache):
  source = LatentSource(cache)
  assert len(source) == 12
  for got, want in zip(source, records(), strict=True):
    for name in ("moments", "grains", "label", "index"):
      np.testing.assert_array_equal(got[name], want[name])
    assert (got["moments"].dtype, got["grains"].dtype) == (np.float32, np.int32)
    assert got["label"].dtype == got["index"].dtype == np.int32
  assert source.classes == CLASSES
  assert source.moments_shape == (8, 8, 6)
  check(cache, KEY)


def test_columns_agree_with_the_records(cache):
  source = LatentSource(cache)
  want = records()
  np.testing.assert_array_equal(source.labels, [r["label"] for r in want])
  np.testing.assert_array_equal(source.indices, [r["index"] for r in want])
  np.testing.assert_array_equal(source.flipped, [bool(r["flipped"]) for r in want])
  np.testing.assert_array_equal(source.grains, [r["grains"] for r in want])


def test_a_batch_is_its_items_stacked_in_the_order_asked(cache):
  source = LatentSource(cache)
  positions = np.array([7, 0, 7, 11, 3])
  batch = source.read(positions)
  for name, x in batch.items():
    np.testing.assert_array_equal(x, np.stack([source[i][name] for i in positions]))
  batch["moments"][:] = 0  # one's own copy
  assert source[7]["moments"].any()


def test_the_pipeline_reads_a_batch_in_one_call(cache, monkeypatch):
  source = LatentSource(cache)
  calls, read = [], LatentSource.read
  monkeypatch.setattr(LatentSource, "read", lambda s, p: calls.append(len(p)) or read(s, p))
  batch = batch_at(source, 6, seed=0, step=0)
  assert calls == [6]
  assert batch["moments"].shape == (6, 8, 8, 6)


def test_threads_may_share_a_source(cache):
  source = LatentSource(cache)
  want = [r["moments"] for r in records()]
  order = np.random.default_rng(0).integers(0, 12, 200)
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for i, item in zip(order, pool.map(source.__getitem__, order), strict=True):
      np.testing.assert_array_equal(item["moments"], want[i])


def test_positions_out_of_range_end_an_iteration(cache):
  source = LatentSource(cache)
  for position in (-1, 12):
    with pytest.raises(IndexError):
      source[position]
  assert len(list(source)) == 12


def test_fingerprint_follows_what_it_was_made_from(tmp_path):
  def fingerprint(name, meta, rows):
    write(tmp_path / name, meta, rows)
    return LatentSource(tmp_path / name).fingerprint

  base = fingerprint("a", KEY, records())
  assert fingerprint("b", dict(reversed(KEY.items())), records()) == base
  others = [
    fingerprint("c", {**KEY, "vae": "other"}, records()),
    fingerprint("d", KEY, records(n=10)),
    fingerprint("e", KEY, [{**r, "label": 0} for r in records()]),
  ]
  assert len({base, *others}) == 4
  moved = [{**r, "moments": r["moments"] + 1e-6} for r in records()]  # by another device, say
  assert fingerprint("f", KEY, moved) == base


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"vae": "ffff"}, "vae: 0123abcd -> ffff"),
    ({"taus": (2.0, 3.25)}, r"taus: \[1.9, 3.25\] -> \[2.0, 3.25\]"),
    ({"image_size": 128, "flip": False}, "image_size: 64 -> 128; flip: True -> False"),
    ({"crop": "adm"}, r"crop: \(absent\) -> adm"),
  ],
)
def test_a_stale_cache_is_refused_by_field(cache, change, message):
  with pytest.raises(UserError, match=message) as e:
    check(cache, {**KEY, **change})
  assert "\n" not in str(e.value)
  assert all(f"{k}:" not in str(e.value) for k in KEY if k not in change)


def test_a_cache_is_never_overwritten(cache):
  before = LatentSource(cache).fingerprint
  with pytest.raises(UserError, match="delete it"):
    write(cache, {}, records(n=2))
  assert LatentSource(cache).fingerprint == before


def test_an_empty_folder_may_become_a_cache(tmp_path):
  (tmp_path / "cache").mkdir()
  write(tmp_path / "cache", KEY, records(n=2))
  assert len(LatentSource(tmp_path / "cache")) == 2


def test_a_failed_write_leaves_nothing(tmp_path):
  def failing():
    yield from records(n=3)
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    write(tmp_path / "cache", KEY, failing())
  assert list(tmp_path.iterdir()) == []


_KILLED = """
import sys, time
import numpy as np
from dit_jax.data.latents import write
def rows():
  for i in range(10_000):
    yield dict(moments=np.zeros((4, 4, 8), np.float32), grains=np.zeros((2, 2), np.uint8),
               label=0, index=i, flipped=0)
    if i == 500:
      print("half way", flush=True)
      time.sleep(60)
write(sys.argv[1], {}, rows())
"""


def test_a_killed_write_leaves_no_cache_and_the_next_one_cleans_up(tmp_path):
  cache = tmp_path / "cache"
  child = subprocess.Popen([sys.executable, "-c", _KILLED, cache], stdout=subprocess.PIPE)
  assert child.stdout.readline() == b"half way\n"
  child.send_signal(signal.SIGKILL)
  child.wait()
  child.stdout.close()
  assert not cache.exists()
  assert [p.name for p in tmp_path.iterdir()] == ["cache.tmp"]
  with pytest.raises(UserError, match="no latent cache"):
    LatentSource(tmp_path / "cache.tmp")
  write(cache, KEY, records())
  assert [p.name for p in tmp_path.iterdir()] == ["cache"]
  check(cache, KEY)


def test_meta_is_written_last(tmp_path, monkeypatch):
  """Whatever moment the machine dies at, a folder with a meta has all its records on disk."""
  synced, fsync = [], os.fsync

  def spy(handle):
    synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
    fsync(handle)

  monkeypatch.setattr(os, "fsync", spy)
  write(tmp_path / "cache", KEY, records(n=2))
  assert synced == ["moments.bin", "columns.bin", "meta.json", "cache.tmp", tmp_path.name]


@pytest.mark.parametrize("name", ["moments.bin", "columns.bin", "meta.json"])
@pytest.mark.parametrize("fault", ["flip", "truncate", "empty", "delete"])
def test_damage_is_found(cache, name, fault):
  path = cache / name
  data = bytearray(path.read_bytes())
  middle = data.index(b"0123abcd") if name == "meta.json" else min(300, len(data) // 2)
  data[middle] ^= 4
  path.write_bytes({"flip": data, "truncate": data[:middle], "empty": b""}.get(fault, b""))
  if fault == "delete":
    path.unlink()

  def use():
    check(cache, KEY)
    return LatentSource(cache).read(range(12))

  with pytest.raises(UserError, match=r"damaged|stale|cannot be read|no latent cache"):
    use()


RECORD = 8 * 8 * 6 * 4  # bytes
CHECKSUM_5 = 12 * RECORD + 5 * 4


@pytest.mark.parametrize(
  "offset", [5 * RECORD, 5 * RECORD + 767, 6 * RECORD - 1, CHECKSUM_5, CHECKSUM_5 + 3]
)
@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_is_found_by_who_reads_the_record_and_named(cache, offset, bit):
  path = cache / "moments.bin"
  data = bytearray(path.read_bytes())
  assert len(data) == 12 * (RECORD + 4)
  data[offset] ^= 1 << bit
  path.write_bytes(data)
  source = LatentSource(cache)
  source.read([4, 6])
  for positions in ([5], [4, 5, 6]):
    with pytest.raises(UserError, match=r"damaged .record 5 is not as it was written.; delete"):
      source.read(positions)


def test_a_record_in_the_place_of_another_is_found(cache):
  path = cache / "moments.bin"
  data = path.read_bytes()
  path.write_bytes(data[RECORD : 2 * RECORD] + data[:RECORD] + data[2 * RECORD :])
  with pytest.raises(UserError, match="record 1 is not"):
    LatentSource(cache).read([2, 1, 0])


def test_a_file_cut_short_under_its_reader_is_found(cache):
  source = LatentSource(cache)
  os.truncate(cache / "moments.bin", 11 * RECORD + 9)
  source.read(range(11))
  with pytest.raises(UserError, match="record 11 is not"):
    source.read(range(12))


def test_a_source_that_is_gone_holds_no_file(cache):
  before = len(os.listdir("/proc/self/fd"))
  sources = [LatentSource(cache) for _ in range(3)]
  assert len(os.listdir("/proc/self/fd")) == before + 3
  del sources
  assert len(os.listdir("/proc/self/fd")) == before


def test_another_layout_is_refused(cache):
  meta = json.loads((cache / "meta.json").read_text())
  (cache / "meta.json").write_text(json.dumps({**meta, "version": 0}))
  with pytest.raises(UserError, match="another layout"):
    check(cache, KEY)


def test_records_of_unequal_shapes_are_our_own_mistake(tmp_path):
  rows = records(n=2)
  rows[1]["grains"] = rows[1]["grains"][:2]
  with pytest.raises(AssertionError, match="record 1: grains"):
    write(tmp_path / "cache", KEY, rows)
  assert list(tmp_path.iterdir()) == []


def unique_codes(rows, factors):
  """Means and log variances of every unique code by grain, region by region."""
  k, span = len(factors), factors[-1] // factors[0]
  found = [[] for _ in range(k)]
  for row in (r for r in rows if not r["flipped"]):
    for i, j in np.ndindex(row["grains"].shape):
      g = row["grains"][i, j]
      s = factors[k - 1 - g] // factors[0]
      region = row["moments"][i * span : (i + 1) * span, j * span : (j + 1) * span]
      found[g] += [region[a, b] for a in range(0, span, s) for b in range(0, span, s)]
  return [np.asarray(codes, np.float64) for codes in found]


@pytest.mark.parametrize(("factors", "regions"), [((8, 16), 4), ((8, 16, 32), 2), ((4,), 8)])
def test_statistics_are_those_of_sampled_unique_codes(tmp_path, factors, regions):
  rows = records(n=16, regions=regions, grains=len(factors))
  for row in rows:
    row["moments"] += np.arange(6, dtype=np.float32)  # large means, and unequal channels
    row["moments"][..., 3:] -= 3
  write(tmp_path / "cache", KEY, rows)
  mean, std = latent_stats(LatentSource(tmp_path / "cache"), factors, batch_size=3)
  assert mean.shape == std.shape == (len(factors), 3)
  rng = np.random.default_rng(0)
  for g, codes in enumerate(unique_codes(rows, factors)):
    m, log_var = codes[:, :3], codes[:, 3:]
    np.testing.assert_allclose(mean[g], m.mean(0), rtol=1e-10)
    np.testing.assert_allclose(std[g] ** 2, m.var(0) + np.exp(log_var).mean(0), rtol=1e-9)
    z = m + np.exp(log_var / 2) * rng.standard_normal((2000, *m.shape))
    np.testing.assert_allclose(std[g], z.std((0, 1)), rtol=0.02)


def test_copies_do_not_count(tmp_path):
  """A coarse region full of copies weighs as one code: the cells that it fills do not matter."""
  rows = records(n=4)
  for row in rows:
    row["grains"][:] = 0
  filled = [dict(r, moments=r["moments"][::2, ::2].repeat(2, 0).repeat(2, 1)) for r in rows]
  write(tmp_path / "once", KEY, rows)
  write(tmp_path / "copied", KEY, filled)
  once, copied = (latent_stats(LatentSource(tmp_path / d), (8, 16)) for d in ("once", "copied"))
  np.testing.assert_array_equal(once, copied)
  np.testing.assert_array_equal(once[0][1], 0)  # no fine region: 0 and 1
  np.testing.assert_array_equal(once[1][1], 1)


def test_the_reader_stays_open(cache):
  """Many small reads do not open the file again: a cache may be moved under a running job."""
  source = LatentSource(cache)
  os.rename(cache, cache.with_name("moved"))
  np.testing.assert_array_equal(source[3]["moments"], records()[3]["moments"])
