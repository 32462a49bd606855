"""Picture files doubled by a trained stage of super-resolution."""

import itertools
import pathlib
from collections.abc import Iterator

import numpy as np

from dit_jax.core.errors import UserError
from dit_jax.data import images as files
from dit_jax.data.hierarchy import printable
from dit_jax.sampling import grids
from dit_jax.sampling.superres import Doubler
from dit_jax.tasks import superres


def plan(images: str, out: str) -> dict[pathlib.Path, pathlib.Path]:
  """The pictures to double and the PNG that each becomes; nothing is read or written.

  Args:
    images: a picture, or a folder; of a folder those directly in it, but for hidden ones.
    out: of a picture a .png file, of a folder a folder, where every picture keeps its stem.

  Raises:
    UserError: there is no picture, or `out` does not say where they go, or onto themselves.
  """
  source, target, wanted = pathlib.Path(images), pathlib.Path(out), f"--images={images}"
  if not images or not source.exists():
    raise UserError(f"{wanted} does not exist; give a picture, or a folder of pictures.")
  many = source.is_dir()
  if not out or (target.exists() and target.is_dir() != many):
    raise UserError(
      f"--out={out} must name a {'folder' if many else '.png file'}, as {wanted} is a "
      f"{'folder' if many else 'picture'}."
    )
  if target.exists() and target.samefile(source):
    raise UserError(f"--out={out} is {wanted} itself, which stays as it is; give another --out.")
  if many:
    return _of_folder(source, target)
  if target.suffix.lower() != ".png":
    raise UserError(f"--out={out}: pictures are written as PNG; name it {target.stem}.png.")
  return {source: target}


def write(plan: dict[pathlib.Path, pathlib.Path], workdir) -> dict[str, str]:
  """Doubles one picture after the other, each written whole or not at all.

  Args:
    plan: from `plan`.
    workdir: where the stage superres is trained.

  Returns:
    Names of those that cannot be read, and why.

  Raises:
    UserError: none can be read, the stage is not trained, or a file cannot be written.
  """
  skipped = {}
  pictures = _readable(plan, skipped)
  first = next(pictures, None)
  if first is None:
    (name, reason), *more = skipped.items()
    others = f", nor the {len(more)} beside it" if more else ""
    raise UserError(f"the picture {name} cannot be read ({reason}){others}; check --images.")
  stage, params = superres.restore(workdir)
  doubler = Doubler(stage.enhance)
  for source, picture in itertools.chain([first], pictures):
    large = doubler(params, picture[None])[0]
    try:
      grids.save_png(plan[source], large)
    except OSError as e:
      raise UserError(
        f"{plan[source]} cannot be written ({e.strerror or e}); make room for it."
      ) from e
  return skipped


def _of_folder(source: pathlib.Path, target: pathlib.Path) -> dict[pathlib.Path, pathlib.Path]:
  try:
    entries = sorted(path for path in source.iterdir() if not path.name.startswith("."))
  except OSError as e:
    raise UserError(f"--images={source} cannot be read ({e.strerror}); check its rights.") from e
  pictures = [p for p in entries if p.suffix.lower() in files.EXTENSIONS and not p.is_dir()]
  if not pictures:
    raise UserError(
      f"--images={source} holds no {', '.join(sorted(files.EXTENSIONS))} itself; subfolders are "
      "not looked into, give one of them."
    )
  by_stem = {}
  for path in pictures:
    other = by_stem.setdefault(path.stem, path)
    if other is not path:
      raise UserError(
        f"{other.name} and {path.name} of --images={source} would both become {path.stem}.png; "
        "rename one, or give them apart."
      )
  return {path: target / f"{stem}.png" for stem, path in by_stem.items()}


def _readable(paths, skipped: dict[str, str]) -> Iterator[tuple[pathlib.Path, np.ndarray]]:
  """Pictures as uint8 [h, w, 3], one at a time; the others are added to `skipped`."""
  for path in paths:
    try:
      yield path, np.asarray(files.decode(str(path)))
    except files.BrokenImage as e:
      skipped[printable(path.name)] = str(e)
