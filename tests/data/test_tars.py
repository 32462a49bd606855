"""Tar archives: what a folder holds, read in place by threads; hostile ones write nothing."""

import concurrent.futures
import io
import os
import tarfile
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dit_jax.core.errors import UserError
from dit_jax.data import archives, sources, tars
from dit_jax.data.images import BrokenImage

NAMES = [f"{c}/{i}.png" for c in ("owl/barn", "owl/鳥", "tit/blue") for i in range(4)]


def config(path, **changes):
  values = dict(source="folder", path=str(path), image_size=8, holdout=0, only=())
  return SimpleNamespace(**{**values, **changes})


def png(value=0):
  buffer = io.BytesIO()
  Image.new("RGB", (10, 8), (value, 100, 200)).save(buffer, "PNG")
  return buffer.getvalue()


def pack(path, members, kind=tarfile.PAX_FORMAT):
  """Members are (name, bytes) or a TarInfo."""
  with tarfile.open(path, "w", format=kind) as archive:
    for member in members:
      if isinstance(member, tarfile.TarInfo):
        archive.addfile(member)
        continue
      info = tarfile.TarInfo(member[0])
      info.size = len(member[1])
      archive.addfile(info, io.BytesIO(member[1]))
  return path


def special(kind, name="owl/bad.png", target="../../x.png"):
  info = tarfile.TarInfo(name)
  info.type, info.linkname = kind, target
  return info


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
@pytest.mark.parametrize("prefix", ["", "./"])
def test_an_archive_is_the_folder_that_it_holds(tmp_path, kind, prefix):
  root = tmp_path / "set"
  files = [(name, png(i)) for i, name in enumerate([*NAMES, "tit/blue/" + "long" * 40 + ".png"])]
  for name, data in files:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(data)
  strays = [("._x.png", b"x"), ("notes.txt", b"x"), special(tarfile.DIRTYPE, f"{prefix}owl")]
  packed = [(prefix + name, data) for name, data in files]
  path = pack(tmp_path / "a.tar", [*strays, *packed], kind)
  folder = sources.open_source(config(root, holdout=3), "train")
  tar = sources.open_source(config(path, holdout=3), "train")
  assert tar.fingerprint == folder.fingerprint
  for a, b in zip(folder, tar, strict=True):
    np.testing.assert_equal(a, b)


def test_threads_may_read_one_archive(tmp_path):
  want = {name: png(i) for i, name in enumerate(NAMES)}
  store = tars.Tar(str(pack(tmp_path / "a.tar", want.items())))
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert list(pool.map(store.read, NAMES * 50)) == [want[name] for name in NAMES * 50]


LINKS = {
  "symlink": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "character device": tarfile.CHRTYPE,
  "block device": tarfile.BLKTYPE, "fifo": tarfile.FIFOTYPE,
}  # fmt: skip


@pytest.mark.parametrize("kind", LINKS)
def test_what_is_no_plain_file_is_a_broken_image(tmp_path, kind):
  path = pack(tmp_path / "a.tar", [("owl/good.png", png(3)), special(LINKS[kind])])
  source = sources.open_source(config(path))
  assert source[0]["image"][0, 0, 0] == 3
  assert (source.name(0), source.skipped) == ("owl/bad.png", ["owl/bad.png"])
  assert os.listdir(tmp_path) == ["a.tar"]


def test_a_member_that_is_too_large_is_a_broken_image(tmp_path, monkeypatch):
  path = pack(tmp_path / "a.tar", [("owl/bad.png", png())])
  monkeypatch.setattr(archives, "MAX_BYTES", 9)
  with pytest.raises(BrokenImage, match="more than 9"):
    tars.Tar(str(path)).read("owl/bad.png")


def changed(path, change):
  """An archive of nine images after its bytes went through `change`."""
  pack(path, [(f"owl/{i}.png", png(i)) for i in range(9)], tarfile.USTAR_FORMAT)
  path.write_bytes(change(path.read_bytes()))
  return path


def with_size(raw, field):
  """The second header claims another size, with a checksum that holds."""
  header = bytearray(raw[1024:1536])
  header[124:136] = field
  header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
  return raw[:1024] + header + raw[1536:]


def chained(path):
  """Every member says that the name of the next follows."""
  link = tarfile.TarInfo("././@LongLink")
  link.type, link.size = tarfile.GNUTYPE_LONGNAME, 2
  path.write_bytes((link.tobuf(tarfile.GNU_FORMAT) + b"x".ljust(512, b"\0")) * 1500)
  return path


HOSTILE = {
  "..": (lambda p: pack(p, [("owl/../../x.png", png())]), "leads out of the archive"),
  "absolute": (lambda p: pack(p, [("/tmp/x.png", png())]), "leads out of the archive"),
  "duplicate": (lambda p: pack(p, [("a/1.png", png()), ("./a/1.png", png())]), "twice"),
  "long part": (lambda p: pack(p, [(f"a/{'x' * 300}.png", png())]), "longer than 255"),
  "long name": (lambda p: pack(p, [("a/" * 2500 + "x.png", png())]), "or 4096 in all"),
  "a link's name": (lambda p: pack(p, [special(tarfile.SYMTYPE, "../x.png")]), "leads out"),
  "truncated": (lambda p: changed(p, lambda raw: raw[:5200]), "uncompressed tar"),
  "truncated header": (lambda p: changed(p, lambda raw: raw[:5300]), "uncompressed tar"),
  "damaged header": (
    lambda p: changed(p, lambda raw: raw[:1024] + b"\xff" * 512 + raw[1536:]),
    "no header at byte 1,024",
  ),
  "huge claim": (lambda p: changed(p, lambda raw: with_size(raw, b"77777777777\0")), "ends within"),
  "negative size": (
    lambda p: changed(p, lambda raw: with_size(raw, b"\xff" * 10 + b"\xfc\x00")),
    "uncompressed tar",
  ),
  "chain of names": (chained, "uncompressed tar"),
  "no tar": (lambda p: p.write_bytes(b"x" * 2000) and p, "uncompressed tar"),
  "empty": (lambda p: p.write_bytes(b"") or p, "uncompressed tar"),
  "no image": (lambda p: pack(p, [("a/notes.txt", b"x")]), "holds no image"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_refused_by_name(tmp_path, kind):
  make, reason = HOSTILE[kind]
  path = make(tmp_path / "a.tar")
  start = time.monotonic()
  with pytest.raises(UserError, match=reason) as told:
    sources.open_source(config(path))
  assert time.monotonic() - start < 10
  assert "a.tar" in str(told.value)
  assert os.listdir(tmp_path) == ["a.tar"]
