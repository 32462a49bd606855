"""How much detail a region holds: the entropy of its grey values, and the grain that follows.

Dynamic grain coding (D2iT, section 3.1). With grey values x_i = 0.2989 R + 0.5870 G + 0.1140 B on
[0, 1], bins b_j uniform on [0, 1] and sigma = 0.01,

  (1)  p(b_j) ~ sum_i exp(-((x_i - b_j) / sigma)^2 / 2),    E = -sum_j p(b_j) log p(b_j)   [nats].

There are 256 bins whatever the region (our reading: the paper's S^2 at S = 16). A flat region of
grey 0.04 to 0.96 has 2.355 nats; of grey 0 or 1, 1.740, as the kernel is cut at the edge of [0, 1]
(white is 0.9999, the sum of the weights, and has 1.744); ln 256 = 5.545 is the maximum. Everything
is float64 on the host, for maps and thresholds alike, so that a map made later agrees with the
thresholds made before.

The kernel is local, and a grey value differs from its nearest bin n by d, |d| <= 1/2 bin, so

  (2)  exp(-(m - d)^2 / 2s^2) = exp(-m^2 / 2s^2) * exp(d / s^2)^m * exp(-d^2 / 2s^2),  s = 255 sigma

splits into a factor of the offset m = j - n alone and powers of one number a pixel: a weighted
histogram an offset, |m| <= 26, and no exponential a pixel and bin. What is left out is below 1e-22.
"""

import math

import numpy as np

from dit_jax.core.errors import UserError

BINS = 256
SIGMA = 0.01
GREY = (0.2989, 0.5870, 0.1140)
_REACH = 26  # bins, 10.2 sigma
_DECIMALS = 6  # entropies closer than this are one value
_NEVER, _ALWAYS = 1.0 + math.log(BINS), -1.0  # thresholds that nothing, and everything, exceeds


def region_entropy(image: np.ndarray, region: int) -> np.ndarray:
  """Entropy in nats of every region of an image, equation (1).

  Args:
    image: uint8 [H, W, 3], RGB.
    region: side of a region in pixels; divides H and W.

  Returns:
    float64 [H / region, W / region].

  Raises:
    UserError: regions do not tile the image.
  """
  assert image.dtype == np.uint8, f"entropies are defined on uint8 images, not {image.dtype}"
  height, width, _ = image.shape
  if height % region or width % region:
    raise UserError(
      f"an image of {height} x {width} is not a whole number of regions of {region} x {region}; "
      f"choose an image_size that is a multiple of {region}."
    )
  rows, cols = height // region, width // region
  u = image @ np.asarray(GREY)  # in bins: 255 x
  nearest = np.rint(u)
  row, col = np.arange(height) // region, np.arange(width) // region
  place = ((row[:, None] * cols + col) * BINS + nearest.astype(np.int64)).ravel()
  p = _densities(place, (u - nearest).ravel(), rows * cols)
  p /= p.sum(1, keepdims=True)
  return -_xlogy(p).sum(1).reshape(rows, cols)


def _densities(place: np.ndarray, d: np.ndarray, regions: int) -> np.ndarray:
  """Sums of kernels [regions, BINS] of pixels at `place` = region * BINS + bin, by equation (2)."""

  def histogram(weight):
    return np.bincount(place, weight, regions * BINS).reshape(regions, BINS)

  s = (BINS - 1) * SIGMA
  ratio = np.exp(d / s**2)
  right = np.exp(-(d**2) / (2 * s**2))  # weights of the bins at n + m, and at n - m
  left = right.copy()
  p = histogram(right)
  for m in range(1, _REACH + 1):
    right *= ratio
    left /= ratio
    kernel = math.exp(-(m**2) / (2 * s**2))
    p[:, m:] += kernel * histogram(right)[:, :-m]
    p[:, :-m] += kernel * histogram(left)[:, m:]
  return p


def _xlogy(p: np.ndarray) -> np.ndarray:
  return p * np.log(np.where(p > 0, p, 1.0))


def thresholds(entropies: np.ndarray, ratios: tuple[float, ...]) -> tuple[float, ...]:
  """Global thresholds that give every grain its share of the training regions.

  Each lies midway between two neighbouring distinct entropies (rounded to 1e-6), so no atom of
  equal regions, such as pure white, straddles it; of all such places it takes the one whose share
  below is nearest to the wanted share.

  Args:
    entropies: of all training regions, flat, in nats.
    ratios: share of each grain, coarsest first, summing to 1.

  Returns:
    One threshold fewer than ratios, ascending. A share of 0 or 1 below gives a threshold that
    every entropy, or none, exceeds.

  Raises:
    UserError: ratios are no shares, or all regions are equal, so that nothing tells them apart.
  """
  if not ratios or min(ratios) < 0 or not abs(sum(ratios) - 1) <= 1e-6:
    raise UserError(f"grain {ratios=} must be shares that sum to 1, coarsest first.")
  values, counts = _distinct(entropies)
  below = np.cumsum(counts)[:-1] / counts.sum()
  taus = []
  for share in np.cumsum(ratios)[:-1]:
    if share < 1e-9 or share > 1 - 1e-9:
      taus.append(_ALWAYS if share < 0.5 else _NEVER)
      continue
    if len(values) < 2:
      raise UserError(
        f"all {counts.sum()} training regions have the entropy {values[0]:.6f}, so no threshold "
        "gives a fine share; use a single grain, or images with some detail."
      )
    i = int(np.argmin(np.abs(below - share)))
    taus.append(float(values[i] + values[i + 1]) / 2)
  return tuple(taus)


def grain_map(entropy: np.ndarray, taus: tuple[float, ...]) -> np.ndarray:
  """The grain of every region, uint8 of the same shape: how many thresholds its entropy exceeds."""
  return np.searchsorted(np.asarray(taus, np.float64), entropy, side="left").astype(np.uint8)


def budget_map(entropy: np.ndarray, ratios: tuple[float, ...]) -> np.ndarray:
  """The map of an image [rows, cols] that has exactly its shares of every grain, by rank."""
  order = np.argsort(entropy.ravel(), kind="stable")
  grains = np.zeros(entropy.size, np.uint8)
  for start in np.round(np.cumsum(ratios)[:-1] * entropy.size).astype(int):
    grains[order[start:]] += 1
  return grains.reshape(entropy.shape)


def atom_mass(entropies: np.ndarray, tau: float) -> float:
  """Share of the training regions in the larger of the two atoms next to a threshold.

  By this much, at most, the realised share of a grain can miss the wanted one.
  """
  values, counts = _distinct(entropies)
  above = int(np.searchsorted(values, tau))
  return float(counts[max(above - 1, 0) : above + 1].max() / counts.sum())


def _distinct(entropies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  assert entropies.size, "entropies of no region"
  return np.unique(np.round(entropies, _DECIMALS), return_counts=True)
