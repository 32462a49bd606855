"""Laws of a base: every array is accounted for, and what no rule allows is refused by name."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy_dit as ref
import pytest
import safetensors.numpy

from dit_jax.core import config as configs
from dit_jax.core import rng
from dit_jax.core import tree as trees
from dit_jax.core.errors import UserError
from dit_jax.data.hierarchy import ClassTable
from dit_jax.models.dit import DiT
from dit_jax.tasks import autoencoder, base, base_model, sizes
from dit_jax.tasks import dit as dit_stage
from dit_jax.training import peft
from dit_jax.weights import ours

RECIPE = pathlib.Path(__file__).resolve().parents[2] / "configs" / "dit_xl.py"
SMALL = dict(depth=2, width=8, num_heads=2, patch=2, grid=(4, 4))
INPUTS = jnp.zeros((1, 4, 4, 4)), jnp.zeros(1), jnp.zeros(1, jnp.int32)


@functools.cache
def shapes(name="full", **fields):
  """(trained, {BASE: frozen}) of a model of three classes."""
  how = peft.Peft(name)
  model = DiT(**{**SMALL, "num_classes": 3, **how.fields, **fields})
  init = lambda key: model.init(key, *INPUTS)
  return jax.eval_shape(how.init(init), rng.abstract_key()), how.base(init)


def arrays(**fields):
  """A base of five classes, as `read` gives it."""
  flat = trees.flatten(ref.random_params(shapes(**{"num_classes": 5, **fields})[0])["params"])
  return {name: np.array(x) for name, x in flat.items()}


def line(start, head):
  (found,) = [text for text in start.report if text.startswith(head)]
  return found


@pytest.mark.parametrize("name", peft.MASKS)
def test_every_array_is_loaded_drawn_anew_or_skipped(name):
  params, frozen = shapes(name)
  have = arrays()
  start = base.fit("x", have, params, frozen)
  kept = trees.flatten(start.frozen.get(peft.BASE, {}))
  assert set(kept) == set(trees.flatten(frozen.get(peft.BASE, {})))
  wanted = trees.flatten(params)
  renewed = set(wanted) - set(start.params)
  stock = {f"params/{n}" for n in have} - {"params/label/table/embedding"}
  assert renewed == set(wanted) - stock
  for n, x in {**start.params, **kept}.items():
    np.testing.assert_array_equal(x, have[n.removeprefix("params/")])
  assert line(start, "loaded").startswith(f"loaded {len(have) - 1} arrays, ")
  assert line(start, "re-initialised").startswith(f"re-initialised {len(renewed)}: ")
  assert line(start, "skipped") == "skipped 1: params/label/table/embedding [6, 8]"
  if name == "difffit":
    for told in ("/block_*/norm1/scale [8] x 2", "gamma_mlp [8] x 2", "final/norm/bias [8]"):
      assert told in line(start, "re-initialised")


def test_a_table_of_as_many_classes_is_kept_and_one_of_another_kind_is_not():
  params, frozen = shapes("bitfit", num_classes=5)
  start = base.fit("x", arrays(), params, frozen)
  assert "params/label/table/embedding" in start.params
  assert "label tables 1: params/label/table/embedding [6, 8], for the" in line(start, "loaded")
  assert start.report[1:] == ("re-initialised 0", "skipped 0")
  start = base.fit("x", arrays(), params, frozen, same_labels=False)
  assert line(start, "re-initialised") == "re-initialised 1: params/label/table/embedding [6, 8]"
  assert line(start, "skipped") == "skipped 1: params/label/table/embedding [6, 8]"
  other = arrays()
  other["label/child/embedding"] = other.pop("label/table/embedding")
  start = base.fit("x", other, params, frozen)
  assert line(start, "re-initialised") == "re-initialised 1: params/label/table/embedding [6, 8]"
  assert line(start, "skipped") == "skipped 1: label/child/embedding [6, 8]"


def test_rows_of_label_tables_mean_the_same_for_the_same_tree_and_fusion_alone():
  config = recipe("x")
  meta = lambda *names: {"classes": ClassTable.from_paths([("a", n) for n in names]).to_json()}
  facts = meta("x", "y") | {"config": configs.to_json(config)}
  same = lambda c, facts_: base_model.same_labels(c, "dit", facts_, facts)
  assert same(config, meta("x", "y"))
  assert not same(config, meta("x", "z"))
  tiers = recipe("x")
  tiers.dit.labels.fusion = "swap"  # as many rows: of two classes and one that holds both
  assert not same(tiers, meta("x", "y"))
  assert base_model.same_labels(config, "dit", meta("x", "z"), {})  # a file says nothing


def test_other_dtypes_are_cast_and_said():
  have = {n: x.astype(ml_dtypes.bfloat16) for n, x in arrays().items()}
  start = base.fit("x", have, *shapes("finediffusion"))
  assert {x.dtype.name for x in start.params.values()} == {"float32"}
  assert f"{len(have) - 1} arrays cast" in line(start, "loaded")


@pytest.mark.parametrize(
  ("fields", "told"),
  [
    (dict(width=16), r"attn/proj/bias: float32\[16\] -> float32\[8\]"),
    (dict(depth=3), r"blocks/block_02/\S+: float32\S+ -> absent"),
    (dict(depth=1), r"blocks/block_01/\S+: absent -> float32"),
    (dict(patch=1), r"final/linear/bias: float32\[8\] -> float32\[32\]"),
    (dict(qk_norm=True), r"attn/k_norm/scale: float32\[4\] -> absent"),
  ],
  ids=str,
)
def test_another_model_is_refused_by_the_first_five(fields, told):
  with pytest.raises(UserError, match=told) as e:
    base.fit("x", arrays(**fields), *shapes("finediffusion"))
  assert str(e.value).count(" -> ") <= 6
  assert "\n" not in str(e.value)


def test_what_a_base_lacks_may_not_stay_as_it_was_drawn():
  """The affine of a fine-tune is no part of DiT; dropping one would change the function."""
  params, frozen = shapes("bitfit", affine=True)
  with pytest.raises(UserError, match=r"no params/\S+norm\S*/scale that fits"):
    base.fit("x", arrays(), params, frozen)
  told = r"is itself a fine-tune, with params/\S+norm1/\S+ \[8\], for which .* difffit or finediff"
  with pytest.raises(UserError, match=told.replace("params/", "")):
    base.fit("x", arrays(affine=True), *shapes("bitfit"))
  with pytest.raises(UserError, match=r"gamma_attn \[8\], .* set peft to difffit, or"):
    base.fit("x", arrays(affine=True, gamma=True), *shapes("finediffusion"))
  start = base.fit("x", arrays(affine=True), *shapes("finediffusion"))
  assert line(start, "re-initialised") == "re-initialised 1: params/label/table/embedding [4, 8]"


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "base.safetensors"
  safetensors.numpy.save_file(arrays(), path, metadata={"model": json.dumps(SMALL)})
  return path


def recipe(path, stages=("dvae", "dit"), **fields):
  c = configs.load(RECIPE, "tiny")
  c.update(init_from=str(path), peft="finediffusion", stages=stages)
  c.update(fields)
  return c


def test_a_file_is_read_whole_and_hashed_by_content(file, tmp_path):
  have, name, facts = base.read(file)
  assert json.loads(facts["model"])["num_heads"] == 2
  want = arrays()
  assert list(have) == sorted(want)
  for n, x in have.items():
    np.testing.assert_array_equal(x, want[n])
  rooted = tmp_path / "rooted.safetensors"
  safetensors.numpy.save_file({f"params/{n}": x for n, x in want.items()}, rooted)
  assert base.read(rooted)[1] == name
  want["final/linear/bias"][0] += 1
  safetensors.numpy.save_file(want, rooted)
  assert base.read(rooted)[1] != name


def test_a_start_says_where_it_is_from(file):
  start = base.start(recipe(file), "dit", *shapes("finediffusion"), {})
  assert start.record == {"path": str(file), "hash": base.read(file)[1]}
  assert all(text.startswith(f"[dit] init_from {file} (") for text in start.report)
  assert len(start.report) == 3
  assert base.start(recipe(""), "dit", *shapes(), {}) == base.Start({}, {}, {})
  with pytest.raises(UserError, match=r"peft='finediffusion' .* pretrained base; name it by init_"):
    base.start(recipe(""), "dit", *shapes("finediffusion"), {})


def told(path, config, **changes):
  """A file of ours with the stage's own arrays, which says that it is of the stage's own model."""
  model = dit_stage.make_model(config, sizes.latent_meta(config))
  net = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
  fields = {name: net[name] for name in net if name not in (*base_model.MEANS, "parent", "name")}
  init = sizes.parts(config, "dit", sizes.latent_meta(config))[0]
  shapes = jax.eval_shape(init, rng.abstract_key())
  leaves = trees.flatten(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes["params"]))
  ours.save(path, "dit", fields | changes, leaves)
  return shapes


SAID = [
  (dict(num_heads=4), r"dit\.model\.num_heads: 4 -> 2; set the stored values in the recipe"),
  (dict(max_period=5e3), r"dit\.model\.max_period: 5000.0 -> 10000.0; set"),
  (dict(grid=(8, 32)), r"data\.image_size, grid: \(8, 32\) -> \(16, 16\); set"),
  (dict(depth=3, qk_norm=True), r"depth: 3 -> 2; dit\.model\.qk_norm: True -> False; set"),
  (dict(learn_sigma=False), r"dit\.diffusion\.learn_sigma: False -> True; set"),
  (dict(strange=1), r"is of no model that can be made here .*strange"),
]


@pytest.mark.parametrize(("changes", "words"), SAID, ids=[str(changes) for changes, _ in SAID])
def test_a_file_that_says_another_model_is_refused(changes, words, tmp_path):
  """Among them those of the same shapes, which would load and compute another function."""
  config = recipe(tmp_path / "x.safetensors")
  config.peft = "full"
  params = told(config.init_from, config, **changes)
  with pytest.raises(UserError, match=words) as e:
    base.start(config, "dit", params, {}, {})
  assert "\n" not in str(e.value)


def test_a_file_of_another_kind_of_model_is_refused(tmp_path):
  config = recipe(tmp_path / "x.safetensors")
  ours.save(config.init_from, "sd-vae", {}, arrays())
  with pytest.raises(UserError, match="is of the model sd-vae, expected dit"):
    base.start(config, "dit", *shapes("finediffusion"), {})


def test_what_a_fine_tune_makes_anew_or_computes_otherwise_may_differ(tmp_path):
  config = recipe(tmp_path / "x.safetensors")
  config.peft = "full"
  params = told(config.init_from, config, num_classes=77)
  config.dit.labels.fusion = "sum"
  config.dit.model.update(remat="full", dtype="bfloat16")
  config.dit.model.attention.kind = "pro"
  assert len(base.start(config, "dit", params, {}, {}).params) == len(trees.flatten(params))


def test_a_file_from_before_there_was_a_period_has_that_of_dit(tmp_path):
  config = recipe(tmp_path / "x.safetensors")
  config.peft = "full"
  params = told(config.init_from, config)
  kind, fields, leaves = ours.load(config.init_from)
  del fields["max_period"]
  ours.save(config.init_from, kind, fields, leaves)
  base.start(config, "dit", params, {}, {})
  config.dit.model.max_period = 5e3
  with pytest.raises(UserError, match=r"max_period: 10000.0 -> 5000.0"):
    base.start(config, "dit", params, {}, {})


@pytest.mark.parametrize(
  ("stage", "change", "words"),
  [
    ("dct", dict(num_heads=4), r"dct\.model\.num_heads: 2 -> 4; set"),
    ("dct", dict(window=2), r"dct\.model\.window: 0 -> 2; set"),
    ("dct.diffusion", dict(prediction="v"), r"dct\.diffusion\.prediction: 'eps' -> 'v'; set"),
    ("dgt", dict(num_heads=4), r"dgt\.model\.num_heads: 2 -> 4; set"),
    ("dgt", dict(qk_norm=True), r"dgt\.model\.qk_norm: False -> True; set"),
    ("dct", dict(variant="XL9"), r"width: 32 -> 1152; dct\.model\.variant, num_heads: 2 -> 9; set"),
  ],
)
def test_a_checkpoint_of_another_model_is_refused(stage, change, words, tmp_path):
  old = configs.load(RECIPE.with_name("d2it_xl.py"), "tiny")
  facts = sizes.latent_meta(old) | {"config": configs.to_json(old)}
  stage, _, block = stage.partition(".")
  base_model.refuse_other(old, stage, tmp_path, facts)
  base_model.refuse_other(recipe(tmp_path), "dit", tmp_path, facts)  # base.fit tells them apart
  new = old.copy_and_resolve_references()
  if "variant" in change:
    new[stage].model = dict(change)
  else:
    new[stage][block or "model"].update(change)
  with pytest.raises(UserError, match=words):
    base_model.refuse_other(new, stage, tmp_path, facts)


def test_a_preset_is_the_fields_that_it_stands_for(tmp_path):
  old = configs.load(RECIPE)
  facts = sizes.latent_meta(old) | {"config": configs.to_json(old)}
  new = old.copy_and_resolve_references()
  del new.dit.model.variant
  new.dit.model.update(depth=28, width=1152, num_heads=16, patch=2)
  base_model.refuse_other(new, "dit", tmp_path, facts)


@pytest.mark.parametrize(
  ("change", "told"),
  [
    (lambda x: x | {"params/final/linear/bias": x["final/linear/bias"]}, "linear/bias twice"),
    (lambda x: x | {"final/linear/bias": np.ones(8, np.int8)}, "linear/bias of dtype int8"),
    (lambda x: x | {"final/linear/bias": np.full(8, np.nan, np.float32)}, "that are not finite"),
  ],
)
def test_what_no_base_holds_is_refused(file, change, told):
  safetensors.numpy.save_file(change(arrays()), file)
  with pytest.raises(UserError, match=rf"is no base: it has final/.*{told}"):
    base.read(file)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(file, kept):
  file.write_bytes(file.read_bytes()[:kept])
  with pytest.raises(UserError, match=r"no whole .safetensors file") as e:
    base.start(recipe(file), "dit", *shapes("finediffusion"), {})
  assert "\n" not in str(e.value)


def test_what_is_no_base_is_refused(file, tmp_path):
  for path, told in ((tmp_path / "nowhere", "does not exist"), (tmp_path, "is no checkpoint")):
    with pytest.raises(UserError, match=rf"init_from={path} {told}.*; give a workdir, "):
      base.place(recipe(path), "dit")
  with pytest.raises(UserError, match=r"is of one stage, and this recipe trains dgt, dct"):
    base.place(recipe(file, stages=("dvae", "dgt", "dct")), "dct")
  (tmp_path / "config.json").write_text("{}")
  with pytest.raises(UserError, match=rf"init_from={tmp_path} has no trained stage dit; give"):
    base.place(recipe(tmp_path), "dit")
  assert base.place(recipe(tmp_path), "dvae") is None
  assert autoencoder.donor(recipe(file)) is None
