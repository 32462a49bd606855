"""Random access to the images of a data set: what the pipeline, the entropies and `check` read."""

import hashlib
import re
import types
from collections import defaultdict
from typing import Any

import numpy as np

from dit_jax.core.errors import UserError
from dit_jax.data import prepared, splits, stores, taxonomy
from dit_jax.data.hierarchy import ClassTable, did_you_mean, printable
from dit_jax.data.images import WHITE, BrokenImage, ImageFile, decode, short_side
from dit_jax.data.transforms import center_crop

SPLITS = ("train", "heldout", "all")


class ImageSource:
  """The images of a split, cropped to squares, by position.

  An image keeps its `index`, its place in the sorted list of the whole set, in every split. A
  broken image never ends a run: its position answers with the next readable image (cyclic), under
  that image's own index and label, and its name is kept in `skipped`.

  Attributes:
    classes: the class table of the whole set.
    labels: int32 [n], the child of every position; read from names, nothing is decoded.
    indices: int32 [n], the index of every position.
    fingerprint: sixteen hex digits over names, sizes in bytes, classes, image size, split and a
      background that is not white.
    empty: names of folders where a class was expected and no image is.
  """

  def __init__(
    self,
    store: stores.Store,
    files: list[ImageFile],
    image_size: int,
    split: str = "all",
    holdout: int = 0,
    empty: tuple[str, ...] = (),
    background: str = WHITE,
  ):
    """`files` are those of the whole set, sorted; `open_source` explains the rest."""
    self.classes, labels = _classes_of(files)
    self.indices = _positions(files, labels, split, holdout)
    self.labels = labels[self.indices]
    self.image_size = image_size
    self.empty = tuple(empty)
    self._store = store
    self._files = [files[i] for i in self.indices]
    self._background = background
    self.fingerprint = self._hash(split)
    self._broken = {}  # position -> why; setting a key is atomic, so threads may share it

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, position: int) -> dict[str, Any]:
    """One image.

    Returns:
      image uint8 [S, S, 3], label int32 and index int32.

    Raises:
      UserError: no image of the split can be read.
    """
    n = len(self)
    if not 0 <= position < n:
      raise IndexError(f"{position=} of {n} images")
    for i in ((position + k) % n for k in range(n)):
      if i in self._broken:
        continue
      try:
        image = decode(self._store.read(self._files[i].name), self._background)
      except BrokenImage as e:
        self._broken[i] = str(e)
        continue
      square = center_crop(image, self.image_size)
      return {"image": square, "label": self.labels[i], "index": self.indices[i]}
    raise UserError(
      f"none of the {n} images in {self._store.where!r} can be read; the first is "
      f"{self.name(0)!r} ({self._broken[0]}). Check the files and their permissions."
    )

  def name(self, position: int) -> str:
    """The path of an image below the root, printable."""
    return printable(self._files[position].name)

  def short_side(self, position: int) -> int:
    """Pixels of an image's short side before it was scaled; 0 where it cannot be read."""
    try:
      return short_side(self._store.read(self._files[position].name))
    except BrokenImage:
      return 0

  @property
  def skipped(self) -> list[str]:
    """Names of the unreadable images met so far."""
    return list(self.reasons)

  @property
  def reasons(self) -> dict[str, str]:
    """Why they cannot be read, by name."""
    return {self.name(i): reason for i, reason in sorted(self._broken.items())}

  def _hash(self, split: str) -> str:
    digest = hashlib.sha256()
    digest.update(repr((self.classes, self.image_size, split)).encode())
    if self.classes.coarser:
      digest.update(repr(self.classes.coarser).encode())
    if self._background != WHITE:
      digest.update(self._background.encode())
    for index, label, file in zip(self.indices, self.labels, self._files, strict=True):
      digest.update(f"{index}\t{label}\t{printable(file.name)}\t{file.num_bytes}\n".encode())
    return digest.hexdigest()[:16]


def block_at(path: str, image_size: int, background: str = WHITE) -> types.SimpleNamespace:
  """A data block of a set that stands for itself: what `path` may be, or "tfds:NAME"."""
  source, path = (path, "") if path.startswith(prepared.SOURCE) else ("folder", path)
  return types.SimpleNamespace(
    source=source, path=path, image_size=image_size, background=background, holdout=0, only=()
  )


