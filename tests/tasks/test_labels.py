"""A recipe's `labels` and a class table make one tree for model, training and sampling."""

import dataclasses
import pathlib
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.core import config as configs
from dit_jax.core import rng
from dit_jax.core.errors import UserError
from dit_jax.core.tiers import Drop, Tiers
from dit_jax.data.hierarchy import ClassTable
from dit_jax.sampling import generate
from dit_jax.tasks import dct, dgt, dit, labels, sizes

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
TABLE = ClassTable.from_paths([("a", "p", "x"), ("a", "p", "y"), ("b", "q", "z")])
PARENTS = ((0, 0, 1), (0, 1))


def recipe(name="d2it_xl", **fields):
  config = configs.load(CONFIGS / f"{name}.py", "tiny")
  for block in (config.get(stage) for stage in ("dgt", "dct", "dit") if stage in config):
    block.labels.update(fields)
  return config


def meta(config, table=TABLE):
  return sizes.latent_meta(config) | {"classes": table.to_json()}


def test_without_tiers_labels_are_classes_and_no_class():
  config = recipe()
  facts = {"classes": {"children": ["x", "y", "z"]}}  # all that is read
  assert labels.fields(config.dct, facts) == {"num_classes": 3}
  assert labels.tree(config.dct, facts) == Tiers((3,))
  assert labels.drop(config.dct, facts, 0.3) == Drop(Tiers((3,)), p_null=0.3)
  assert not labels.tiered(config)
  del config.dct.labels  # a run from before there were tiers
  assert labels.fields(config.dct, facts) == {"num_classes": 3}


@pytest.mark.parametrize("p_null", [0.0, 0.2])
def test_tiers_are_the_tables_levels(p_null):
  config = recipe(fusion="concat", p_drop=0.4, p_null=p_null)
  tree = Tiers((3, 2, 2), PARENTS, null=p_null > 0)
  facts = meta(config)
  assert labels.tree(config.dct, facts) == tree
  assert labels.fields(config.dct, facts) == dict(num_classes=3, tiers=tree, fusion="concat")
  assert labels.drop(config.dct, facts, 0.3) == Drop(tree, p_drop=0.4, p_null=p_null)
  assert labels.tiered(config)


@pytest.mark.parametrize("fusion", ["none", "swap", "sum", "concat"])
@pytest.mark.parametrize(("name", "module"), [("d2it_xl", dct), ("d2it_xl", dgt), ("dit_xl", dit)])
def test_every_stage_embeds_the_nodes(name, module, fusion):
  config = recipe(name, fusion=fusion)
  model = module.make_model(config, meta(config))
  stage = module.__name__.rpartition(".")[2]
  init = sizes.parts(config, stage, meta(config))[0]
  params = jax.eval_shape(init, rng.abstract_key())["params"]["label"]
  rows = {key: value["embedding"].shape[0] for key, value in params.items() if key != "fuse"}
  levels = {"level_0": 3, "level_1": 2, "level_2": 2}
  assert rows == {"none": {"table": 4}, "swap": {"table": 7}}.get(fusion, levels)
  assert ("fuse" in params) == (fusion == "concat")
  assert model.num_classes == 3


def test_training_shows_the_model_nodes_drawn_by_image():
  config = recipe(fusion="sum", p_drop=0.5, p_null=0.25)
  facts = meta(config)
  drop = labels.drop(config.dct, facts, 0.9)
  seen = []

  def spy(params, z, t, label, batch, step):
    seen.append(label)
    return jnp.zeros((*z.shape[:3], 2 * z.shape[3]))

  statistics = {"mean": np.zeros((2, 4)), "std": np.ones((2, 4))}
  args = config, "dct", facts, statistics, dct.make_model, dct.content_fn
  loss = dct.make_content(*args).loss
  assert loss.drop == drop
  n, grid = 64, facts["grid"]
  batch = {
    "moments": jnp.zeros((n, *grid, 8)),
    "grains": jnp.zeros((n, *facts["regions"]), jnp.int32),
    "label": jnp.arange(n, dtype=jnp.int32) % 3,
  }
  keys = rng.image_keys(0, 0, jnp.arange(n))
  loss = dataclasses.replace(loss, apply=spy)
  loss({}, {}, batch, keys, loss.normalizers(batch), 0)
  want = drop(rng.stream(keys, "label_drop"), batch["label"])
  np.testing.assert_array_equal(seen[0], want)
  assert set(np.asarray(want).tolist()) == set(range(8))  # children, superclasses, no class


