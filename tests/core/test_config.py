"""Laws of configs: JSON loses nothing, and a resume changes only what it may."""

import json

import ml_collections
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_jax.core import config
from dit_jax.core.errors import UserError

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
NAMES = st.text("abcdefghij_", min_size=1, max_size=8)
# Dicts stay out of lists: ConfigDict itself turns those into something else.
VALUES = st.recursive(
  LEAVES,
  lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple),
  max_leaves=8,
)
CONFIGS = st.dictionaries(NAMES, VALUES | st.dictionaries(NAMES, VALUES, max_size=3), max_size=5)


@settings(max_examples=60, deadline=None)
@given(CONFIGS)
def test_json_round_trip(fields):
  c = ml_collections.ConfigDict(fields)
  back = config.from_json(config.to_json(c))
  assert back == c
  # 1 == 1.0 == True, and (1,) != [1]: the types come back as well.
  assert repr(back.to_dict()) == repr(c.to_dict())


def test_tuples_come_back_as_tuples_at_every_depth():
  c = ml_collections.ConfigDict({"a": ((1, (2.0, "x")), []), "b": {"c": (), "d": [(1,), 2]}})
  back = config.from_json(config.to_json(c))
  assert back.a == ((1, (2.0, "x")), [])
  assert back.b.c == ()
  assert isinstance(back.b.d[0], tuple)


def test_json_is_plain_for_other_tools():
  c = ml_collections.ConfigDict({"lr": 1e-4, "dct": {"batch_size": 256}})
  assert json.loads(config.to_json(c)) == {"lr": 1e-4, "dct": {"batch_size": 256}}


@pytest.mark.parametrize("value", [object(), {1, 2}, {"a": {1: 2}}])
def test_to_json_refuses_what_cannot_come_back(value):
  with pytest.raises(UserError, match="config field x"):
    config.to_json({"x": value})


@pytest.mark.parametrize("text", ["", "[1]", '{"a": ', "3"])
def test_from_json_refuses_damaged_text(text):
  with pytest.raises(UserError, match="damaged"):
    config.from_json(text)


def test_parse_arg_types_by_default():
  defaults = dict(tiny=False, variant="XL/2", steps=10, lr=0.1)
  assert vars(config.parse_arg(None, **defaults)) == defaults
  assert vars(config.parse_arg("", **defaults)) == defaults
  arg = config.parse_arg("variant=L/2, tiny,steps=3,lr=1e-3", **defaults)
  assert vars(arg) == dict(tiny=True, variant="L/2", steps=3, lr=1e-3)
  assert config.parse_arg("tiny=false", tiny=True).tiny is False


@pytest.mark.parametrize(
  ("arg", "message"),
  [
    ("tny", "did you mean 'tiny'"),
    ("steps=x", "type int"),
    ("tiny=maybe", "type bool"),
    ("steps", "type int"),
  ],
)
def test_parse_arg_refuses(arg, message):
  with pytest.raises(UserError, match=message):
    config.parse_arg(arg, tiny=False, steps=1)


def recipe(**changes) -> ml_collections.ConfigDict:
  c = ml_collections.ConfigDict(
    {
      "seed": 0,
      "stages": ("dct",),
      "mesh": {"data": -1, "fsdp": 1},
      "data": {"path": "/a", "image_size": 256, "workers": 4},
      "sampling": {"steps": 50},
      "dct": {
        "model": {"variant": "S/2", "remat": "none"},
        "optim": {"lr": 1e-4, "schedule": "constant"},
        "batch_size": 8,
        "total_steps": 100,
        "every": {"log": 10, "save": 50},
      },
    }
  )
  c.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
  return c


@pytest.mark.parametrize(
  "change",
  [
    {"mesh__data": 4},
    {"mesh__fsdp": 2},
    {"data__path": "/b"},
    {"data__workers": 0},
    {"sampling__steps": 9},
    {"dct__model__remat": "full"},
    {"dct__every__save": 7},
    {"dct__total_steps": 200},
  ],
  ids=str,
)
def test_resume_may_change(change):
  assert config.resume_differences(recipe(), recipe(**change)) == []
  config.refuse_drift(recipe(), recipe(**change))


