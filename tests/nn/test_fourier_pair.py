"""The pair against its definition by FFT, and the laws that make it a pair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.core.errors import UserError
from dit_jax.nn import fourier_pair as pair

SIZES = [(1, 2), (2, 2), (4, 2), (5, 2), (7, 2), (8, 2), (16, 2), (3, 3), (4, 3), (6, 4), (32, 2)]
both_grids = pytest.mark.parametrize("centred", [False, True], ids=["corner", "centred"])


def by_fft(x: np.ndarray, n: int, size: int, shift: float) -> np.ndarray:
  """The n lowest frequencies of x on `size` points, read `shift` of its periods later, in float64.

  Along the first axis, bin by bin: a Nyquist bin that is split comes half from each sign, one that
  is merged adds both.
  """
  spectrum, out = np.fft.fft(x, axis=0), np.zeros((size, *x.shape[1:]), complex)
  for k in range(-(n // 2), n // 2 + 1):
    share = 0.5 if len(x) == n and 2 * abs(k) == n else 1.0
    out[k] += share * np.exp(2j * np.pi * k * shift) * spectrum[k]
  back = np.fft.ifft(size / len(x) * out, axis=0)
  assert np.abs(back.imag).max() < 1e-12
  return back.real


def noise(*shape) -> np.ndarray:
  return np.random.default_rng(0).normal(size=shape)


@both_grids
@pytest.mark.parametrize(("n", "r"), SIZES)
def test_the_matrices_are_the_fft_s_crop_and_zero_pad(n, r, centred):
  low, high = noise(n, 3), noise(r * n, 3)
  shift = 0.5 * (r - 1) / (r * n) * centred
  up, down = pair.up_matrix(n, r, centred), pair.down_matrix(r * n, r, centred)
  np.testing.assert_allclose(up @ low, by_fft(low, n, r * n, -shift), atol=2e-14)
  np.testing.assert_allclose(down @ high, by_fft(high, n, n, shift), atol=2e-14)


@both_grids
@pytest.mark.parametrize(("n", "r"), SIZES)
def test_down_undoes_up_and_both_keep_constants(n, r, centred):
  up, down = pair.up_matrix(n, r, centred), pair.down_matrix(r * n, r, centred)
  np.testing.assert_allclose(down @ up, np.eye(n), atol=2e-14)
  np.testing.assert_allclose(up.sum(1), 1.0, atol=2e-14)
  np.testing.assert_allclose(down.sum(1), 1.0, atol=2e-14)


def test_a_one_sided_nyquist_bin_is_no_pair():
  """What the split is for: cropping the shifted spectrum keeps one of its two aliases."""
  n = 8
  x = np.cos(np.pi * np.arange(n))[:, None]  # the wave of the Nyquist bin
  wide = np.zeros((16, 1), complex)
  wide[4:12] = np.fft.fftshift(np.fft.fft(x, axis=0), axes=0)
  up = np.fft.ifft(np.fft.ifftshift(2 * wide, axes=0), axis=0).real
  narrow = np.fft.fftshift(np.fft.fft(up, axis=0), axes=0)[4:12] / 2
  again = np.fft.ifft(np.fft.ifftshift(narrow, axes=0), axis=0).real
  assert np.abs(again - x).max() > 0.4
  np.testing.assert_allclose(pair.down_matrix(2 * n, 2) @ (pair.up_matrix(n, 2) @ x), x, atol=2e-14)


@both_grids
@pytest.mark.parametrize(("h", "w", "r"), [(8, 8, 2), (5, 12, 2), (16, 3, 2), (4, 6, 3)])
def test_on_pictures_in_float32(h, w, r, centred):
  low = jnp.asarray(noise(2, h, w, 3), jnp.float32)
  high = jnp.asarray(noise(2, r * h, r * w, 3), jnp.float32)
  up, down = pair.up(low, r, centred), pair.down(high, r, centred)
  matrices = pair.up_matrix(h, r, centred), pair.up_matrix(w, r, centred)
  want = np.einsum("hi,wj,bijc->bhwc", *matrices, np.asarray(low, np.float64))
  np.testing.assert_allclose(up, want, atol=1e-5)
  np.testing.assert_allclose(pair.down(up, r, centred), low, atol=1e-5)
  lp, hp = pair.low_pass(high, r, centred), pair.high_pass(high, r, centred)
  np.testing.assert_allclose(pair.down(hp, r, centred), 0 * low, atol=1e-5)
  np.testing.assert_allclose(pair.down(lp, r, centred), down, atol=1e-5)
  np.testing.assert_allclose(lp + hp, high, atol=1e-6)
  assert np.abs(hp).max() > 0.1
  np.testing.assert_allclose(pair.up(jnp.full((1, h, w, 2), 0.7), r, centred), 0.7, atol=1e-6)


def test_a_wave_below_the_limit_is_kept_and_one_above_is_dropped():
  j = np.arange(16)
  for k, kept in ((0, 1.0), (3, 1.0), (5, 0.0), (8, 0.0)):
    wave = jnp.asarray(np.cos(2 * np.pi * k * j / 16), jnp.float32)[None, :, None, None]
    wave = jnp.broadcast_to(wave, (1, 16, 4, 1))
    np.testing.assert_allclose(pair.low_pass(wave), kept * wave, atol=1e-6)


def test_centred_values_lie_amid_the_values_that_they_cover():
  """A slow wave, sampled at the centres of its pixels, is met at the centres of finer pixels."""
  wave = lambda n: np.sin(2 * np.pi * (np.arange(n) + 0.5) / n)[:, None]
  for r in (2, 3):
    np.testing.assert_allclose(pair.up_matrix(8, r, True) @ wave(8), wave(8 * r), atol=1e-14)
    np.testing.assert_allclose(pair.down_matrix(8 * r, r, True) @ wave(8 * r), wave(8), atol=1e-14)
  assert np.abs(pair.up_matrix(8, 2) @ wave(8) - wave(16)).max() > 0.1


def test_the_result_has_the_input_s_type():
  got = jax.eval_shape(pair.up, jax.ShapeDtypeStruct((1, 6, 4, 2), jnp.float32))
  assert (got.shape, got.dtype) == ((1, 12, 8, 2), jnp.float32)


@pytest.mark.parametrize(
  ("call", "told"),
  [
    (lambda: pair.down_matrix(7, 2), "from n=7"),
    (lambda: pair.down(jnp.zeros((1, 8, 9, 1))), "from n=9"),
    (lambda: pair.up_matrix(8, 1), "up by r=1"),
    (lambda: pair.down_matrix(8, 0), "down by r=0"),
    (lambda: pair.up_matrix(0, 2), "n=0"),
  ],
)
def test_sizes_that_make_no_pair_are_refused(call, told):
  with pytest.raises(UserError, match=told):
    call()
