"""Reading the latent cache: what went in comes out, and no damaged one is ever read."""

import concurrent.futures
import json
import os

import numpy as np
import pytest
import tiny_cache

from dit_jax.core.errors import UserError
from dit_jax.data import latents
from dit_jax.data.hierarchy import ClassTable
from dit_jax.data.latent_shards import END, check
from dit_jax.data.latents import LatentSource, latent_stats
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
  """Three shards, of five, five and two records."""
  facts = {"classes": CLASSES.to_json()}
  tiny_cache.write(tmp_path / "cache", KEY, records(), facts, images=5)
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
    tiny_cache.write(tmp_path / name, meta, rows)
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


@pytest.mark.parametrize("images", [1, 5, 0])
def test_the_fingerprint_is_that_of_caches_of_one_file(tmp_path, images):
  """Checkpoints hold it: who writes a cache again in shards, however many, goes on training.

  The number was computed by the version before shards, of these records.
  """
  facts = {"classes": CLASSES.to_json()}
  tiny_cache.write(tmp_path / "cache", KEY, records(), facts, images=images)
  assert LatentSource(tmp_path / "cache").fingerprint == "aeff02ddd08217f1"


@pytest.mark.parametrize("name", ["shard_00000.bin", "shard_00002.bin", "meta.json"])
@pytest.mark.parametrize("fault", ["flip", "truncate", "grow", "empty", "delete"])
def test_damage_is_found(cache, name, fault):
  path = cache / name
  data = bytearray(path.read_bytes())
  middle = data.index(b"0123abcd") if name == "meta.json" else min(300, len(data) // 2)
  grown = data + b"0"
  data[middle] ^= 4
  path.write_bytes({"flip": data, "truncate": data[:middle], "grow": grown}.get(fault, b""))
  if fault == "delete":
    path.unlink()

  def use():
    check(cache, KEY)
    return LatentSource(cache).read(range(12))

  with pytest.raises(UserError, match=r"damaged|stale|cannot be read|not finished") as e:
    use()
  assert name in str(e.value) or "stale" in str(e.value) or "not finished" in str(e.value)


RECORD = 8 * 8 * 6 * 4  # bytes
COLUMN = 4 * 4 + 4 + 4 + 1


@pytest.mark.parametrize("offset", [2 * RECORD, 2 * RECORD + 767, 3 * RECORD - 1, 5 * RECORD + 8])
@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_is_found_by_who_reads_the_record_and_named(cache, offset, bit):
  """Record 7 is the third of the second shard; the last offset is in its checksum."""
  path = cache / "shard_00001.bin"
  data = bytearray(path.read_bytes())
  assert len(data) == 5 * (RECORD + 4 + COLUMN) + END.itemsize
  data[offset] ^= 1 << bit
  path.write_bytes(data)
  source = LatentSource(cache)
  source.read([6, 8, 2])
  for positions in ([7], [4, 7, 6]):
    with pytest.raises(UserError, match=r"shard_00001.bin has a record 2 that is not"):
      source.read(positions)


@pytest.mark.parametrize("offset", [0, COLUMN - 1, 5 * COLUMN - 1])
def test_a_flipped_bit_in_the_columns_is_found_at_once(cache, offset):
  path = cache / "shard_00001.bin"
  data = bytearray(path.read_bytes())
  data[5 * (RECORD + 4) + offset] ^= 1
  path.write_bytes(data)
  with pytest.raises(UserError, match=r"shard_00001.bin has columns that are not"):
    LatentSource(cache)


def test_a_record_in_the_place_of_another_is_found(cache):
  path = cache / "shard_00000.bin"
  data = path.read_bytes()
  path.write_bytes(data[RECORD : 2 * RECORD] + data[:RECORD] + data[2 * RECORD :])
  with pytest.raises(UserError, match="a record 1 that is not"):
    LatentSource(cache).read([2, 1, 0])


def test_a_shard_in_the_place_of_another_is_found(cache, tmp_path):
  """With equal columns only the seeds of the checksums tell."""
  first, second = ((cache / f"shard_0000{i}.bin").read_bytes() for i in (0, 1))
  (cache / "shard_00000.bin").write_bytes(second)
  (cache / "shard_00001.bin").write_bytes(first)
  with pytest.raises(UserError, match="damaged"):
    LatentSource(cache)
  alike = [{**row, "grains": row["grains"] * 0, "label": 0, "index": 0} for row in records()]
  tiny_cache.write(tmp_path / "alike", KEY, alike[::2], images=3)
  first, second = (tmp_path / "alike" / f"shard_0000{i}.bin" for i in (0, 1))
  first.rename(tmp_path / "aside")
  second.rename(first)
  (tmp_path / "aside").rename(second)
  source = LatentSource(tmp_path / "alike")
  with pytest.raises(UserError, match="a record 1 that is not"):
    source.read([4])


def test_a_file_cut_short_under_its_reader_is_found(cache):
  source = LatentSource(cache)
  os.truncate(cache / "shard_00002.bin", RECORD + 9)
  source.read(range(11))
  with pytest.raises(UserError, match="a record 1 that is not"):
    source.read(range(12))


def test_a_source_that_is_gone_holds_no_file(cache):
  before = len(os.listdir("/proc/self/fd"))
  sources = [LatentSource(cache) for _ in range(3)]
  assert len(os.listdir("/proc/self/fd")) == before + 3 * 4  # shards, and the folder
  del sources
  assert len(os.listdir("/proc/self/fd")) == before


def test_more_shards_than_may_be_open_are_read(cache, monkeypatch):
  monkeypatch.setattr(latents, "_OPEN", 1)
  before = len(os.listdir("/proc/self/fd"))
  source = LatentSource(cache)
  order = np.random.default_rng(0).integers(0, 12, 200)
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for i, item in zip(order, pool.map(source.__getitem__, order), strict=True):
      np.testing.assert_array_equal(item["moments"], records()[i]["moments"])
  assert len(os.listdir("/proc/self/fd")) == before + 2


def test_an_unfinished_cache_is_not_read(cache):
  (cache / "meta.json").unlink()
  with pytest.raises(UserError, match="not finished; run the line"):
    LatentSource(cache)


def test_another_layout_is_refused(cache):
  meta = json.loads((cache / "meta.json").read_text())
  (cache / "meta.json").write_text(json.dumps({**meta, "version": 2}))
  for use in (lambda: check(cache, KEY), lambda: LatentSource(cache)):
    with pytest.raises(UserError, match="another layout than this version's 3; delete it"):
      use()


@pytest.mark.parametrize("field", ["images", "count", "shards", "moments", "columns", "meta"])
def test_a_flipped_bit_in_a_name_of_meta_is_refused_in_a_line(cache, field):
  text = (cache / "meta.json").read_text()
  (cache / "meta.json").write_text(text.replace(f'"{field}"', f'"{field[:-1]}_"'))
  with pytest.raises(UserError, match="another layout"):
    LatentSource(cache)


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
  tiny_cache.write(tmp_path / "cache", KEY, rows, images=5)
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
  tiny_cache.write(tmp_path / "once", KEY, rows)
  tiny_cache.write(tmp_path / "copied", KEY, filled)
  once, copied = (latent_stats(LatentSource(tmp_path / d), (8, 16)) for d in ("once", "copied"))
  np.testing.assert_array_equal(once, copied)
  np.testing.assert_array_equal(once[0][1], 0)  # no fine region: 0 and 1
  np.testing.assert_array_equal(once[1][1], 1)


def test_the_reader_stays_open(cache):
  """Many small reads do not open the file again: a cache may be moved under a running job."""
  source = LatentSource(cache)
  os.rename(cache, cache.with_name("moved"))
  np.testing.assert_array_equal(source[3]["moments"], records()[3]["moments"])
