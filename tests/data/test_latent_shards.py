"""Writing the latent cache: by however many processes, killed however often, the same bytes."""

import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import tiny_cache

from dit_jax.core.errors import UserError
from dit_jax.data import latent_shards
from dit_jax.data.hierarchy import ClassTable
from dit_jax.data.latent_shards import KEY as KEY_FILE
from dit_jax.data.latent_shards import check
from dit_jax.data.latents import LatentSource

KEY = {"vae": "0123abcd", "data": "fedc", "taus": (1.9, 3.25), "image_size": 64, "flip": True}
FACTS = {"classes": ClassTable().to_json()}
IMAGES, SHARD, BROKEN = 14, 3, (1, 6, 7, 8)  # shard 2 has no image that can be read


def record(position, flipped):
  rng = np.random.default_rng((position, flipped))
  return {
    "moments": rng.normal(size=(4, 4, 6)).astype(np.float32),
    "grains": rng.integers(0, 2, (2, 2), np.uint8),
    "label": position % 3,
    "index": position + 100,
    "flipped": flipped,
  }


class Encoder:
  """Gives records, counts what it is asked for, and may fail at a position."""

  def __init__(self, dies_at=-1, error=KeyboardInterrupt):
    self.asked, self.done, self.dies_at, self.error = [], [], dies_at, error

  def __call__(self, positions, done):
    self.done.append(done)
    for position in positions.tolist():
      self.asked.append(position)
      if position == self.dies_at:
        raise self.error
      if position not in BROKEN:
        yield from ((position, record(position, flipped)) for flipped in (0, 1))


def write(folder, encoder=None, key=KEY, **how):
  encoder = encoder or Encoder()
  latent_shards.write(folder, key, FACTS, IMAGES, encoder, images=SHARD, **how)
  return encoder


def contents(folder):
  return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  """A cache written by one process in one go: its files."""
  folder = tmp_path_factory.mktemp("straight") / "cache"
  write(folder)
  return contents(folder)


def test_what_goes_in_comes_out_in_order(straight, tmp_path):
  write(tmp_path / "cache")
  names = [KEY_FILE, "meta.json", *(f"shard_0000{i}.bin" for i in range(5))]
  assert list(contents(tmp_path / "cache")) == names
  source = LatentSource(tmp_path / "cache")
  want = [record(p, f) for p in range(IMAGES) if p not in BROKEN for f in (0, 1)]
  assert len(source) == len(want) == 20
  for got, row in zip(source, want, strict=True):
    for name in ("moments", "grains", "label", "index"):
      np.testing.assert_array_equal(got[name], row[name])
  np.testing.assert_array_equal(source.flipped, [row["flipped"] for row in want])
  check(tmp_path / "cache", KEY)


def test_a_finished_cache_is_left_alone(straight, tmp_path):
  write(tmp_path / "cache")
  before = [path.stat().st_mtime_ns for path in sorted((tmp_path / "cache").iterdir())]
  assert write(tmp_path / "cache").done == []
  assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "cache").iterdir())] == before


