"""Zip archives, read in place: PKWARE's APPNOTE 6.3.10, methods 0 (stored) and 8 (deflated).

The list of members is read by the standard library; the members are read here, each by one `pread`
at its own offset, so that threads share nothing that moves.
"""

import stat
import struct
import zipfile
import zlib

from dit_jax.core.errors import UserError
from dit_jax.data import archives
from dit_jax.data.hierarchy import printable
from dit_jax.data.images import BrokenImage

_MAX_RATIO = 200  # photographs are packed already; deflate reaches a thousand on zeros
_FREE = 2**20  # bytes below which the ratio does not matter
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_LOCAL = struct.Struct("<4sHHHHHIIIHH")  # APPNOTE 4.3.7


class Zip:
  """A store over the images of a zip archive.

  Attributes:
    sizes: bytes of every image, by its name.
    told: members that may tell their classes, by their names.
  """

  def __init__(self, path: str):
    """Raises UserError for an archive that is damaged or hostile (data.archives)."""
    self.where = printable(path)
    try:
      self._file = archives.File(path)
      with self._file.stream() as stream, zipfile.ZipFile(stream) as archive:
        infos, end = archive.infolist(), archive.start_dir
      if any(info.header_offset < 0 for info in infos):
        raise zipfile.BadZipFile("its beginning is missing")
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as e:
      raise UserError(
        f"data.path {self.where!r} cannot be read as a zip archive ({e}); if it was downloaded or "
        "copied, do so again."
      ) from e
    self._refuse_overlaps(infos, end)
    names = ((archives.clean(info.filename), info) for info in infos)
    self.told = {name: info for name, info in names if archives.tells(name)}
    kept = archives.named(self.where, ((i.filename, i) for i in infos if not i.is_dir()))
    self._members = {clean: info for _, clean, info in kept}
    self.sizes = {name: info.file_size for name, info in self._members.items()}

  def read(self, name: str) -> bytes:
    """The bytes of a member, whose length and checksum are as the archive says.

    Raises:
      BrokenImage: a link, encrypted, too large, packed by another method, or not as it should be.
    """
    if (info := self._members.get(name)) is None:
      raise BrokenImage("it is not in the archive")
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
      raise BrokenImage("it is a link or a device; links in archives are not followed")
    if info.flag_bits & _ENCRYPTED:
      raise BrokenImage("it is encrypted")
    data = self._unpacked(info, self._packed(info))
    if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
      raise BrokenImage("its bytes are not those that the archive lists")
    return data

  def text(self, name: str) -> str | None:
    """A member that tells classes, as UTF-8; None where there is none of that name."""
    if (info := self.told.get(name)) is None:
      return None
    try:
      return self._unpacked(info, self._packed(info)).decode("utf-8-sig")
    except (BrokenImage, UnicodeDecodeError) as e:
      raise UserError(f"{name} in {self.where!r} cannot be read ({e}); pack it anew.") from e

  def _packed(self, info: zipfile.ZipInfo) -> bytes:
    archives.refuse_large(info.file_size)
    if info.file_size > max(_FREE, _MAX_RATIO * info.compress_size):
      raise BrokenImage(
        f"{info.compress_size:,} bytes claim to unpack to {info.file_size:,}, more than "
        f"{_MAX_RATIO} times as many"
      )
    header = self._file.pread(_LOCAL.size, info.header_offset)
    if len(header) < _LOCAL.size or not header.startswith(b"PK\3\4"):
      raise BrokenImage("there is no member where the archive lists one")
    _, _, flags, method, *_, name_length, extra_length = _LOCAL.unpack(header)
    if flags & _ENCRYPTED or method != info.compress_type:
      raise BrokenImage("its own header and the archive's list disagree")
    data = info.header_offset + _LOCAL.size + name_length + extra_length
    return self._file.pread(min(info.compress_size, archives.MAX_BYTES), data)

  def _unpacked(self, info: zipfile.ZipInfo, data: bytes) -> bytes:
    if info.compress_type == zipfile.ZIP_STORED:
      return data
    if info.compress_type != zipfile.ZIP_DEFLATED:
      raise BrokenImage(f"it is packed by method {info.compress_type}; pack it deflated or stored")
    try:  # one byte more than it says tells that it is too long
      return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, info.file_size + 1)
    except zlib.error as e:
      raise BrokenImage(f"it cannot be unpacked ({e})") from e

  def _refuse_overlaps(self, infos: list[zipfile.ZipInfo], end: int) -> None:
    """Members that share bytes make a small file unpack to any size."""
    ordered = sorted(infos, key=lambda info: info.header_offset)
    starts = [*(info.header_offset for info in ordered[1:]), end]
    for info, start in zip(ordered, starts, strict=False):
      if info.header_offset + _LOCAL.size + info.compress_size > start:
        raise UserError(
          f"members of {self.where!r} overlap, {printable(info.filename[:80])!r} and the next; no "
          "packer makes such an archive, do not trust it."
        )
