"""Real images that pictures are held against: a split, a folder or an .npz, read in pieces."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from dit_jax.core import tree as trees
from dit_jax.core.errors import UserError
from dit_jax.data.transforms import center_crop
from dit_jax.evals import npz

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

  def content_hash(self) -> str:
    """Sixteen hex digits of the pixels that can be read now: names and lengths do not tell all."""
    digest = hashlib.sha256()
    for images in self.chunks():
      digest.update(f"{images.shape}".encode())
      digest.update(np.ascontiguousarray(images))
    return digest.hexdigest()[:16]

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
    The images, and of the file's other arrays `label` and `card`.

  Raises:
    UserError: the file is something else, or its images are of another size.
  """
  told, name = f"--{flag}={path}", pathlib.Path(path).name
  try:
    if crop and {"mu", "sigma"} <= npz.names(path):
      known_by = trees.content_hash(npz.read(path, ("mu", "sigma")))
      nothing = lambda places: np.zeros((0, image_size, image_size, 3), np.uint8)
      return Real(name, known_by, image_size, nothing, 0, file=str(path)), {}
    images, arrays = npz.mapped(path, "arr_0"), npz.read(path, ("label", "card"))
  except UserError as e:
    raise UserError(f"--{flag}: {e}") from e
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
    read = lambda places: np.asarray(images[places])
  labels = arrays.get("label")
  if labels is not None and (labels.shape != (len(images),) or labels.dtype.kind not in "iu"):
    raise UserError(f"{told}: label is {labels.dtype} {list(labels.shape)}; expected integers [n].")
  return Real(name, print_of, image_size, read, len(images), labels), arrays