@pytest.mark.parametrize(
  ("stage", "fields", "message"),
  [
    ("dct", dict(fusion="add"), "dct.labels.fusion='add' is unknown"),
    ("dgt", dict(p_drop=1.5), "dgt.labels.p_drop=1.5 must be 0 to 1"),
    ("dct", dict(p_null=-0.1), "dct.labels.p_null=-0.1 must be 0 to 1"),
    ("dct", dict(fusion="sum"), "dgt and dct must have labels with the same nodes"),
  ],
)
def test_labels_that_make_no_sense_are_refused(stage, fields, message):
  config = recipe()
  config[stage].labels.update(fields)
  with pytest.raises(UserError, match=message):
    sizes.check_models(config)


@pytest.mark.parametrize(
  ("labels_", "label_drop", "refused"),
  [
    (dict(fusion="none"), 0.0, True),
    (dict(fusion="none"), 0.1, False),
    (dict(fusion="sum", p_drop=0.0), 0.1, True),
    (dict(fusion="sum", p_drop=0.0, p_null=0.1), 0.0, False),
    (dict(fusion="sum", p_drop=0.1), 0.0, False),
  ],
)
@pytest.mark.parametrize("name", ["guidance", "map_guidance"])
def test_guidance_away_from_a_label_that_was_never_shown(name, labels_, label_drop, refused):
  config = recipe(**labels_)
  config.dgt.label_drop = config.dct.diffusion.label_drop = label_drop
  settings = lambda scale: generate.Settings(**dict(config.sampling) | {name: scale})
  labels.check_guidance(config, settings(1.0))
  with pytest.raises(UserError, match=rf"^{name}=2.0 leads") if refused else nullcontext():
    labels.check_guidance(config, settings(2.0))


def test_a_null_node_in_one_stage_alone_is_refused():
  config = recipe(fusion="sum")
  config.dgt.labels.p_null = 0.1
  with pytest.raises(UserError, match=r"both labels\.p_null or neither"):
    labels.check(config)
  config.dct.labels.p_null = 0.2  # other rates, and other fusions, name the same nodes
  config.dct.labels.fusion = "swap"
  labels.check(config)


@pytest.mark.parametrize(
  ("table", "told"),
  [(ClassTable(), "the data has none"), (ClassTable.from_pairs([("a", "x")]), "the data has 1: x")],
)
def test_tiers_need_classes_to_tell_apart(table, told):
  config = recipe(fusion="sum")
  with pytest.raises(UserError, match=told):
    labels.tree(config.dct, {"classes": table.to_json()})


@pytest.mark.parametrize("name", ["d2it_xl", "dit_xl"])
def test_a_recipe_with_tiers_is_sized_by_what_it_expects(name):
  """A table of 100 and one of 10 rows a stage, instead of 101."""
  plain, tiered = recipe(name), recipe(name, fusion="sum")
  sizes.check_models(tiered)
  width = {"d2it_xl": 32 + 32, "dit_xl": 32}[name]
  count = {}
  for key, config in (("plain", plain), ("tiered", tiered)):
    facts = sizes.latent_meta(config, (100, 10))
    stages = [stage for stage in config.stages if stage != "dvae"]
    inits = [sizes.parts(config, stage, facts)[0] for stage in stages]
    shapes = [jax.eval_shape(init, rng.abstract_key()) for init in inits]
    count[key] = sum(x.size for x in jax.tree.leaves(shapes))
  assert count["tiered"] - count["plain"] == 9 * width


def test_labels_may_not_change_on_resume_and_their_absence_means_none():
  old, new = recipe(), recipe()
  new.dct.labels.fusion = "sum"
  assert configs.resume_differences(old, new) == ["dct.labels.fusion: 'none' -> 'sum'"]
  for block in (old.dgt, old.dct):
    del block.labels
  del old.data.taxonomy, old.data.levels
  assert configs.resume_differences(old, recipe()) == []
  assert configs.resume_differences(old, new) == ["dct.labels.fusion: (absent) -> 'sum'"]
