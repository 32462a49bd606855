"""The evaluator of what is drawn: distances to real images, and pictures with their grain maps."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import numpy as np

from dit_jax.core.errors import UserError
from dit_jax.evals import balance, fidelity, reference
from dit_jax.evals.evaluator import Evaluation
from dit_jax.evals.features import Extractor
from dit_jax.evals.real import CHUNK, Real
from dit_jax.evals.reference import Reference
from dit_jax.sampling import grids

SHOWN = 64  # images of a picture


class Generation:
  """Draws in pieces, keeps features and forgets images.

  Args:
    predict: (params, label, index) -> uint8 images [b, s, s, 3] and their grain maps
      [b, rows, cols], None for no maps.
    label, index: of every image, int [n], in the order in which they are scored.
    real: what they are compared with.
    extract: makes features of both.
    num_grains: k.
    seed: of KID's subsets.
    folder: where the real images' statistics are kept between runs; "" keeps none.

  Raises:
    UserError: too few images on a side.
  """

  name = "fidelity"

  def __init__(
    self,
    predict: Callable,
    label: np.ndarray,
    index: np.ndarray,
    real: Real,
    extract: Extractor,
    num_grains: int,
    seed: int = 0,
    folder: str | pathlib.Path = "",
  ):
    refuse_few(len(label), len(real) or fidelity.SMALLEST_N)  # statistics do not say
    self.predict, self.label, self.index, self.seed = predict, label, index, seed
    self.real, self.extract, self.num_grains = real, extract, num_grains
    self.folder = folder

  @functools.cached_property
  def reference(self) -> Reference:
    """Of the real images: what a file says of them, else what they are seen to be."""
    if self.real.file:
      return reference.load(self.real.file, self.extract, self.real.words)
    make = lambda: Reference.of_parts(map(self.extract, self.real.chunks()), self.real.words)
    if not self.folder:
      return make()
    e = self.extract
    known_by = (self.real.content_hash(), e.trunk, e.weights, e.eval_size)
    return reference.cached(pathlib.Path(self.folder, f"{'_'.join(map(str, known_by))}.npz"), make)

  def __call__(self, params) -> Evaluation:
    self._refuse_other_kind()  # before hours of drawing
    shown, maps, shown_maps = [], [], []
    places = balance.spread(len(self.label), min(SHOWN, len(self.label)))

    def drawn():
      for start in range(0, len(self.label), CHUNK):
        rows = slice(start, start + CHUNK)
        images, grains = self.predict(params, self.label[rows], self.index[rows])
        here = places[(places >= start) & (places < start + CHUNK)] - start
        shown.append(images[here])
        if grains is not None:
          maps.append(grains)
          shown_maps.append(grains[here])
        yield images

    found = self.extract.stream(drawn())
    card = fidelity.score(found, self.reference, self.extract, self.real.words, self.seed)
    facts = dataclasses.asdict(card) | {"reference_fingerprint": self.real.fingerprint}
    samples = np.concatenate(shown)
    pictures = {"samples": grids.grid(samples)}
    if maps and self.num_grains > 1:
      facts["grains"] = grain_facts(np.concatenate(maps), self.num_grains)
      tinted = grids.overlay(samples, np.concatenate(shown_maps), self.num_grains)
      pictures["fine regions"] = grids.grid(tinted)
    if len(self.real):
      beside = self.real.read(balance.spread(len(self.real), min(SHOWN, len(self.real))))
      pictures["real"] = grids.grid(beside)
    return Evaluation(facts.pop("metrics"), facts, pictures)

  def _refuse_other_kind(self) -> None:
    e, size = self.extract, self.real.image_size
    fidelity.refuse_other_kind(e.trunk, e.weights, e.seen(size), self.reference)
    if self.reference.image_size not in (0, size):  # 0: a file that does not say
      raise UserError(
        f"{self.real.words} is of images of {self.reference.image_size} px and the run is of "
        f"{size} px; give a reference of images that are as large."
      )


def refuse_few(n: int, reference_n: int) -> None:
  """Raises UserError before hours of drawing, where a score would refuse the number of images."""
  if min(n, reference_n) < fidelity.SMALLEST_N:
    raise UserError(
      f"scoring needs {fidelity.SMALLEST_N} images or more a side, not {n} and {reference_n}; "
      "take more."
    )


def grain_facts(grains: np.ndarray, num_grains: int) -> dict:
  """Shares of the regions by grain, coarsest first, and the spread of the images' fine shares."""
  fine = np.mean(grains == num_grains - 1, axis=(1, 2))
  shares = [float(np.mean(grains == grain)) for grain in range(num_grains)]
  names = ("mean", "sd", "min", "max")
  values = (float(f(fine)) for f in (np.mean, np.std, np.min, np.max))
  return {"shares": shares, "finest": dict(zip(names, values, strict=True))}
