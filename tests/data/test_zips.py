"""Zip archives: what a folder holds, read in place by threads; hostile ones write nothing."""

import concurrent.futures
import io
import os
import pathlib
import struct
import warnings
import zipfile
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dit_jax.core.errors import UserError
from dit_jax.data import archives, sources, zips
from dit_jax.data.images import BrokenImage

CIFAR = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10_train.zip"
NAMES = [f"{c}/{i}.png" for c in ("owl/barn", "owl/鳥", "tit/blue") for i in range(4)]


def config(path, **changes):
  values = dict(source="folder", path=str(path), image_size=8, holdout=0, only=())
  return SimpleNamespace(**{**values, **changes})


def png(value=0, size=(10, 8)):
  buffer = io.BytesIO()
  Image.new("RGB", size, (value, 100, 200)).save(buffer, "PNG")
  return buffer.getvalue()


def pack(path, files, method=zipfile.ZIP_DEFLATED):
  with zipfile.ZipFile(path, "w", method) as archive, warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of duplicate names
    for name, data in files.items() if isinstance(files, dict) else files:
      archive.writestr(name, data)
  return path


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
  """The same images in a folder and in two archives."""
  root = tmp_path_factory.mktemp("birds")
  files = {name: png(i) for i, name in enumerate(NAMES)}
  for name, data in files.items():
    (root / "set" / name).parent.mkdir(parents=True, exist_ok=True)
    (root / "set" / name).write_bytes(data)
  strays = {"__MACOSX/owl/._0.png": b"x", "owl/.DS_Store": b"x", "owl/notes.txt": b"x", "tit/": b""}
  pack(root / "stored.zip", {**strays, **files}, zipfile.ZIP_STORED)
  pack(root / "deflated.zip", {**strays, **files})
  return root


@pytest.mark.parametrize("kind", ["stored", "deflated"])
@pytest.mark.parametrize("split", ["all", "train", "heldout"])
def test_an_archive_is_the_folder_that_it_holds(birds, kind, split):
  folder = sources.open_source(config(birds / "set", holdout=3), split)
  packed = sources.open_source(config(birds / f"{kind}.zip", holdout=3), split)
  assert packed.fingerprint == folder.fingerprint
  assert packed.classes == folder.classes
  for a, b in zip(folder, packed, strict=True):
    np.testing.assert_equal(a, b)
  assert packed.short_side(0) == folder.short_side(0) == 8
  assert packed.skipped == []


@pytest.mark.parametrize("kind", ["stored", "deflated"])
def test_threads_may_read_one_archive(birds, kind):
  store = zips.Zip(str(birds / f"{kind}.zip"))
  want = {name: (birds / "set" / name).read_bytes() for name in NAMES}
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    got = list(pool.map(store.read, NAMES * 50))
  assert got == [want[name] for name in NAMES * 50]


def test_a_folder_packed_whole_names_no_class(tmp_path):
  path = pack(tmp_path / "Birds.ZIP", {"Birds/owl/1.png": png(), "Birds/tit/1.png": png()})
  assert sources.open_source(config(path)).classes.levels == (("owl", "tit"), ("all",))
  path = pack(tmp_path / "other.zip", {"Birds/owl/1.png": png(), "Birds/tit/1.png": png()})
  assert sources.open_source(config(path)).classes.levels == (("owl", "tit"), ("Birds",))


def test_splits_in_an_archive(tmp_path):
  path = pack(tmp_path / "a.zip", {f"a/{s}/owl/1.png": png() for s in ("train", "val", "test")})
  assert sources.open_source(config(path), "heldout").name(0) == "a/val/owl/1.png"
  assert len(sources.open_source(config(path), "all")) == 2
  assert len(sources.open_source(config(path, split="test"), "train")) == 1


def test_bytes_before_the_archive_do_no_harm(tmp_path):
  path = pack(tmp_path / "a.zip", {"owl/1.png": png(7)})
  path.write_bytes(b"#!/bin/sh\n" * 9 + path.read_bytes())
  assert sources.open_source(config(path))[0]["image"][0, 0, 0] == 7


def linked(name, target, mode):
  info = zipfile.ZipInfo(name)
  info.external_attr = mode << 16
  return info, target


def lying(path, name, **fields):
  """An archive of two images whose list of members is changed for one of them."""
  pack(path, {"owl/good.png": png(), name: png(1)})
  raw = bytearray(path.read_bytes())
  at = raw.rindex(b"PK\1\2", 0, raw.rindex(name.encode()))
  places = dict(flags=(8, "H"), method=(10, "H"), crc=(16, "I"), packed=(20, "I"), size=(24, "I"))
  for field, value in fields.items():
    offset, kind = places[field]
    struct.pack_into(f"<{kind}", raw, at + offset, value)
  path.write_bytes(raw)
  return path


BROKEN = {  # kind -> how it is made, what is said
  "symlink out": (lambda p: pack(p, [linked("owl/bad.png", "../../x.png", 0o120777)]), "a link"),
  "device": (lambda p: pack(p, [linked("owl/bad.png", b"", 0o020666)]), "a device"),
  "encrypted": (lambda p: lying(p, "owl/bad.png", flags=1), "encrypted"),
  "bomb": (lambda p: pack(p, {"owl/bad.png": bytes(2**21)}), "times as many"),
  "huge claim": (lambda p: lying(p, "owl/bad.png", size=2**31), "2,147,483,648 bytes"),
  "says too little": (lambda p: lying(p, "owl/bad.png", size=3), "not those"),
  "says too much": (lambda p: lying(p, "owl/bad.png", size=999), "not those"),
  "other checksum": (lambda p: lying(p, "owl/bad.png", crc=1), "not those"),
  "cut short": (lambda p: lying(p, "owl/bad.png", packed=9), "not those"),
  "other method": (lambda p: lying(p, "owl/bad.png", method=0), "disagree"),
  "bzip2": (lambda p: pack(p, {"owl/bad.png": png()}, zipfile.ZIP_BZIP2), "method 12"),
  "damaged": (lambda p: damaged(p), "cannot be unpacked"),
}


