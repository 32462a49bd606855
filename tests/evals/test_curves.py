"""Curves: SVG of numbers alone, whatever the series; long ones keep their mean and their range."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from dit_jax.evals import curves

NOISY = {i: float(x) for i, x in enumerate(np.random.default_rng(0).normal(size=1003), 5)}


@pytest.mark.parametrize(
  "series",
  [
    {7: 1.0},
    {0: 0.0, 1: 0.0},
    {1: -3.0, 2: 5.0},
    {1: 1e-9, 400_000: 1e9},
    {1: 1e300, 2: -1e300},
    {3: 2.0, 10**15: 1.0},
    NOISY,
  ],
  ids=["one", "zeros", "signs", "decades", "huge", "far", "noisy"],
)
def test_any_series_becomes_an_element(series):
  text = curves.svg(series)
  root = ET.fromstring(text)
  assert root.tag.endswith("}svg")
  said = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
  assert said
  assert all(re.fullmatch(r"-?[\d.]+(e[+-]?\d+)?[kM]?", word) for word in said)
  assert text == curves.svg(series)  # a page is the same for the same files
  assert len(text) < 60_000


def test_dots_mark_every_value():
  count = lambda **how: curves.svg({1: 3.0, 2: 1.0, 3: 2.0}, **how).count("<use")
  assert count(dots=True) == count() + 3


def test_bins_keep_the_mean_and_the_range():
  steps, low, mean, high = curves.binned(NOISY)
  values = np.asarray(list(NOISY.values()))
  assert len(steps) == curves.BINS
  assert (low.min(), high.max()) == (values.min(), values.max())
  assert mean.mean() == pytest.approx(values.mean(), abs=5e-3)  # bins of 4 and of 5
  assert np.all((low <= mean) & (mean <= high))
  assert steps[-1] == max(NOISY)
  short = {1: 4.0, 5: 2.0}
  for got in curves.binned(short)[1:]:
    np.testing.assert_array_equal(got, [4.0, 2.0])


def test_scales():
  assert curves.wants_log([0.1, 5.0])
  assert not curves.wants_log([0.1, 2.0])
  assert not curves.wants_log([0.0, 500.0])
  assert not curves.wants_log([-1.0, 500.0])
  assert curves.curve("grad_norm", {1: 0.1, 2: 5.0}).note == "log scale"
  assert curves.curve("loss", {1: 0.1, 2: 1.23456}) == curves.curve("loss", {1: 0.1, 2: 1.23456})
  assert curves.curve("loss", {1: 0.1, 2: 1.23456}).last == "1.235"
  assert curves.curve("loss", {}) == ("loss", "–", "", "never finite")


def test_ticks_are_told_apart():
  assert curves.apart([0.0, 0.5, 1.0]) == ["0", "0.5", "1"]
  assert curves.apart([28.2671, 28.2672, 28.2673]) == ["28.2671", "28.2672", "28.2673"]
  assert curves.apart([0.1, 10.0, 1000.0]) == ["0.1", "10", "1e+03"]
  assert curves.apart([1.5]) == ["1.5"]
  texts = re.findall(r">([\d.]+)</text>", curves.svg({1: 28.2671, 2: 28.2679}))
  assert len(texts) == len(set(texts))


def test_counts_and_constants():
  assert [curves.count(x) for x in (0, 250, 1500, 400_000, 2e6)] == [
    "0",
    "250",
    "1.5k",
    "400k",
    "2M",
  ]
  assert curves.constant({1: 2.0, 2: 2.0})
  assert not curves.constant({1: 2.0})
  assert not curves.constant({1: 2.0, 2: 2.001})
