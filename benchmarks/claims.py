"""Work that several commands on one machine share: each takes what no other is at."""

import contextlib
import fcntl
import pathlib


class Busy(Exception):  # no error: the work is being done
  """Another command is at it."""


@contextlib.contextmanager
def claimed(path: pathlib.Path):
  """Holds a lock file while the work is done; a command that ends, however, lets go of it.

  Raises:
    Busy: another command holds it.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, "w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      raise Busy(path.name) from e
    yield