@pytest.mark.parametrize("dies_at", range(0, IMAGES, 2))
def test_a_killed_write_goes_on_with_the_shards_that_are_missing(straight, tmp_path, dies_at):
  folder = tmp_path / "cache"
  with pytest.raises(KeyboardInterrupt):
    write(folder, Encoder(dies_at))
  there = [name for name in contents(folder) if name.startswith("shard")]
  assert all(contents(folder)[name] == straight[name] for name in there)
  assert not any(name.endswith(".tmp") for name in contents(folder))
  with pytest.raises(UserError, match="not finished"):
    LatentSource(folder)
  again = write(folder)
  begun = [p for p in range(IMAGES) if f"shard_0000{p // SHARD}.bin" not in there]
  assert (again.asked, again.done) == (begun, [IMAGES - len(begun)])
  assert contents(folder) == straight


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_any_number_of_processes_writes_the_same(straight, tmp_path, processes):
  """Threads stand for processes; some of eight have nothing to do."""
  folder, gate = tmp_path / "cache", threading.Barrier(processes, timeout=60)
  encoders = [Encoder() for _ in range(processes)]
  how = dict(process_count=processes, barrier=lambda name: gate.wait())
  threads = [
    threading.Thread(target=write, args=(folder, e), kwargs=how | {"process_index": i})
    for i, e in enumerate(encoders)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert contents(folder) == straight
  for i, encoder in enumerate(encoders):
    assert encoder.asked == [p for p in range(IMAGES) if p // SHARD % processes == i]


def test_another_number_of_processes_goes_on(straight, tmp_path):
  """Killed as one, resumed as two; the share of each is told without what is there."""
  folder, gate = tmp_path / "cache", threading.Barrier(2, timeout=60)
  with pytest.raises(KeyboardInterrupt):
    write(folder, Encoder(dies_at=10))
  how = dict(process_count=2, barrier=lambda name: gate.wait())
  second = Encoder()
  thread = threading.Thread(target=write, args=(folder, second), kwargs=how | {"process_index": 1})
  thread.start()
  first = write(folder, process_index=0, **how)
  thread.join()
  assert contents(folder) == straight
  assert (first.asked, first.done) == ([6, 7, 8, 12, 13], [3])
  assert (second.asked, second.done) == ([9, 10, 11], [3])


def test_two_processes_of_different_keys_do_not_mix(tmp_path):
  folder, gate, told = tmp_path / "cache", threading.Barrier(2, timeout=60), []

  def barrier(name):
    try:
      gate.wait()
    except threading.BrokenBarrierError:
      raise SystemExit from None

  def other():
    try:
      write(folder, key={**KEY, "vae": "ffff"}, process_index=1, process_count=2, barrier=barrier)
    except UserError as e:
      told.append(str(e))
    gate.abort()

  thread = threading.Thread(target=other)
  thread.start()
  with pytest.raises(SystemExit):
    write(folder, process_index=0, process_count=2, barrier=barrier)
  thread.join()
  assert len(told) == 1
  assert "stale (vae: 0123abcd -> ffff)" in told[0]
  assert "meta.json" not in contents(folder)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"vae": "ffff"}, "vae: 0123abcd -> ffff"),
    ({"taus": (2.0, 3.25)}, r"taus: \[1.9, 3.25\] -> \[2.0, 3.25\]"),
    ({"image_size": 128, "flip": False}, "image_size: 64 -> 128; flip: True -> False"),
    ({"crop": "adm"}, r"crop: \(absent\) -> adm"),
  ],
)
def test_a_stale_cache_is_refused_by_field_and_left_as_it_is(tmp_path, change, message, finished):
  folder = tmp_path / "cache"
  if finished:
    write(folder)
  else:
    with pytest.raises(KeyboardInterrupt):
      write(folder, Encoder(dies_at=7))
  before, encoder = contents(folder), Encoder()
  with pytest.raises(UserError, match=f"stale .{message}") as e:
    write(folder, encoder, {**KEY, **change})
  assert "\n" not in str(e.value)
  assert all(f"{k}:" not in str(e.value) for k in KEY if k not in change)
  assert (contents(folder), encoder.done) == (before, [])


def test_shards_of_another_size_are_refused(tmp_path):
  write(tmp_path / "cache")
  with pytest.raises(UserError, match=r"stale .shard: 3 -> 4"):
    latent_shards.write(tmp_path / "cache", KEY, FACTS, IMAGES, Encoder(), images=4)


def test_a_cache_from_before_there_were_shards_is_refused(tmp_path):
  folder = tmp_path / "cache"
  folder.mkdir()
  (folder / "meta.json").write_text(json.dumps({"version": 2, "count": 3, "meta": KEY}))
  (folder / "moments.bin").write_bytes(b"0" * 100)
  before = contents(folder)
  with pytest.raises(UserError, match="another layout than this version's 3; delete it"):
    write(folder)
  assert contents(folder) == before


@pytest.mark.parametrize("fault", ["delete", "truncate", "empty", "other key", "other place"])
@pytest.mark.parametrize("finished", [True, False])
def test_a_shard_that_is_not_whole_is_written_again_alone(straight, tmp_path, fault, finished):
  folder = tmp_path / "cache"
  write(folder)
  if not finished:
    (folder / "meta.json").unlink()
  path = folder / "shard_00003.bin"
  match fault:
    case "delete":
      path.unlink()
    case "truncate":
      os.truncate(path, 500)
    case "empty":
      os.truncate(path, 0)
    case "other key":
      write(tmp_path / "other", key={**KEY, "vae": "ffff"})
      path.write_bytes((tmp_path / "other" / path.name).read_bytes())
    case "other place":
      path.write_bytes((folder / "shard_00000.bin").read_bytes())
  if finished and fault == "other key":  # of a length that is right: who reads it finds it
    return
  assert write(folder).asked == [9, 10, 11]
  assert contents(folder) == straight


def test_what_a_reader_says_to_do_about_damage_mends_it(straight, tmp_path):
  folder = tmp_path / "cache"
  write(folder)
  for name in ("shard_00001.bin", "meta.json"):
    data = bytearray((folder / name).read_bytes())
    data[20] ^= 255
    (folder / name).write_bytes(data)
    with pytest.raises(UserError, match=f"{name} .*delete"):
      LatentSource(folder).read(range(20))
    (folder / name).unlink()
    write(folder)
    assert contents(folder) == straight


