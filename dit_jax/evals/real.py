"""Real images that pictures are held against: a split, a folder or an .npz, read in pieces."""

import dataclasses
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from dit_jax.core import tree as trees
from dit_jax.core.errors import UserError
from dit_jax.data.transforms import center_crop

CHUNK = 512  # images in memory at once
_THREADS = 8  # that decode


@dataclasses.dataclass(frozen=True)
class Real:
  """Images of one size.

  Attributes:
    words: what they are, for the card.
    fingerprint: sixteen hex digits of the whole set that they are of.
    image_size: pixels a side.
    read: places -> uint8 [b, s, s, 3] without those that cannot be read.
    total: how many there are.
    labels: int32 [total]; None where nobody knows.
    classes: names of the labels; () for none.
    file: of statistics, which are there in place of images; see evals.reference.
  """

  words: str
  fingerprint: str
  image_size: int
  read: Callable[[np.ndarray], np.ndarray]
  total: int
  labels: np.ndarray | None = None
  classes: tuple[str, ...] = ()
  file: str = ""

  def __len__(self) -> int:
    return self.total

  def chunks(self, size: int = CHUNK) -> Iterator[np.ndarray]:
    """All images in order, `size` at a time or fewer."""
    for start in range(0, self.total, size):
      images = self.read(np.arange(start, min(start + size, self.total)))
      if len(images):
        yield images

  def take(self, places: np.ndarray) -> "Real":
    """Some of the images."""
    labels = None if self.labels is None else self.labels[places]
    return dataclasses.replace(
      self, read=lambda at: self.read(places[at]), total=len(places), labels=labels
    )


def of_source(source, words: str) -> Real:
  """The images of a data.sources source."""
  size = source.image_size

  def read(places):
    with ThreadPoolExecutor(_THREADS) as pool:
      items = list(pool.map(lambda i: source[int(i)], places))
    # A broken image answers with its neighbour.
    own = [
      x["image"] for i, x in zip(places, items, strict=True) if x["index"] == source.indices[i]
    ]
    return np.array(own, np.uint8).reshape(len(own), size, size, 3)

  classes = tuple(source.classes.children)
  return Real(words, source.fingerprint, size, read, len(source), source.labels, classes)


def of_npz(
  flag: str, path, image_size: int, crop: bool = True
) -> tuple[Real, dict[str, np.ndarray]]:
  """Images of an .npz as ADM's evaluator takes them: arr_0, uint8 [n, s, s, 3].

  Args:
    flag: that gave the path, for messages.
    path: of the file.
    image_size: pixels a side.
    crop: crops larger images to it as in training, and takes statistics in place of images; else
      both are refused.

  Returns:
    The images, and the file's other arrays.

  Raises:
    UserError: the file is something else, or its images are of another size.
  """
  arrays = _arrays(flag, path)
  images, told = arrays.pop("arr_0", None), f"--{flag}={path}"
  statistics = {name: arrays[name] for name in ("mu", "sigma") if name in arrays}
  if crop and len(statistics) == 2:
    name, known_by = pathlib.Path(path).name, trees.content_hash(statistics)
    nothing = lambda places: np.zeros((0, image_size, image_size, 3), np.uint8)
    return Real(name, known_by, image_size, nothing, 0, file=str(path)), arrays
  if images is None:
    raise UserError(
      f"{told} has no arr_0 but {', '.join(sorted(arrays)) or 'nothing'}; give images as arr_0, "
      "uint8 [n, s, s, 3]."
    )
  square = images.ndim == 4 and images.shape[1] == images.shape[2] and images.shape[3] == 3
  if images.dtype != np.uint8 or not square or not len(images):
    raise UserError(
      f"{told}: arr_0 is {images.dtype} {list(images.shape)}; expected images, uint8 [n, s, s, 3]."
    )
  if images.shape[1] != image_size and not (crop and images.shape[1] > image_size):
    raise UserError(
      f"{told} has images of {images.shape[1]} px and the run is of {image_size} px; give images "
      "that are as large."
    )
  print_of = trees.content_hash({"arr_0": images})
  cropped = lambda x: center_crop(Image.fromarray(x), image_size)
  read = lambda places: np.stack([cropped(images[i]) for i in places])
  if images.shape[1] == image_size:
    read = images.__getitem__
  labels = arrays.get("label")
  if labels is not None and (labels.shape != (len(images),) or labels.dtype.kind not in "iu"):
    raise UserError(f"{told}: label is {labels.dtype} {list(labels.shape)}; expected integers [n].")
  return Real(pathlib.Path(path).name, print_of, image_size, read, len(images), labels), arrays


def _arrays(flag: str, path) -> dict[str, np.ndarray]:
  """Every array of an .npz; nothing in it is run."""
  told = f"--{flag}={path}"
  try:
    file = np.load(path, allow_pickle=False)
    if isinstance(file, np.ndarray):
      raise UserError(f"{told} is a bare array; save it as .npz, np.savez(FILE, arr_0=images).")
    with file:
      return {name: file[name] for name in file.files}
  except UserError:
    raise
  except FileNotFoundError as e:
    raise UserError(f"{told} does not exist; give an .npz file.") from e
  except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as e:
    reason = " ".join(str(e).split())
    raise UserError(f"{told} cannot be read ({reason}); give an .npz of plain arrays.") from e