@pytest.mark.parametrize(
  ("change", "told"),
  [
    ({"seed": 1}, "seed: 0 -> 1"),
    ({"dct__optim__lr": 1e-3}, "dct.optim.lr: 0.0001 -> 0.001"),
    ({"data__image_size": 128}, "data.image_size: 256 -> 128"),
    ({"dct__model__variant": "B/2"}, "dct.model.variant: 'S/2' -> 'B/2'"),
    ({"stages": ("dvae", "dct")}, "stages: ('dct',) -> ('dvae', 'dct')"),
  ],
  ids=str,
)
def test_resume_may_not_change(change, told):
  assert config.resume_differences(recipe(), recipe(**change)) == [told]
  with pytest.raises(UserError, match="another config") as refused:
    config.refuse_drift(recipe(), recipe(**change))
  assert told in str(refused.value)


def test_total_steps_is_fixed_where_the_schedule_depends_on_it():
  cosine = {"dct__optim__schedule": "cosine"}
  longer = recipe(**cosine, dct__total_steps=200)
  told = config.resume_differences(recipe(**cosine), longer)
  assert told == ["dct.total_steps: 100 -> 200"]
  # From constant to cosine both fields are refused.
  assert len(config.resume_differences(recipe(), longer)) == 2


def test_new_and_lost_fields_are_differences():
  old, new = recipe(), recipe()
  new.dct.ema_decay = 0.99
  assert config.resume_differences(old, new) == ["dct.ema_decay: (absent) -> 0.99"]
  assert config.resume_differences(new, old) == ["dct.ema_decay: 0.99 -> (absent)"]


def test_an_older_run_resumes_where_new_fields_mean_what_it_did():
  old = {"seed": 0}
  new = {"seed": 0, "peft": "full", "init_from": "", "frozen_dtype": "float32"}
  assert config.resume_differences(old, new) == config.resume_differences(new, old) == []
  told = config.resume_differences(old, new | {"peft": "bitfit"})
  assert told == ["peft: (absent) -> 'bitfit'"]
  period = lambda x: {"seed": 0, "dit": {"model": {"max_period": x}}}
  assert config.resume_differences(old, period(10_000.0)) == []
  assert config.resume_differences(old, period(5e3)) == ["dit.model.max_period: (absent) -> 5000.0"]


def test_refusal_names_five_fields():
  old = ml_collections.ConfigDict({f"f{i}": 0 for i in range(8)})
  new = ml_collections.ConfigDict({f"f{i}": 1 for i in range(8)})
  with pytest.raises(UserError, match="and 3 more") as refused:
    config.refuse_drift(old, new)
  assert str(refused.value).count("0 -> 1") == 5


def test_total_steps_is_fixed_where_attention_anneals_over_a_share_of_them():
  def annealed(steps, **attention):
    c = recipe(dct__total_steps=steps)
    c.dct.model.attention = {"kind": "pro", "anneal": 0.1, "dense_snr": 0.0} | attention
    return c

  for free in ({"kind": "full"}, {"anneal": 0.0}):
    assert config.resume_differences(annealed(100, **free), annealed(200, **free)) == []
  assert config.resume_differences(annealed(100), annealed(200)) == ["dct.total_steps: 100 -> 200"]
  assert config.resume_differences(annealed(100), annealed(100, dense_snr=1.0)) == []


def test_total_steps_is_fixed_where_a_critic_starts_at_a_share_of_them():
  def critic(weight, steps):
    c = recipe(dct__total_steps=steps)
    c.dct.loss = {"disc_weight": weight}
    return c

  assert config.resume_differences(critic(0.0, 100), critic(0.0, 200)) == []
  told = config.resume_differences(critic(0.75, 100), critic(0.75, 200))
  assert told == ["dct.total_steps: 100 -> 200"]