def open_source(data, split: str = "train") -> ImageSource:
  """The data set that a config describes.

  Args:
    data: has `source` ("folder", "twemoji" or "tfds:NAME"), `path` (stores.open_path; if not empty,
      it wins over a source that is no "tfds:NAME"), `image_size` in pixels, `holdout` (every n-th
      image of a class, in sorted order: the images n - 1, 2n - 1, ..., so a class of fewer than n
      keeps all; 0 holds none out; nothing of it counts in a set that has a held-out split of its
      own, data.splits), `only` (names of superclasses of `source` to keep, images and table; ()
      keeps all; where `path` replaces another source, its superclasses are not in question), and
      may have `split` (data.splits), `label_key` and `super_key` (data.columns), `background`
      ("#rrggbb", under transparency), and `taxonomy` and `levels`, which give a flat set
      superclasses (data.taxonomy).
    split: "train", "heldout" or "all".

  Raises:
    UserError: the set cannot be found or read, or a field makes no sense.
  """
  if data.image_size < 1:
    raise UserError(f"data.image_size={data.image_size} must be a number of pixels, 1 or more.")
  background = getattr(data, "background", WHITE).lower()  # older runs say nothing of it
  if not re.fullmatch("#[0-9a-f]{6}", background):
    raise UserError(f"data.background={background!r} must be a colour as '#ffffff'.")
  store, files, empty = stores.open_store(data)
  # Runs from before there were taxonomies say nothing of them.
  wanted = getattr(data, "taxonomy", ""), _names(getattr(data, "levels", ()))
  files = taxonomy.apply(files, *wanted)
  # `only` names superclasses of the source, which a path replaces unless it tells where that lies.
  replaced = data.path and data.source != "folder" and not data.source.startswith(prepared.SOURCE)
  files = _keep_only(files, () if replaced else _names(data.only))
  return ImageSource(store, files, data.image_size, split, data.holdout, tuple(empty), background)


def _names(value) -> tuple[str, ...]:
  """A config's names; one alone need not be a tuple."""
  return (value,) if isinstance(value, str) else tuple(value)


def _keep_only(files: list[ImageFile], only: tuple[str, ...]) -> list[ImageFile]:
  known = sorted({name for file in files for name in _superclasses(file)} - {""})
  for name in map(printable, only):
    if name not in known:
      hint = did_you_mean(name, known) or f"; it has {', '.join(known[:20]) or 'none'}"
      raise UserError(f"data.only names {name!r}, no superclass of this set{hint}.")
  kept = set(map(printable, only)) or {*known, ""}
  return [file for file in files if kept.intersection(_superclasses(file))]


def _superclasses(file: ImageFile) -> tuple[str, ...]:
  return *file.above, file.superclass


def _classes_of(files: list[ImageFile]) -> tuple[ClassTable, np.ndarray]:
  """The table, and the label of every file; no classes and labels of 0 if unconditional."""
  paths = [(*_superclasses(file), file.child) for file in files]
  named = [path for path in dict.fromkeys(paths) if path != ("", "")]
  number = {path: i for i, path in enumerate(named)}
  labels = [number.get(path, 0) for path in paths]
  return ClassTable.from_paths(named), np.asarray(labels, np.int32)


def _positions(files: list[ImageFile], labels: np.ndarray, split: str, holdout: int) -> np.ndarray:
  """Places in the whole list that belong to a split, ascending, int32."""
  if split not in SPLITS:
    raise UserError(f"{split=} is unknown; use one of {', '.join(SPLITS)}.")
  if holdout < 0:
    raise UserError(f"data.holdout={holdout} must be 0 (none) or n to hold every n-th image out.")
  seen = defaultdict(int)
  held = np.asarray([file.split == splits.HELDOUT for file in files], bool)
  for i, label in enumerate(labels.tolist() if holdout and not held.any() else ()):
    seen[label] += 1
    held[i] = seen[label] % holdout == 0
  mask = {"train": ~held, "heldout": held, "all": np.ones_like(held)}[split]
  if not mask.any():
    raise UserError(
      f"the split {split!r} is empty with data.holdout={holdout} and {len(labels)} images; "
      f"{'set data.holdout, e.g. 10' if not holdout else 'change data.holdout'}."
    )
  return np.flatnonzero(mask).astype(np.int32)
