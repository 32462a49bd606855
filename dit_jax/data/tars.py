"""Tar archives without compression, read in place: a list of offsets, and one `pread` an image."""

import tarfile

from dit_jax.core.errors import UserError
from dit_jax.data import archives
from dit_jax.data.hierarchy import printable
from dit_jax.data.images import BrokenImage


class Tar:
  """A store over the images of a tar archive.

  Attributes:
    sizes: bytes of every image, by its name; 0 for what is no plain file.
    told: names of members that may tell their classes.
  """

  def __init__(self, path: str):
    """Reads every header once. Raises UserError for a damaged or hostile archive."""
    self.where = printable(path)
    try:
      self._file = archives.File(path)
      members = list(self._headers())
      self.told = [archives.clean(name) for name, _ in members if archives.tells(name)]
    except (OSError, ValueError, OverflowError, RecursionError, BrokenImage, tarfile.TarError) as e:
      raise UserError(
        f"data.path {self.where!r} cannot be read as an uncompressed tar archive ({e}); if it was "
        "downloaded or copied, do so again."
      ) from e
    kept = archives.named(self.where, members)
    self._places = {clean: place for _, clean, place in kept}
    self.sizes = {name: size for name, (_, size, _) in self._places.items()}

  def _headers(self):
    """Pairs of a name and its (offset, size, what is wrong with it)."""
    last = -1
    with self._file.stream() as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
      for member in archive:
        if member.isdir():
          continue
        if member.size < 0 or member.offset_data <= last:
          raise tarfile.ReadError(f"{printable(member.name[:80])!r} leads backwards")
        last = member.offset_data
        plain = member.isreg() and not member.issparse()
        if plain and member.offset_data + member.size > self._file.num_bytes:
          raise tarfile.ReadError(f"it ends within {printable(member.name[:80])!r}")
        kind = "" if plain else "it is a link or a device; links in archives are not followed"
        yield member.name, (member.offset_data, member.size if plain else 0, kind)
        archive.members.clear()  # it would keep every header
      # The library takes a damaged header for the end, which is a block of zeros or none.
      if self._file.pread(tarfile.BLOCKSIZE, archive.offset).strip(b"\0"):
        raise tarfile.ReadError(f"there is no header at byte {archive.offset:,}")

  def read(self, name: str) -> bytes:
    """The bytes of a member.

    Raises:
      BrokenImage: no plain file, or too large.
    """
    if name not in self._places:
      raise BrokenImage("it is not in the archive")
    offset, size, wrong = self._places[name]
    if wrong:
      raise BrokenImage(wrong)
    archives.refuse_large(size)
    data = self._file.pread(size, offset)
    if len(data) != size:
      raise BrokenImage(f"the archive ends {size - len(data):,} bytes before it does")
    return data
