"""A run's files as a page needs them: what is missing or torn is noted, and never raises."""

import base64
import io
import json
import math
import pathlib
import re
import warnings
from typing import NamedTuple

_DAMAGE = (OSError, ValueError, RecursionError)


class Picture(NamedTuple):
  """A PNG as it stands in a page.

  Attributes:
    title: what it shows.
    uri: "data:image/png;base64,...".
    width, height: pixels.
  """

  title: str
  uri: str
  width: int
  height: int


class Files:
  """Reads files below a folder.

  Attributes:
    notes: what could not be read and why, one line each.
    newest: when the newest of the files was written, seconds since 1970; 0 before the first.
  """

  def __init__(self, root):
    self.root = pathlib.Path(root)
    self.notes: list[str] = []
    self.newest = 0.0

  def note(self, path: pathlib.Path, why) -> None:
    """Adds a line about a file."""
    self.notes.append(f"{path.relative_to(self.root)}: {why}")

  def bytes(self, path: pathlib.Path, needed: bool = True) -> bytes | None:
    """A file; None and a note where it cannot be read, no note where it need not be there."""
    try:
      data = path.read_bytes()
      self.newest = max(self.newest, path.stat().st_mtime)
      return data
    except FileNotFoundError:
      if needed:
        self.note(path, "is missing")
    except OSError as error:
      self.note(path, f"cannot be read ({error.strerror})")
    return None

  def text(self, path: pathlib.Path, needed: bool = True) -> str:
    """A file as UTF-8, broken letters marked; "" where there is none."""
    return (self.bytes(path, needed) or b"").decode("utf-8", "replace")

  def json(self, path: pathlib.Path, needed: bool = True) -> dict:
    """A file of one object; {} where it is another thing."""
    data = self.bytes(path, needed)
    if data is None:
      return {}
    try:
      found = json.loads(data)
      if isinstance(found, dict):
        return found
      self.note(path, "is no JSON object")
    except _DAMAGE as error:
      self.note(path, f"is no JSON ({error})")
    return {}

  def metrics(self, path: pathlib.Path) -> dict[str, dict[int, float]]:
    """Values by name and step of a metrics.jsonl; of a step told twice, the later line."""
    found, torn = {}, 0
    for line in self.text(path).splitlines():
      try:
        told = json.loads(line)
        step = told.pop("step")
        if isinstance(step, bool) or not isinstance(step, int):
          raise ValueError(step)
        for name, value in told.items():
          if is_number(value):
            found.setdefault(name, {})[step] = float(value)
          else:  # not finite when it was written
            found.setdefault(name, {}).pop(step, None)
      except (*_DAMAGE, KeyError, TypeError, AttributeError):
        torn += 1
    if torn:
      self.note(path, f"{torn} torn line{'s' * (torn > 1)} left out")
    return {name: dict(sorted(values.items())) for name, values in found.items()}

  def picture(self, path: pathlib.Path, title: str) -> Picture | None:
    """A PNG, or None and a note."""
    from PIL import Image

    data = self.bytes(path)
    if data is None:
      return None
    try:
      with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
          size = image.size
          image.verify()
    except (*_DAMAGE, SyntaxError, Warning, Image.DecompressionBombError) as error:
      reason = "is too large" if "exceeds limit" in str(error) else "is torn or no PNG"
      self.note(path, reason)
      return None
    uri = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
    return Picture(title, uri, *size)

  def folders(self, path: pathlib.Path) -> list[pathlib.Path]:
    """Folders in a folder, sorted; none where it is not there."""
    try:
      return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    except FileNotFoundError:
      return []
    except OSError as error:
      self.note(path, f"cannot be read ({error.strerror})")
      return []


def is_number(value) -> bool:
  """Whether a value of JSON is a finite number."""
  return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def numbered(folder: pathlib.Path, pattern: str) -> dict[int, pathlib.Path]:
  """Paths in a folder by the number in their names, ascending; `pattern` has one group."""
  try:
    found = [(re.fullmatch(pattern, path.name), path) for path in sorted(folder.iterdir())]
  except OSError:
    return {}
  return dict(sorted((int(match.group(1)), path) for match, path in found if match))
