"""A sha256 of every file of a checkpoint: array payloads carry no checksum of their own.

Without it a flipped bit restores silently wrong. Directories are pathlib or etils paths.
"""

import concurrent.futures
import hashlib
import json

NAME = "manifest.json"
# orbax stamps the commit time into it after the manifest is made; a damaged one fails to parse.
_UNSEALED = (NAME, "_CHECKPOINT_METADATA")
_CHUNK = 1 << 24  # bytes


def write(directory) -> None:
  """Seals a finished checkpoint directory."""
  sums = _sums(directory, _files(directory))
  (directory / NAME).write_text(json.dumps({"sha256": sums}, indent=1))


def sealed(directory) -> bool:
  """Whether the directory has a manifest at all."""
  return (directory / NAME).exists()


def problem(directory, parts: tuple[str, ...] = ()) -> str:
  """What is wrong with a sealed directory, "" if nothing.

  Args:
    directory: with a manifest.
    parts: names of subdirectories to look at; () looks at everything.
  """
  try:
    want = json.loads((directory / NAME).read_text())["sha256"]
  except (OSError, ValueError, KeyError, TypeError) as e:
    return f"{NAME} cannot be read ({type(e).__name__})"
  want = {name: sha for name, sha in want.items() if not parts or name.split("/")[0] in parts}
  missing = [name for name in want if not (directory / name).exists()]
  if missing:
    return f"{missing[0]} is missing"
  try:
    got = _sums(directory, list(want))
  except OSError as e:
    return f"{e}"
  wrong = [name for name in want if got[name] != want[name]]
  return f"{wrong[0]} is not what was written" if wrong else ""


def _files(directory, head: str = "") -> list[str]:
  """Every file below, as "ema/d/0a1b"; walked by hand, because epath has no recursive glob."""
  names = []
  for path in directory.iterdir():
    name = f"{head}{path.name}"
    if path.is_dir():
      names += _files(path, f"{name}/")
    elif name not in _UNSEALED:
      names.append(name)
  return sorted(names)


def _sums(directory, names: list[str]) -> dict[str, str]:
  with concurrent.futures.ThreadPoolExecutor() as pool:  # hashlib releases the GIL
    return dict(zip(names, pool.map(lambda name: _sum(directory / name), names), strict=True))


def _sum(path) -> str:
  digest = hashlib.sha256()
  with path.open("rb") as f:
    while chunk := f.read(_CHUNK):
      digest.update(chunk)
  return digest.hexdigest()
