"""Configs: arguments of a recipe, JSON that loses nothing, and what a resume may change.

A config is a locked `ml_collections.ConfigDict`; one recipe a file, in configs/.
"""

import difflib
import json
import re
import runpy
from types import SimpleNamespace

import ml_collections

from dit_jax.core.errors import UserError

_TUPLE = "__tuple__"  # JSON has one sequence type; a config has two
_ABSENT = "(absent)"

# Dotted fields that a resumed run may change. `total_steps` is in `_may_change`, because it depends
# on the schedule; the caller of `refuse_drift` compares the data's fingerprint.
MAY_CHANGE = (
  r"mesh(\..*)?",
  r"sharding",
  r"sampling(\..*)?",
  r"evals(\..*)?",
  r"data\.path",
  r"sd_vae\.path",  # the workdir has a copy
  r"(.*\.)?remat",
  r"(.*\.)?attention\.dense_snr",
  r"(.*\.)?every(\..*)?",
  r"(.*\.)?workers",
)

# Fields that recipes once had not, by what they say of a run from then; ...: what the other says.
ADDED = {
  r"init_from": "",
  r"peft": "full",
  r"frozen_dtype": "float32",
  r"data\.taxonomy": "",
  r"data\.levels": (),
  r"data\.(split|label_key|super_key)": "",
  r"data\.background": "#ffffff",
  r".*\.labels\.fusion": "none",
  r".*\.labels\.p_drop": 0.1,
  r".*\.labels\.p_null": 0.0,
  r".*\.model\.max_period": 10_000.0,
  r".*\.hrig\.enabled": False,
  r".*\.hrig\..*": ...,  # none of it counts where it is not enabled
}


def parse_arg(arg: str | None, **defaults) -> SimpleNamespace:
  """The part behind the colon of `--config=recipe.py:variant=L/2,tiny`, typed by the defaults.

  Args:
    arg: comma-separated `key=value`; a bare `key` means True. None or "" gives the defaults.
    **defaults: every key that the recipe knows, as bool, int, float or str.

  Returns:
    A namespace with one attribute a default.

  Raises:
    UserError: an unknown key, or a value that is not of its default's type.
  """
  values = dict(defaults)
  for item in filter(None, (part.strip() for part in (arg or "").split(","))):
    key, equals, text = item.partition("=")
    if key not in defaults:
      raise UserError(
        f"config argument {key!r} is unknown{did_you_mean(key, defaults)}; "
        f"this recipe knows {', '.join(sorted(defaults)) or 'none'}."
      )
    values[key] = _read(key, text if equals else "true", type(defaults[key]))
  return SimpleNamespace(**values)


def _read(key: str, text: str, kind: type):
  if kind is bool:
    if text.lower() in ("true", "1"):
      return True
    if text.lower() in ("false", "0"):
      return False
  elif kind is str:
    return text
  else:
    try:
      return kind(text)
    except ValueError:
      pass
  raise UserError(f"config argument {key}={text!r} must be of type {kind.__name__}.")


def did_you_mean(name: str, known) -> str:
  """The text "; did you mean 'x'?" where a known name is near, else nothing."""
  near = difflib.get_close_matches(name, list(known), n=1)
  return f"; did you mean {near[0]!r}?" if near else ""


def to_json(config) -> str:
  """A config as JSON, fields sorted; tuples are marked, so that they come back.

  Raises:
    UserError: a value that is no number, string, bool, None, list, tuple or dict of those.
  """
  return json.dumps(_encode(config, ""), indent=2)


def from_json(text: str) -> ml_collections.ConfigDict:
  """The inverse of `to_json`: from_json(to_json(c)) == c; unlocked."""
  try:
    config = _decode(json.loads(text))
  except json.JSONDecodeError as e:
    raise UserError(f"a saved config is not JSON ({e}); the file is damaged.") from e
  if not isinstance(config, dict):
    raise UserError("a saved config must be one JSON object; the file is damaged.")
  return ml_collections.ConfigDict(config)


def _encode(value, path: str):
  if isinstance(value, ml_collections.ConfigDict | dict):
    out = {}
    for key in value:
      if not isinstance(key, str) or key == _TUPLE:
        raise UserError(f"config field {path or '(top)'} has the key {key!r}; keys are names.")
      out[key] = _encode(value[key], f"{path}.{key}" if path else key)
    return out
  if isinstance(value, tuple):
    return {_TUPLE: [_encode(x, path) for x in value]}
  if isinstance(value, list):
    return [_encode(x, path) for x in value]
  if value is None or type(value) in (bool, int, float, str):
    return value
  raise UserError(
    f"config field {path} is a {type(value).__name__}; "
    "use a number, string, bool, list, tuple or dict."
  )


def _decode(value):
  if isinstance(value, dict):
    if set(value) == {_TUPLE}:
      return tuple(_decode(x) for x in value[_TUPLE])
    return {key: _decode(x) for key, x in value.items()}
  return [_decode(x) for x in value] if isinstance(value, list) else value


def flatten(config) -> dict[str, object]:
  """Leaves by dotted field name; tuples and lists are leaves, an empty block is one too."""
  flat = {}
  for key in config:
    value = config[key]
    if isinstance(value, ml_collections.ConfigDict | dict) and len(value):
      flat |= {f"{key}.{name}": leaf for name, leaf in flatten(value).items()}
    else:
      flat[key] = value
  return flat


def resume_differences(old, new) -> list[str]:
  """The fields that differ and may not, as "field: old -> new", in the order of the new config."""
  old, new = flatten(old), flatten(new)
  names = list(new) + [name for name in old if name not in new]
  return [
    f"{name}: {_show(old, name)} -> {_show(new, name)}"
    for name in names
    if _differ(old, new, name) and not _may_change(old, new, name)
  ]


def refuse_drift(old, new) -> None:
  """Refuses to resume a run under another config.

  Raises:
    UserError: naming the first five fields that may not change, old -> new.
  """
  differences = resume_differences(old, new)
  if differences:
    more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
    raise UserError(
      f"the workdir was trained with another config ({'; '.join(differences[:5])}{more}); "
      "set the old values, or choose a new workdir."
    )


def _differ(old: dict, new: dict, name: str) -> bool:
  a, b = _value(old, name, new), _value(new, name, old)
  return a != b or isinstance(a, bool) != isinstance(b, bool)


def _value(flat: dict, name: str, other: dict):
  if name in flat:
    return flat[name]
  known = (value for pattern, value in ADDED.items() if re.fullmatch(pattern, name))
  value = next(known, _ABSENT)
  return other[name] if value is ... else value


def _show(flat: dict, name: str) -> str:
  return repr(flat[name]) if name in flat else _ABSENT


def _may_change(old: dict, new: dict, name: str) -> bool:
  if any(re.fullmatch(pattern, name) for pattern in MAY_CHANGE):
    return True
  block, _, field = name.rpartition(".")
  if old.get(f"{block}.loss.disc_weight"):  # the critic starts at a share of total_steps
    return False
  attention = f"{block}.model.attention"
  if old.get(f"{attention}.kind") == "pro" and old.get(f"{attention}.anneal"):  # so do its phases
    return False
  schedule = f"{block}.optim.schedule" if block else "optim.schedule"
  return field == "total_steps" and old.get(schedule) == new.get(schedule) == "constant"


def load(path, arg: str = "") -> ml_collections.ConfigDict:
  """The config of another recipe: how a variant starts from its base.

  Args:
    path: the recipe's file.
    arg: what would stand behind the colon of `--config=recipe.py:arg`.
  """
  return runpy.run_path(str(path))["get_config"](arg)
