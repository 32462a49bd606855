"""An autoencoder that changes nothing, and one whose errors are known."""

import numpy as np
import pytest

from dit_jax.evals import features, frechet, reconstruction
from dit_jax.evals.real import Real

SIZE, N = 32, 6
PERFECT = 10 * np.log10(255.0**2 / 1e-12)  # frechet.psnr's most


@pytest.fixture(scope="module")
def known():
  images = np.random.default_rng(0).integers(0, 200, (N, SIZE, SIZE, 3)).astype(np.uint8)
  return Real("noise", "0", SIZE, images.__getitem__, N)


@pytest.fixture(scope="module")
def ask(known):
  """Adds params["fine"] in the left half, which is fine, and params["coarse"] in the right one."""

  def predict(params, images):
    again = images.copy()
    again[:, :, : SIZE // 2] += params["fine"]
    again[:, :, SIZE // 2 :] += params["coarse"]
    return again, np.broadcast_to([1, 1, 0, 0], (len(images), 4, 4))

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(reconstruction, "TRUNK", "alexnet")
    evaluator = reconstruction.Reconstruction(predict, known, features.Extractor("alexnet"), 2)
    evaluator.perceptual  # noqa: B018 - made while the trunk is the small one
  return evaluator


def test_what_comes_back_whole_has_no_distance(ask):
  found = ask({"fine": np.uint8(0), "coarse": np.uint8(0)})
  assert found.metrics["PSNR"] == pytest.approx(PERFECT)
  assert found.metrics["LPIPS"] == 0
  assert found.metrics["AlexNet-FD"] == pytest.approx(0, abs=1e-3)
  assert found.facts["n"] == found.facts["reference_n"] == N


def test_errors_are_told_by_grain(ask):
  found = ask({"fine": np.uint8(4), "coarse": np.uint8(8)})
  assert found.metrics["PSNR"] == pytest.approx(10 * np.log10(255**2 / 40))
  coarse, fine = found.facts["grains"]["psnr"]
  assert (coarse, fine) == pytest.approx([10 * np.log10(255**2 / e**2) for e in (8, 4)])
  assert found.facts["grains"]["shares"] == [0.5, 0.5]
  assert found.facts["grains"]["finest"] == dict(mean=0.5, sd=0.0, min=0.5, max=0.5)
  assert found.metrics["LPIPS"] > 0
  (title,) = found.pictures
  assert title == "real, fine regions, reconstruction"


def test_errors_by_grain_add_up_to_all_errors():
  draw = np.random.default_rng(1)
  x, y = draw.integers(0, 256, (2, 3, 16, 16, 3)).astype(np.uint8)
  grains = draw.integers(0, 3, (3, 4, 4))
  sums, counts = reconstruction.errors_by_grain(x, y, grains, 4)
  assert counts.sum() == x.size
  assert (sums[3], counts[3]) == (0, 0)
  want = 10 ** (-frechet.psnr(x, y) / 10) * 255.0**2  # mean squares
  assert sums.sum() / x.size == pytest.approx(want.mean())
  assert reconstruction._psnr(sums, counts)[3] is None
