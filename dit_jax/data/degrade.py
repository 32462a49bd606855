"""Small pictures made from large ones for super-resolution: degraded twice, or scaled down alone.

A degradation is blur, resize, noise and JPEG, and two of them follow each other (second order,
after Real-ESRGAN, Wang et al. 2021, section 3.2; the ranges are ours, and milder). Every draw is a
function of (seed, step, image index).
"""

import dataclasses
import io
import math

import numpy as np
from PIL import Image

from dit_jax.core.errors import UserError

_FILTERS = (Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
_REACH = 3.0  # standard deviations of a Gaussian that its kernel holds


@dataclasses.dataclass(frozen=True)
class Degradation:
  """How a small picture comes from a large one; ranges are drawn from uniformly.

  Attributes:
    factor: sides of the large picture over those of the small one.
    clean: share of the pictures that are scaled down by antialiased bicubic and nothing else.
    blur: standard deviations in pixels of the picture blurred, one draw an axis.
    scale: of the resize of the first order; the second goes to the small picture's size.
    noise: standard deviation of Gaussian noise on each channel, in levels of 255.
    jpeg: quality, 1 to 100.

  Raises:
    UserError: a range that is none, or a number out of range.
  """

  factor: int = 2
  clean: float = 0.2
  blur: tuple[float, float] = (0.2, 1.2)
  scale: tuple[float, float] = (0.5, 1.0)
  noise: tuple[float, float] = (0.0, 8.0)
  jpeg: tuple[int, int] = (60, 95)

  def __post_init__(self):
    bounds = {"blur": (0, 64), "scale": (0.1, 4), "noise": (0, 255), "jpeg": (1, 100)}
    for name, (low, high) in bounds.items():
      given = getattr(self, name)
      if len(given) != 2 or not low <= given[0] <= given[1] <= high:
        raise UserError(f"{name}={given}: wanted a range inside {low} to {high}; change it.")
    if not 0 <= self.clean <= 1 or self.factor < 2:
      raise UserError(f"{self}: wanted clean of 0 to 1 and factor of 2 or more; change them.")

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The small picture, uint8 [H / factor, W / factor, 3], of uint8 [H, W, 3]."""
    h, w = (side // self.factor for side in image.shape[:2])
    if rng.random() < self.clean:
      return clean(image, self.factor)
    scale = rng.uniform(*self.scale)
    first = (max(1, round(scale * image.shape[0])), max(1, round(scale * image.shape[1])))
    for shape in (first, (h, w)):
      image = blur(image.astype(np.float32), rng.uniform(*self.blur), rng.uniform(*self.blur))
      resized = _resize(_to_bytes(image), shape, _FILTERS[rng.integers(len(_FILTERS))])
      noise = rng.normal(size=resized.shape) * rng.uniform(*self.noise)
      image = jpeg(_to_bytes(resized + noise), int(rng.integers(self.jpeg[0], self.jpeg[1] + 1)))
    return image


def clean(image: np.ndarray, factor: int = 2) -> np.ndarray:
  """Antialiased bicubic, uint8 [H / factor, W / factor, 3]."""
  h, w = (side // factor for side in image.shape[:2])
  return _resize(image, (h, w), Image.Resampling.BICUBIC)


def bicubic(image: np.ndarray, factor: int = 2) -> np.ndarray:
  """The baseline of super-resolution, uint8 [factor H, factor W, 3]."""
  h, w = (side * factor for side in image.shape[:2])
  return _resize(image, (h, w), Image.Resampling.BICUBIC)


def blur(x: np.ndarray, sigma_rows: float, sigma_cols: float) -> np.ndarray:
  """A Gaussian blur of float [H, W, c], reflected at the borders; 0 blurs nothing."""
  for axis, sigma in ((0, sigma_rows), (1, sigma_cols)):
    reach = min(math.ceil(_REACH * sigma), x.shape[axis] - 1)
    if reach:
      kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
      kernel /= kernel.sum()
      pad = [(0, 0)] * x.ndim
      pad[axis] = (reach, reach)
      wide = np.pad(x, pad, mode="reflect")
      windows = np.lib.stride_tricks.sliding_window_view(wide, len(kernel), axis)
      x = (windows @ kernel.astype(x.dtype)).astype(x.dtype)
  return x


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
  """What JPEG of this quality keeps of uint8 [H, W, 3]."""
  with io.BytesIO() as file:
    Image.fromarray(image).save(file, format="JPEG", quality=quality)
    file.seek(0)
    return np.asarray(Image.open(file).convert("RGB"))


@dataclasses.dataclass(frozen=True)
class Pairs:
  """(step, batch of a source) -> pairs of a large and a small patch, for pipeline.batches.

  Attributes:
    degradation: large to small.
    crop: pixels a side of a large patch, cut at a place of its own and mirrored by a coin.
    seed: of every draw, together with the step and the image's index.
  """

  degradation: Degradation
  crop: int
  seed: int

  def __call__(self, step: int, batch: dict) -> dict:
    """`high` uint8 [b, crop, crop, 3], `low` [b, crop / factor, ...] and `index` [b]."""
    pairs = [
      self.pair(image, np.random.default_rng((self.seed, step, int(index))))
      for image, index in zip(batch["image"], batch["index"], strict=True)
    ]
    high, low = (np.stack(side) for side in zip(*pairs, strict=True))
    return {"high": high, "low": low, "index": batch["index"]}

  def pair(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One pair from one image."""
    top, left = (rng.integers(side - self.crop + 1) for side in image.shape[:2])
    high = image[top : top + self.crop, left : left + self.crop]
    if rng.random() < 0.5:
      high = high[:, ::-1]
    high = np.ascontiguousarray(high)
    return high, self.degradation(high, rng)


def _resize(image: np.ndarray, shape: tuple[int, int], how) -> np.ndarray:
  return np.asarray(Image.fromarray(image).resize((shape[1], shape[0]), how))


def _to_bytes(x: np.ndarray) -> np.ndarray:
  return np.clip(np.round(x), 0, 255).astype(np.uint8)
