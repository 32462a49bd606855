"""Degraded pairs: functions of (seed, step, index), of the sizes asked, worse than clean ones."""

import numpy as np
import pytest

from dit_jax.core.errors import UserError
from dit_jax.data import degrade
from dit_jax.evals import frechet


def picture(h=48, w=64, seed=0) -> np.ndarray:
  """Smooth colour with a few edges: something that a blur and JPEG harm."""
  y, x = np.mgrid[:h, :w] / 8
  draw = np.random.default_rng(seed)
  waves = [128 + 80 * np.sin(a * x + b * y) for a, b in draw.uniform(-2, 2, (3, 2))]
  image = np.stack(waves, -1)
  image[h // 3 : h // 2, w // 4 : w // 2] = draw.integers(0, 256, 3)
  return image.astype(np.uint8)


def draw(seed=0):
  return np.random.default_rng(seed)


def test_sizes_and_types():
  small = degrade.Degradation(clean=0.0)(picture(), draw())
  assert (small.shape, small.dtype) == ((24, 32, 3), np.uint8)
  assert degrade.Degradation(factor=4)(picture(), draw()).shape == (12, 16, 3)
  assert degrade.clean(picture()).shape == (24, 32, 3)
  assert degrade.bicubic(picture()).shape == (96, 128, 3)


def test_the_share_of_clean_pairs():
  image, clean = picture(), degrade.clean(picture())
  one = degrade.Degradation(clean=0.2)
  same = [np.array_equal(one(image, draw(i)), clean) for i in range(400)]
  assert abs(np.mean(same) - 0.2) < 3 * (0.2 * 0.8 / 400) ** 0.5
  assert np.array_equal(degrade.Degradation(clean=1.0)(image, draw()), clean)


def test_degraded_is_further_from_the_picture_than_clean():
  image, clean = picture(), degrade.clean(picture())
  one = degrade.Degradation(clean=0.0)
  pictures = np.stack([one(image, draw(i)) for i in range(20)])
  assert len({p.tobytes() for p in pictures}) == 20
  error = frechet.psnr(pictures, np.broadcast_to(clean, pictures.shape))
  assert 15 < error.mean() < 35
  larger = lambda small: frechet.psnr(degrade.bicubic(small)[None], image[None])[0]
  assert np.mean([larger(p) for p in pictures]) < larger(clean) - 0.5


@pytest.mark.parametrize(
  "worse", [{"blur": (3.0, 3.0)}, {"noise": (30.0, 30.0)}, {"jpeg": (5, 5)}, {"scale": (0.2, 0.2)}]
)
def test_every_part_does_its_harm(worse):
  image, clean = picture(), degrade.clean(picture())
  mild = dict(clean=0.0, blur=(0.0, 0.0), scale=(1.0, 1.0), noise=(0.0, 0.0), jpeg=(100, 100))
  error = lambda fields: np.mean(
    [frechet.psnr(degrade.Degradation(**fields)(image, draw(i))[None], clean[None]) for i in (0, 1)]
  )
  assert error(mild) > 28
  assert error({**mild, **worse}) < error(mild) - 3


def test_blur_is_a_gaussian_that_keeps_the_mean_of_flat_pictures():
  spike = np.zeros((21, 21, 1), np.float32)
  spike[10, 10] = 1
  got = degrade.blur(spike, 1.5, 0.0)[:, 10, 0]
  far = np.abs(np.arange(-10, 11))
  want = np.where(far <= 5, np.exp(-0.5 * (far / 1.5) ** 2), 0.0)  # the kernel ends at 3 deviations
  np.testing.assert_allclose(got, want / want.sum(), atol=1e-5)
  both = degrade.blur(spike, 1.0, 2.0)[..., 0]
  assert both[10, 13] > both[13, 10]
  np.testing.assert_allclose(both.sum(), 1.0, rtol=1e-5)
  np.testing.assert_allclose(degrade.blur(np.full((5, 9, 3), 7.0), 9.0, 9.0), 7.0, rtol=1e-6)


def batch(*indices):
  return {
    "image": np.stack([picture(40, 40, int(i)) for i in indices]),
    "index": np.asarray(indices, np.int32),
    "label": np.zeros(len(indices), np.int32),
  }


def test_a_pair_depends_on_seed_step_and_index_alone():
  pairs = degrade.Pairs(degrade.Degradation(), crop=24, seed=3)
  got = pairs(7, batch(5, 2, 9))
  assert {k: v.shape for k, v in got.items()} == {
    "high": (3, 24, 24, 3),
    "low": (3, 12, 12, 3),
    "index": (3,),
  }
  again = pairs(7, batch(9, 5))
  for name in got:
    np.testing.assert_array_equal(again[name], got[name][[2, 0]])
  other_step = pairs(8, batch(5, 2, 9))
  other_seed = degrade.Pairs(degrade.Degradation(), crop=24, seed=4)(7, batch(5, 2, 9))
  for other in (other_step, other_seed):
    assert all((other["low"][i] != got["low"][i]).any() for i in range(3))


def test_patches_are_cut_anywhere_and_mirrored_half_of_the_time():
  image = np.zeros((10, 12, 3), np.uint8)
  image[..., 0] = np.arange(12)
  image[..., 1] = np.arange(10)[:, None]
  pairs = degrade.Pairs(degrade.Degradation(clean=1.0), crop=8, seed=0)
  high = np.stack([pairs.pair(image, draw(i))[0] for i in range(200)])
  mirrored = high[:, 0, 0, 0] > high[:, 0, 1, 0]
  assert 70 < mirrored.sum() < 130
  assert set(high[:, 0, :, 0].min(1)) == set(range(5))
  assert set(high[:, 0, 0, 1]) == set(range(3))
  assert (np.sort(high[:, 0, :, 0])[:, -1] - high[:, 0, :, 0].min(1) == 7).all()


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("blur", (2.0, 1.0)),
    ("noise", (0.0,)),
    ("jpeg", (0, 50)),
    ("scale", (0.0, 1.0)),
    ("clean", 1.5),
    ("factor", 1),
  ],
)
def test_settings_that_make_no_sense_are_refused(field, value):
  with pytest.raises(UserError, match=f"{field}="):
    degrade.Degradation(**{field: value})
