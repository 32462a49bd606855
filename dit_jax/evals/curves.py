"""Small plots for a page: SVG that stands in the HTML, the same for the same numbers."""

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dit_jax.evals import words

LOG_FROM = 30.0  # ratio of largest to smallest from which a positive series gets a log scale
BINS = 250  # columns of a longer series: their means, with a band from least to most
_SIZE = (2.9, 1.55)  # inches of 72 points
_LINE, _GRID, _TEXT = "#2f5d8c", "#e4e4de", "#6b6b66"
_STYLE = {
  "svg.fonttype": "none",  # letters, which the page's own font draws
  "svg.hashsalt": "dit_jax",
  "font.size": 8,
  "axes.edgecolor": _GRID,
  "xtick.color": _TEXT,
  "ytick.color": _TEXT,
  "axes.unicode_minus": False,
}


class Curve(NamedTuple):
  """A plot and what stands over it.

  Attributes:
    name: the metric's.
    last: its newest value.
    svg: an element whose only text is numbers; "" where there is no finite value.
    note: what else is to be said of it.
  """

  name: str
  last: str
  svg: str
  note: str


def curve(name: str, series: Mapping[int, float], dots: bool = False) -> Curve:
  """The plot of a series.

  Args:
    name: the metric's.
    series: finite value by step, ascending.
    dots: marks every value.
  """
  if not series:
    return Curve(name, words.number(None), "", "never finite")
  last = list(series.values())[-1]
  note = "log scale" if wants_log(series.values()) else ""
  return Curve(name, words.number(last), svg(series, dots), note)


def svg(series: Mapping[int, float], dots: bool = False) -> str:
  """A series of one value or more as an <svg> element."""
  import matplotlib
  from matplotlib.figure import Figure
  from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

  steps, low, mean, high = binned(series)
  with matplotlib.rc_context(_STYLE):
    figure = Figure(_SIZE, layout="constrained")
    axes = figure.subplots()
    axes.fill_between(steps, low, high, color=_LINE, alpha=0.2, linewidth=0)
    axes.plot(steps, mean, color=_LINE, linewidth=1.4, marker="o" if dots else "", markersize=3.5)
    axes.plot(steps[-1:], mean[-1:], color=_LINE, marker="o", markersize=3.5)
    if wants_log(series.values()):
      axes.set_yscale("log")
      axes.yaxis.set_minor_formatter(NullFormatter())
    else:
      axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: count(x)))
    bottom, top = axes.get_ylim()
    ticks = [y for y in axes.get_yticks() if bottom <= y <= top]
    axes.set_yticks(ticks, apart(ticks))
    axes.grid(axis="y", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, which="both")
    axes.spines[["top", "right", "left"]].set_visible(False)
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
  text = buffer.getvalue()
  # Groups are named alike in every plot, which a page must not have.
  return re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :])


def binned(
  series: Mapping[int, float],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Last step, least, mean and most of at most `BINS` runs of values, of one length each."""
  parts = np.array_split(np.asarray(list(series.items()), np.float64), min(len(series), BINS))
  found = [(p[-1, 0], p[:, 1].min(), p[:, 1].mean(), p[:, 1].max()) for p in parts]
  steps, low, mean, high = np.transpose(found)
  return steps, low, mean, high


def wants_log(values: Iterable[float]) -> bool:
  """Whether all values are positive and far apart."""
  values = list(values)
  return min(values) > 0 and max(values) >= LOG_FROM * min(values)


def apart(ticks: Sequence[float]) -> list[str]:
  """Numbers with as few digits as tell them from each other, three at least."""
  for digits in range(3, 17):
    found = [f"{y:.{digits}g}" for y in ticks]
    gap = min(np.diff(ticks), default=1.0)
    if all(abs(float(text) - y) <= 0.02 * gap for text, y in zip(found, ticks, strict=True)):
      break
  return found


def count(value: float) -> str:
  """A number of steps in a few letters: 250, 1.5k, 400k, 2M."""
  for size, letter in ((1e6, "M"), (1e3, "k")):
    if abs(value) >= size:
      return f"{value / size:.4g}{letter}"
  return f"{value:.4g}"


def constant(series: Mapping[int, float]) -> bool:
  """Whether a series of several values never moves."""
  values = list(series.values())
  return len(values) > 1 and math.isclose(min(values), max(values), rel_tol=1e-9)
