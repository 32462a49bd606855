"""The grain transformer's maps are distributed like held-out maps, not merely right on average.

Minutes long: trains on the maps of Twemoji's training split, 4 x 4 regions each, and draws 2,000.

Power: with 339 held-out maps the difference of two cumulative shares has a deviation of at most
0.5 sqrt(1 / 2000 + 1 / 339) = 0.03, so a fine fraction that is off by a KS distance of 0.15 is
refused 19 times in 20.
"""

import dataclasses

import jax
import numpy as np
import pytest
import real_run
import scipy.stats

from dit_jax.data import grain_maps, latents, sources
from dit_jax.sampling import generate
from dit_jax.tasks import dvae, restored

SAMPLES = 2_000


def agreement(maps: np.ndarray) -> float:
  """Share of neighbouring regions, across and down, of the same grain."""
  across, down = maps[:, :, 1:] == maps[:, :, :-1], maps[:, 1:] == maps[:, :-1]
  return float((across.sum() + down.sum()) / (across.size + down.size))


def fine_fraction(maps: np.ndarray) -> np.ndarray:
  return maps.mean((1, 2))


def duplicates(maps: np.ndarray, of: np.ndarray) -> float:
  """Share of maps that occur, cell by cell, in `of`."""
  known = {m.tobytes() for m in of.astype(np.uint8)}
  return float(np.mean([m.tobytes() in known for m in maps.astype(np.uint8)]))


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
  """Training, held-out and sampled maps with their labels, and the parent of each label."""
  workdir = tmp_path_factory.mktemp("maps") / "run"
  real_run.main("maps.py", workdir)
  run = restored.load(workdir)
  cache = latents.LatentSource(workdir / "latents")
  held = sources.open_source(run.config.data, "heldout")
  held = grain_maps.GrainMaps.from_record(run.meta["thresholds"]).add_to(
    dvae.collate([held[i] for i in range(len(held))])
  )
  place = np.linspace(0, len(cache) - 1, SAMPLES).round().astype(int)
  label = np.sort(cache.labels)[place].astype(np.int32)
  settings = dataclasses.replace(run.settings(), microbatch=250)  # maps are small
  generator = generate.Generator(run.models, settings, jax.devices()[:1])
  drawn = generator.grain_maps(run.params, label, np.arange(SAMPLES, dtype=np.int32), seed=0)
  return {
    "train": (cache.grains, cache.labels),
    "held": (held["grains"], held["label"]),
    "drawn": (drawn, label),
    "parents": np.asarray(run.classes.parents),
  }


@pytest.mark.all
def test_maps_are_distributed_like_held_out_maps(maps):
  (train_maps, _), (held, held_label), (drawn, label) = (
    maps[k] for k in ("train", "held", "drawn")
  )
  independent = np.random.default_rng(0).random(drawn.shape) < train_maps.mean()
  ks = scipy.stats.ks_2samp(fine_fraction(drawn), fine_fraction(held)).statistic
  ks_independent = scipy.stats.ks_2samp(fine_fraction(independent), fine_fraction(held)).statistic
  gap = abs(agreement(drawn) - agreement(held))
  gap_independent = abs(agreement(independent.astype(int)) - agreement(held))
  supers = [s for s in np.unique(maps["parents"]) if (maps["parents"][held_label] == s).sum() >= 5]
  by_super = [
    [fine_fraction(m[maps["parents"][y] == s]).mean() for s in supers]
    for m, y in ((drawn, label), (held, held_label))
  ]
  correlation = float(np.corrcoef(*by_super)[0, 1])
  copied, held_copied = duplicates(drawn, train_maps), duplicates(held, train_maps)
  print(
    f"\ngrain maps: KS of the fine fraction {ks:.3f} (independent draws {ks_independent:.3f}), "
    f"agreement {agreement(drawn):.3f} against {agreement(held):.3f} (independent gap "
    f"{gap_independent:.3f}), superclass correlation {correlation:.3f} over {len(supers)}, exact "
    f"duplicates of training maps {copied:.4f} against {held_copied:.4f} among held-out maps"
  )
  assert ks <= 0.1 < ks_independent
  assert gap <= 0.03 < gap_independent
  assert correlation >= 0.8
  assert copied <= held_copied