def damaged(path):
  pack(path, {"owl/bad.png": png()})
  raw = bytearray(path.read_bytes())
  at = raw.index(b"bad.png") + len("bad.png")
  raw[at : at + 4] = b"\xff" * 4
  path.write_bytes(raw)
  return path


@pytest.mark.parametrize("kind", BROKEN)
def test_a_member_that_cannot_be_trusted_is_a_broken_image(tmp_path, kind):
  make, reason = BROKEN[kind]
  path = make(tmp_path / "a.zip")
  before = sorted(os.listdir(tmp_path))
  store = zips.Zip(str(path))
  with pytest.raises(BrokenImage, match=reason):
    store.read("owl/bad.png")
  source = sources.open_source(config(path))
  bad = [source.name(i) for i in range(len(source))].index("owl/bad.png")
  if len(source) == 2:
    assert source[bad]["index"] == 1 - bad
    assert source.skipped == ["owl/bad.png"]
  else:
    with pytest.raises(UserError, match="none of the 1 images"):
      source[bad]
  assert source.short_side(bad) == 0
  assert sorted(os.listdir(tmp_path)) == before


def overlapping(path):
  """Two members of one archive that share the bytes of the first (a quoted header)."""
  pack(path, {"owl/1.png": png(1), "owl/2.png": png(2)}, zipfile.ZIP_STORED)
  raw = bytearray(path.read_bytes())
  first, second = raw.index(b"PK\1\2"), raw.rindex(b"PK\1\2")
  for at, start in ((first, 0), (second, 0)):
    struct.pack_into("<I", raw, at + 42, start)
  path.write_bytes(raw)
  return path


def cut(path, share):
  pack(path, {f"owl/{i}.png": png(i) for i in range(9)})
  path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
  return path


def headless(path):
  pack(path, {"owl/1.png": png()})
  path.write_bytes(path.read_bytes()[20:])
  return path


HOSTILE = {
  "..": (lambda p: pack(p, {"owl/../../x.png": png()}), "leads out of the archive"),
  "absolute": (lambda p: pack(p, {"/tmp/x.png": png()}), "leads out of the archive"),
  "drive": (lambda p: pack(p, {"C:/x.png": png()}), "leads out of the archive"),
  "backslash": (lambda p: pack(p, {"..\\x.png": png()}), "no path"),
  "duplicate": (lambda p: pack(p, [("a/1.png", png()), ("a/1.png", png(1))]), "twice"),
  "long part": (lambda p: pack(p, {f"a/{'x' * 300}.png": png()}), "longer than 255"),
  "long name": (lambda p: pack(p, {"a/" * 2500 + "x.png": png()}), "or 4096 in all"),
  "overlap": (overlapping, "overlap"),
  "truncated": (lambda p: cut(p, 0.7), "cannot be read as a zip archive"),
  "headless": (headless, "its beginning is missing"),
  "cut list": (lambda p: cut(p, 0.97), "cannot be read as a zip archive"),
  "empty": (lambda p: p.write_bytes(b"") or p, "cannot be read as a zip archive"),
  "no image": (lambda p: pack(p, {"a/notes.txt": b"x"}), "holds no image"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_refused_by_name(tmp_path, kind):
  make, reason = HOSTILE[kind]
  path = make(tmp_path / "a.zip")
  with pytest.raises(UserError, match=reason) as told:
    sources.open_source(config(path))
  assert "a.zip" in str(told.value)
  assert len(str(told.value)) < 400
  assert os.listdir(tmp_path) == ["a.zip"]


def test_too_many_members(tmp_path, monkeypatch):
  monkeypatch.setattr(archives, "MAX_MEMBERS", 2)
  path = pack(tmp_path / "a.zip", {f"a/{i}.png": png(i) for i in range(3)})
  with pytest.raises(UserError, match="more than 2 members"):
    zips.Zip(str(path))


@pytest.mark.parametrize("ending", ["tar.gz", "TGZ", "tar.xz", "7z", "rar", "zst"])
def test_an_archive_compressed_whole_is_told_to_be_unpacked(tmp_path, ending):
  path = tmp_path / f"a.{ending}"
  path.write_bytes(zlib.compress(b"x"))
  with pytest.raises(UserError, match=r"compressed as a whole, .*unpack it"):
    sources.open_source(config(path))


def test_cifar():
  if not CIFAR.exists():
    pytest.skip(f"{CIFAR} is absent: the photos are not part of the repository")
  source = sources.open_source(config(CIFAR, image_size=32, holdout=10), "heldout")
  assert source.classes.sizes == (10, 2)
  np.testing.assert_array_equal(np.bincount(source.labels), 500)
  with zipfile.ZipFile(CIFAR) as archive:
    for i in range(0, 5000, 500):
      name = source.name(i)
      assert name.startswith(source.classes.full_name(source.labels[i]))
      want = np.asarray(Image.open(archive.open(name)).convert("RGB"))
      np.testing.assert_array_equal(source[i]["image"], want)