def test_foreign_files_are_neither_taken_nor_touched(straight, tmp_path):
  folder = tmp_path / "cache"
  folder.mkdir()
  (folder / "notes.txt").write_text("mine")
  with pytest.raises(UserError, match=r"no latent cache.* holds 'notes.txt'; move that away"):
    write(folder)
  assert contents(folder) == {"notes.txt": b"mine"}
  (folder / "notes.txt").unlink()
  (folder / "key.json.tmp").write_text("{")  # killed at the first step of all
  write(folder)
  (folder / "key.json.tmp").unlink(missing_ok=True)
  (folder / "shard_00099.bin").write_text("mine")
  assert write(folder).done == []
  assert len(LatentSource(folder)) == 20
  assert contents(folder) == straight | {"shard_00099.bin": b"mine"}
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot be written"):
    write(tmp_path / "file")


def test_a_full_disk_is_told_and_the_finished_shards_are_kept(straight, tmp_path):
  """A limit on the size of files stands for the disk: the first shard alone fits."""
  sizes = [len(straight[f"shard_0000{i}.bin"]) for i in range(5)]
  assert sizes[1] == sizes[3] > sizes[0]
  folder, limits = tmp_path / "cache", resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[0], limits[1]))
  try:
    with pytest.raises(UserError, match=r"cannot be written .*too large.*are kept") as e:
      write(folder)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert "\n" not in str(e.value)
  assert list(contents(folder)) == [KEY_FILE, "shard_00000.bin"]
  assert write(folder).asked == list(range(3, IMAGES))
  assert contents(folder) == straight


def test_a_folder_that_no_one_may_write_to_is_told(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot be written"):
    write(tmp_path / "file" / "cache")


def test_an_error_of_the_encoder_is_not_the_disks(tmp_path):
  with pytest.raises(OSError, match="of the encoder"):
    write(tmp_path / "cache", Encoder(5, OSError("of the encoder")))


def test_processes_without_a_common_disk_are_told(tmp_path):
  """The second process wrote to a disk of its own."""
  with pytest.raises(UserError, match=r"shard_00001.bin is not there.*all processes share"):
    write(tmp_path / "cache", process_count=2)


_KILLED = """
import sys
import time

import test_latent_shards as here

class Slow(here.Encoder):
  def __call__(self, positions, done):
    for pair in super().__call__(positions, done):
      if pair[0] == 10:
        print("in the fourth shard", flush=True)
        time.sleep(60)
      yield pair

here.write(__import__("pathlib").Path(sys.argv[1]), Slow())
"""


def test_sigkill_keeps_the_finished_shards(straight, tmp_path):
  folder = tmp_path / "cache"
  paths = [os.path.dirname(__file__), os.path.dirname(os.path.dirname(__file__)), os.getcwd()]
  env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
  command = [sys.executable, "-c", _KILLED, folder]
  child = subprocess.Popen(command, stdout=subprocess.PIPE, env=env)
  assert child.stdout.readline() == b"in the fourth shard\n"
  child.send_signal(signal.SIGKILL)
  child.wait()
  child.stdout.close()
  names = [KEY_FILE, "shard_00000.bin", "shard_00001.bin", "shard_00003.bin.tmp"]
  assert list(contents(folder)) == names
  assert write(folder).asked == list(range(6, IMAGES))
  assert contents(folder) == straight


def test_a_name_is_given_when_all_is_on_disk(tmp_path, monkeypatch):
  """Whatever moment the machine dies at, a shard is whole, and meta.json comes behind them all."""
  done, fsync, replace = [], os.fsync, os.replace

  def synced(handle):
    done.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))))
    fsync(handle)

  def replaced(old, new):
    done.append(("name", os.path.basename(new)))
    replace(old, new)

  monkeypatch.setattr(os, "fsync", synced)
  monkeypatch.setattr(os, "replace", replaced)
  tiny_cache.write(tmp_path / "cache", KEY, [record(i, 0) for i in range(4)], images=2)
  files = ["key.json", "shard_00000.bin", "shard_00001.bin", "meta.json"]
  steps = [[("sync", f"{n}.tmp"), ("name", n), ("sync", "cache")] for n in files]
  assert done == list(itertools.chain(*steps))


def test_records_of_unequal_shapes_are_our_own_mistake(tmp_path):
  rows = [record(0, 0), record(1, 0)]
  rows[1]["grains"] = rows[1]["grains"][:1]
  with pytest.raises(AssertionError, match="record 1: grains"):
    tiny_cache.write(tmp_path / "cache", KEY, rows)
  assert list(contents(tmp_path / "cache")) == [KEY_FILE]


@pytest.mark.parametrize(
  ("images", "shard"), [(1, 16), (1000, 16), (3000, 47), (131_072, 2048), (1_281_167, 2048)]
)
def test_shards_are_many_enough_and_large_enough(images, shard):
  assert latent_shards.images_of_a_shard(images) == shard
