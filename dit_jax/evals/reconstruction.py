"""The evaluator of an autoencoder: how near images come back, one by one and as a set."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np
from einops import rearrange

from dit_jax.core import tree as trees
from dit_jax.evals import balance, fidelity, frechet, ssim
from dit_jax.evals.evaluator import Evaluation
from dit_jax.evals.features import Extractor, Features, in_batches
from dit_jax.evals.generation import grain_facts, refuse_few
from dit_jax.evals.real import Real
from dit_jax.models import lpips
from dit_jax.sampling import generate, grids

SHOWN, COLUMNS = 24, 4  # images of a picture and in its rows, each three times
TRUNK = "vgg16"  # of LPIPS, whatever the distances between sets are measured in
_CALLED = {"FID": "rFID", "sFID": "rsFID"}  # of reconstructions, as the literature has it


class Reconstruction:
  """Encodes and decodes real images, in pieces.

  Args:
    predict: (params, uint8 images [b, s, s, 3]) -> uint8 images and their grain maps
      [b, rows, cols].
    real: the images.
    extract: for the distance between the two sets.
    num_grains: k.
    seed: of KID's subsets.

  Raises:
    UserError: too few images.
  """

  name = "reconstruction"

  def __init__(
    self, predict: Callable, real: Real, extract: Extractor, num_grains: int, seed: int = 0
  ):
    refuse_few(len(real), len(real))
    self.predict, self.real, self.extract = predict, real, extract
    self.num_grains, self.seed = num_grains, seed

  @functools.cached_property
  def reference(self) -> Features:
    """Of the images as they are."""
    return self.extract.stream(self.real.chunks())

  @functools.cached_property
  def perceptual(self):
    """(x, y) -> LPIPS of uint8 images, one an image; and the hash of its weights."""
    model, params = lpips.LPIPS(TRUNK), lpips.load_weights(TRUNK)
    weights, params = trees.content_hash(params), jax.device_put(params)

    @jax.jit
    def distance(params, x, y):
      with jax.default_matmul_precision("highest"):
        return model.apply({"params": params}, generate.to_float(x), generate.to_float(y))

    return functools.partial(in_batches, functools.partial(distance, params)), weights

  def __call__(self, params) -> Evaluation:
    distance, weights = self.perceptual
    per_image, maps, squares = {"PSNR": [], "SSIM": [], "LPIPS": []}, [], []

    def again():
      for images in self.real.chunks():
        back, grains = self.predict(params, images)
        per_image["PSNR"].append(frechet.psnr(images, back))
        per_image["SSIM"].append(ssim.ssim(images, back))
        per_image["LPIPS"].append(distance(images, back))
        squares.append(errors_by_grain(images, back, grains, self.num_grains))
        maps.append(grains)
        yield back

    found = self.extract.stream(again())
    card = fidelity.score(found, self.reference, self.extract, self.real.words, self.seed)
    facts = dataclasses.asdict(card) | {"reference_fingerprint": self.real.fingerprint}
    distances = {_CALLED.get(name, name): x for name, x in facts.pop("metrics").items()}
    means = {name: float(np.mean(np.concatenate(x))) for name, x in per_image.items()}
    facts["lpips"] = {"trunk": TRUNK, "weights": weights}
    if self.num_grains > 1:
      facts["grains"] = grain_facts(np.concatenate(maps), self.num_grains)
      facts["grains"]["psnr"] = _psnr(*sum(squares))
    return Evaluation(means | distances, facts, self._pictures(params))

  def _pictures(self, params) -> dict[str, np.ndarray]:
    real = self.real.read(balance.spread(len(self.real), min(SHOWN, len(self.real))))
    back, grains = self.predict(params, real)
    beside = {"real": real, "reconstruction": back}
    if self.num_grains > 1:
      beside = {"real": real, "fine regions": grids.overlay(real, grains, self.num_grains)} | beside
    images = rearrange(list(beside.values()), "kind n h w c -> (n kind) h w c")
    return {", ".join(beside): grids.grid(images, columns=COLUMNS * len(beside))}


def errors_by_grain(x: np.ndarray, y: np.ndarray, grains: np.ndarray, num_grains: int):
  """Squared errors of uint8 images summed over the regions of a grain, and how many: [2, k]."""
  error = (x.astype(np.float64) - y.astype(np.float64)) ** 2
  rows, cols = grains.shape[1:]
  regions = rearrange(error, "b (r h) (c w) d -> b r c (h w d)", r=rows, c=cols)
  sums, size = regions.sum(-1), regions.shape[-1]
  of = [grains == grain for grain in range(num_grains)]
  return np.array([[sums[here].sum() for here in of], [size * here.sum() for here in of]])


def _psnr(squares: np.ndarray, counts: np.ndarray) -> list[float | None]:
  """PSNR in dB over all pixels of a grain, None where no region has it."""
  ratios = 255.0**2 * counts / np.maximum(squares, 1e-12)
  return [float(10 * np.log10(x)) if n else None for x, n in zip(ratios, counts, strict=True)]
