"""Files that are there whole or not at all."""

import contextlib
import pathlib
import uuid
from collections.abc import Iterator


@contextlib.contextmanager
def in_one_move(path) -> Iterator[pathlib.Path]:
  """A path beside `path`, in the same folder, which takes its place when the block ends well.

  Folders on the way are made. No other command, process or host is given the same path; a block
  that raises leaves none, a killed one a file `NAME.*.tmp`.

  Raises:
    OSError: the file or its folder cannot be written.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
  try:
    yield temporary
    temporary.replace(path)
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink()


def write_text(path, text: str, errors: str = "strict") -> None:
  """Writes a file as UTF-8, in one move.

  Args:
    path: of the file.
    text: that it holds.
    errors: what becomes of half a surrogate pair, as `str.encode` takes it.

  Raises:
    OSError: the file or its folder cannot be written.
  """
  with in_one_move(path) as temporary:
    temporary.write_text(text, encoding="utf-8", errors=errors)
