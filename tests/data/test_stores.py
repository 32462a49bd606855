"""What a config names is opened by its kind; every kind reads from bytes or a path."""

import io
import os
import struct
import tarfile
import types
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from dit_jax.core.errors import UserError
from dit_jax.data import sources, stores


def config(path="", **changes):
  return types.SimpleNamespace(**{"source": "folder", "path": str(path), **changes})


def test_a_folder_is_a_store(tmp_path):
  (tmp_path / "owl").mkdir()
  (tmp_path / "owl" / "1.png").write_bytes(b"x")
  store, files, empty = stores.open_store(config(tmp_path))
  assert isinstance(store, stores.Store)
  assert store.read(files[0].name) == str(tmp_path / "owl" / "1.png")
  assert (store.where, empty) == (str(tmp_path), [])


def test_an_unknown_source_is_told_the_known_ones():
  with pytest.raises(UserError, match="'imagenet' is unknown; use 'folder'"):
    stores.open_store(config(source="imagenet"))


def encoded(image, kind="PNG", **options):
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  return buffer.getvalue()


def bomb():
  """A PNG whose header claims 30,000 x 30,000."""
  raw = bytearray(encoded(Image.new("RGB", (8, 8))))
  struct.pack_into(">II", raw, 16, 30_000, 30_000)
  struct.pack_into(">I", raw, 29, zlib.crc32(raw[12:29]))
  return bytes(raw)


RED = Image.new("RGB", (12, 10), (200, 10, 10))
TURNED = Image.Exif()
TURNED[0x0112] = 6
KINDS = {  # the bytes of an image, and whether it can be read
  "truncated.jpg": (encoded(Image.effect_noise((90, 90), 99), "JPEG")[:-900], False),
  "empty.jpg": (b"", False),
  "text.jpg": (b"this is no image", False),
  "bomb.png": (bomb(), False),
  "cmyk.jpg": (encoded(RED.convert("CMYK"), "JPEG"), True),
  "sixteen.png": (encoded(Image.fromarray(np.full((10, 12), 2**15, np.uint16))), True),
  "palette.png": (encoded(RED.convert("P")), True),
  "moving.gif": (
    encoded(RED, "GIF", save_all=True, append_images=[Image.new("RGB", (12, 10))]),
    True,
  ),
  "turned.jpg": (encoded(RED, "JPEG", exif=TURNED), True),
  "one.png": (encoded(Image.new("RGB", (1, 1), (9, 9, 9))), True),
}


def test_every_kind_of_image_fares_alike_in_a_folder_and_in_archives(tmp_path):
  """Ten kinds, and a link that leads nowhere; tests may be run by root, whom all files let in."""
  root = tmp_path / "set" / "a"
  root.mkdir(parents=True)
  for name, (data, _) in KINDS.items():
    (root / name).write_bytes(data)
  os.symlink("nowhere.png", root / "link.png")
  with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
    for name, (data, _) in KINDS.items():
      archive.writestr(f"a/{name}", data)
    link = zipfile.ZipInfo("a/link.png")
    link.external_attr = 0o120777 << 16
    archive.writestr(link, "nowhere.png")
  with tarfile.open(tmp_path / "set.tar", "w") as archive:
    archive.add(root, "a")
  bad = sorted(f"a/{name}" for name, (_, good) in KINDS.items() if not good)
  want = None
  for name in ("set", "set.zip", "set.tar"):
    data = config(tmp_path / name, image_size=8, holdout=0, only=())
    source = sources.open_source(data, "all")
    got = list(source)
    assert source.skipped == sorted([*bad, "a/link.png"])
    want = want or got
    for a, b in zip(got, want, strict=True):
      np.testing.assert_equal(a, b)


@pytest.mark.parametrize("name", ["dataset.json", "metadata.csv", "metadata.jsonl"])
@pytest.mark.parametrize("prefix", ["", "./", "set/"])
def test_classes_that_an_archive_tells_are_not_passed_over(tmp_path, name, prefix):
  zipped, tarred = tmp_path / "set.zip", tmp_path / "set.tar"
  with zipfile.ZipFile(zipped, "w") as pack, tarfile.open(tarred, "w") as tar:
    for member in (f"{prefix}00000/1.png", prefix + name):
      pack.writestr(member, b"{}")
      tar.addfile(tarfile.TarInfo(member))
  for path in (tarred, zipped)[: 1 if name == "dataset.json" else 2]:
    with pytest.raises(UserError, match=f"{name}', which names the classes .* unpack it"):
      stores.open_path(str(path), config())


def test_a_file_of_no_kind(tmp_path):
  (tmp_path / "a.npz").write_bytes(b"x")
  with pytest.raises(UserError, match=r"no kind that holds images.*\.zip, \.tar, \.csv"):
    stores.open_path(str(tmp_path / "a.npz"), config())
  with pytest.raises(UserError, match="does not exist"):
    stores.open_path(str(tmp_path / "nothing.zip"), config())


@pytest.mark.parametrize("field", ["split", "label_key", "super_key"])
def test_what_a_set_does_not_have_is_not_asked_for_in_vain(tmp_path, field):
  (tmp_path / "owl").mkdir()
  (tmp_path / "owl" / "1.png").write_bytes(b"x")
  with pytest.raises(UserError, match=f"data.{field}='kind'"):
    stores.open_store(config(tmp_path, **{field: "kind"}))
  with pytest.raises(UserError, match=f"data.{field}='kind' asks for what the set of Twemoji"):
    stores.open_store(config(source="twemoji", **{field: "kind"}))


@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_an_archive_is_listed_once_and_anew_when_it_is_another(tmp_path, ending):
  path = tmp_path / f"a.{ending}"

  def write(*names):
    new = tmp_path / "new"  # moved in its place, as whoever makes it anew should
    if ending == "zip":
      with zipfile.ZipFile(new, "w") as archive:
        for name in names:
          archive.writestr(name, encoded(RED))
    else:
      with tarfile.open(new, "w") as archive:
        for name in names:
          archive.addfile(tarfile.TarInfo(name))
    os.replace(new, path)
    return stores.open_path(str(path), config())

  first, files, _ = write("a/1.png", "a/2.png")
  assert stores.open_path(str(path), config())[0] is first
  second, others, _ = write("a/1.png")
  assert (len(files), len(others), second is first) == (2, 1, False)
  first.read("a/2.png")  # a run that has begun goes on with what it opened
