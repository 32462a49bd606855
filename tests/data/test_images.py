"""Whatever a file holds, it becomes upright RGB or is named broken; nothing else comes out."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dit_jax.data import images
from dit_jax.data.images import BrokenImage, ImageFile, decode, order, short_side

Y, X = np.mgrid[:16, :24]
RGB = np.stack([10 * X, 10 * Y, np.full_like(X, 90)], -1).astype(np.uint8)


def saved(path, image, **options):
  image.save(path, **options)
  return str(path)


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "gif", "jpg"])
def test_reads_every_format(tmp_path, suffix):
  lossless = {"lossless": True} if suffix == "webp" else {}
  path = saved(tmp_path / f"x.{suffix}", Image.fromarray(RGB), **lossless)
  got = decode(path)
  assert got.mode == "RGB"
  tolerance = {"gif": 40, "jpg": 40}.get(suffix, 0)  # palette, compression
  np.testing.assert_allclose(np.asarray(got).astype(int), RGB, atol=tolerance)


def test_sixteen_bit_grey_keeps_its_tones(tmp_path):
  tones = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
  got = np.asarray(decode(saved(tmp_path / "x.png", Image.fromarray(tones))))
  np.testing.assert_array_equal(got, (tones // 256)[..., None].repeat(3, -1))


def test_cmyk_becomes_the_same_colours(tmp_path):
  path = saved(tmp_path / "x.jpg", Image.new("CMYK", (16, 16), (0, 255, 255, 0)), quality=100)
  np.testing.assert_allclose(np.asarray(decode(path))[8, 8], (255, 0, 0), atol=3)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA"])
def test_other_modes_become_rgb(tmp_path, mode):
  path = saved(tmp_path / "x.png", Image.fromarray(RGB).convert("L").convert(mode))
  got = decode(path)
  assert (got.mode, got.size) == ("RGB", (24, 16))


@pytest.mark.parametrize("kind", ["RGBA", "palette", "colour key"])
def test_transparency_lies_over_white(tmp_path, kind):
  if kind == "RGBA":
    image, options = Image.new("RGBA", (4, 4), (200, 0, 0, 0)), {}
  elif kind == "palette":
    image, options = Image.new("P", (4, 4), 0), {"transparency": 0}
    image.putpalette([200, 0, 0])
  else:
    image, options = Image.new("RGB", (4, 4), (200, 0, 0)), {"transparency": (200, 0, 0)}
  got = decode(saved(tmp_path / "x.png", image, **options))
  np.testing.assert_array_equal(np.asarray(got), 255)


def test_half_transparency_is_half_white(tmp_path):
  got = decode(saved(tmp_path / "x.png", Image.new("RGBA", (2, 2), (0, 0, 0, 51))))
  np.testing.assert_allclose(np.asarray(got), 204, atol=1)


def test_a_background_of_any_colour_lies_under_what_is_transparent(tmp_path):
  path = saved(tmp_path / "x.png", Image.new("RGBA", (2, 2), (0, 0, 0, 51)))
  got = np.asarray(decode(path, "#0a64ff"))[0, 0]
  np.testing.assert_allclose(got, (8, 80, 204), atol=1)
  opaque = saved(tmp_path / "y.png", Image.new("RGB", (2, 2), (1, 2, 3)))
  np.testing.assert_array_equal(np.asarray(decode(opaque, "#0a64ff"))[0, 0], (1, 2, 3))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(tmp_path, orientation):
  """Stored so that the tag turns it upright: every orientation decodes to the same picture."""
  turns = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[::-1],
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x.swapaxes(0, 1)[:, ::-1],
  }
  exif = Image.Exif()
  exif[0x0112] = orientation
  stored = Image.fromarray(np.ascontiguousarray(turns[orientation](RGB)))
  got = decode(saved(tmp_path / "x.png", stored, exif=exif))
  np.testing.assert_array_equal(np.asarray(got), RGB)


def test_an_animation_gives_its_first_frame(tmp_path):
  frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue", "lime")]
  path = saved(tmp_path / "x.gif", frames[0], save_all=True, append_images=frames[1:])
  np.testing.assert_array_equal(np.asarray(decode(path))[0, 0], (255, 0, 0))


def png_that_claims(width, height):
  """A PNG of some hundred bytes whose header claims any size."""

  def chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

  header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  data = zlib.compress(bytes(1000))
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg_bytes():
  buffer = io.BytesIO()
  Image.fromarray(np.tile(RGB, (8, 8, 1))).save(buffer, "JPEG")
  return buffer.getvalue()


BROKEN = {
  "empty": b"",
  "text": b"this is no image",
  "truncated": jpeg_bytes()[:-300],
  "header only": jpeg_bytes()[:20],
  "bomb": png_that_claims(30_000, 30_000),
  "tiff": b"II*\0" + bytes(100),  # a format we do not read
  "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_named_broken(tmp_path, kind):
  path = tmp_path / "x.jpg"
  path.write_bytes(BROKEN[kind])
  for data in (str(path), BROKEN[kind]):
    with pytest.raises(BrokenImage):
      decode(data)


def test_bytes_are_the_file_that_they_came_from(tmp_path):
  path = saved(tmp_path / "x.jpg", Image.fromarray(RGB))
  with open(path, "rb") as f:
    data = f.read()
  np.testing.assert_array_equal(np.asarray(decode(data)), np.asarray(decode(path)))
  assert short_side(data) == short_side(path) == 16
  assert short_side(b"no image") == 0


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(8_001, 10_000), (9_000, 9_950), (12_000, 12_000)])
def test_a_bomb_is_refused_before_a_pixel_is_decoded(tmp_path, size, monkeypatch):
  """Our cap lies below Pillow's warning and its error."""
  path = tmp_path / "x.png"
  path.write_bytes(png_that_claims(*size))
  monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded a bomb"))
  with pytest.raises(BrokenImage, match=f"{size[0]} x {size[1]} is more than 80,000,000 pixels"):
    decode(str(path))


def test_the_cap_itself_is_allowed(tmp_path, monkeypatch):
  monkeypatch.setattr(images, "MAX_PIXELS", RGB.shape[0] * RGB.shape[1])
  assert decode(saved(tmp_path / "x.png", Image.fromarray(RGB))).size == (24, 16)


def test_missing_dangling_and_folder_paths_are_broken(tmp_path):
  os.symlink(tmp_path / "nowhere.jpg", tmp_path / "link.jpg")
  for path in (tmp_path / "none.jpg", tmp_path / "link.jpg", tmp_path):
    with pytest.raises(BrokenImage):
      decode(str(path))


def test_order_is_by_class_before_name():
  files = [
    ImageFile("b/x.png", 1, "b", "x"),
    ImageFile("a/z/2.png", 1, "a", "z"),
    ImageFile("a b/0.png", 1, "a b", "q"),
    ImageFile("a/z/10.png", 1, "a", "z"),
  ]
  got = [f.name for f in sorted(files, key=order)]
  assert got == ["a/z/10.png", "a/z/2.png", "a b/0.png", "b/x.png"]
