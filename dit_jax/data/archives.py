"""What zip and tar have in common: which members count, and what no archive may say of them.

Nothing is ever written: a member is read into memory. An archive that points outside of itself, or
that says two things of one name, is refused whole; a single member that cannot be read safely (a
link, a device, encrypted, too large) is a broken image, and is skipped by its name.
"""

import os
import re
import weakref
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from dit_jax.core.errors import UserError
from dit_jax.data import edm, layout, lists, splits
from dit_jax.data.hierarchy import printable
from dit_jax.data.images import BrokenImage, ImageFile

MAX_BYTES = 2**28  # of a member: three bytes for each of images.MAX_PIXELS, and its file's header
MAX_MEMBERS = 20_000_000
MAX_PART, MAX_NAME = 255, 4096  # characters: what a file system would take
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
OTHERS = (".7z", ".rar", ".gz", ".bz2", ".xz", ".zst")


class File:
  """The bytes of a file by their offset, for any thread; closed with the last that refers to it."""

  def __init__(self, path: str):
    self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    weakref.finalize(self, os.close, self._fd)
    self.num_bytes = os.fstat(self._fd).st_size

  def pread(self, size: int, offset: int) -> bytes:
    """Up to `size` bytes, fewer at the end. Raises BrokenImage where the disk refuses them."""
    try:
      return os.pread(self._fd, size, offset)
    except OSError as e:
      raise BrokenImage(f"it cannot be read ({e.strerror})") from e

  def stream(self) -> BinaryIO:
    """The same file from its start, to be read by one thread and closed."""
    os.lseek(self._fd, 0, os.SEEK_SET)
    return open(os.dup(self._fd), "rb")


def refuse_compressed(path: str) -> None:
  """Raises UserError for archives whose members cannot be reached one by one."""
  if path.lower().endswith((*COMPRESSED, *OTHERS)):
    raise UserError(
      f"data.path {printable(path)!r} is compressed as a whole, so that one image cannot be read "
      "without those before it; unpack it, and give the folder, a .zip or an uncompressed .tar."
    )


def named(where: str, members: Iterable[tuple[str, object]]) -> Iterator[tuple[str, str, object]]:
  """The members that are images, as (name, name without a leading "./", member).

  Raises:
    UserError: a name that leads outside, is too long, or occurs twice; too many members.
  """
  seen = set()
  for count, (name, member) in enumerate(members):
    if count >= MAX_MEMBERS:
      raise UserError(f"{where!r} has more than {MAX_MEMBERS:,} members; split it.")
    short = clean(name)
    _refuse_hostile(where, short)
    parts = short.split("/")
    if any(map(layout.is_stray, parts)) or not layout.is_image(short):
      continue
    if short in seen:
      raise UserError(f"{where!r} holds {printable(short)!r} twice; pack it anew, each image once.")
    seen.add(short)
    yield name, short, member


def _refuse_hostile(where: str, name: str) -> None:
  parts = name.rstrip("/").split("/")
  outside = ".." in parts or name.startswith("/") or re.match(r"[A-Za-z]:[\\/]", name)
  if outside or "\\" in name or "\0" in name:
    reason = "leads out of the archive" if outside else "is no path"
  elif len(name) > MAX_NAME or max(map(len, parts)) > MAX_PART:
    reason = f"is longer than {MAX_PART} characters a folder or {MAX_NAME} in all"
  else:
    return
  shown = printable(name[:80]) + "..." * (len(name) > 80)
  raise UserError(f"{where!r} has a member {shown!r}, whose name {reason}; do not trust it.")


def refuse_large(size: int) -> None:
  """Raises BrokenImage for a member that says it has more than MAX_BYTES."""
  if size > MAX_BYTES:
    raise BrokenImage(f"it claims {size:,} bytes, more than {MAX_BYTES:,}")


def clean(name: str) -> str:
  """A member's name without a leading "./"."""
  return name.removeprefix("./")


def tells(name: str) -> bool:
  """Whether a member of this name may tell the classes of the images beside it."""
  return name.rsplit("/", 1)[-1] in (edm.NAME, *lists.METADATA)


def refuse_told(where: str, told: Iterable[str], below: str, known: str = "") -> None:
  """Raises UserError for a file that tells the classes and is not read in an archive.

  Args:
    where: the archive, for messages.
    told: the names of such files, by `tells`.
    below: the top folder that does not count, by `wrapper`.
    known: the one that is read.
  """
  for name in sorted(told):
    folder, _, base = name.removeprefix(below).rpartition("/")
    if base != known and (not folder or (folder in splits.NAMES and base in lists.METADATA)):
      raise UserError(
        f"{where!r} holds {printable(name)!r}, which names the classes and is not read in such an "
        "archive; unpack it, and give the folder."
      )


def wrapper(path: str, names: Iterable[str]) -> str:
  """The top folder that packing a folder of the archive's own name leaves, as "birds/", or ""."""
  stem = re.sub(r"\.(zip|tar)$", "", path.replace("\\", "/").rsplit("/", 1)[-1], flags=re.I)
  return f"{stem}/" if all(name.startswith(f"{stem}/") for name in names) else ""


def arrange(path: str, sizes: dict[str, int], split: str) -> tuple[list[ImageFile], list[str]]:
  """The images of an archive under their classes (layout.arrange)."""
  files = [ImageFile(name, size) for name, size in sizes.items()]
  return layout.arrange(printable(path), files, split, wrapper(path, sizes))
