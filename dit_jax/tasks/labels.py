"""What a stage's `labels` block and the class table of its data make of its labels.

`labels.fusion` "none": classes and "no class", which replaces a label as often as `label_drop`
says. Else nodes of the class tree: `p_drop` and `p_null` say what is removed (core.tiers.Drop), and
there is a node for "no class" where p_null is above 0.
"""

from dit_jax.core.errors import UserError
from dit_jax.core.tiers import Drop, Tiers
from dit_jax.data.hierarchy import ClassTable
from dit_jax.nn.label import FUSIONS

_STAGES = ("dgt", "dct", "dit")


def fields(block, meta: dict) -> dict:
  """The fields of a model that say what its labels are."""
  told = {"num_classes": len(meta["classes"]["children"])}
  fusion = _settings(block)["fusion"]
  return told if fusion == "none" else told | {"tiers": tree(block, meta), "fusion": fusion}


def tree(block, meta: dict) -> Tiers:
  """The tree whose nodes are a stage's labels.

  Raises:
    UserError: tiers for data without classes, or with one.
  """
  settings, children = _settings(block), meta["classes"]["children"]
  if settings["fusion"] == "none":
    return Tiers((len(children),))
  table = ClassTable.from_json(meta["classes"])
  check_classes(table)
  return Tiers(table.sizes, table.maps, null=settings["p_null"] > 0)


def drop(block, meta: dict, label_drop: float) -> Drop:
  """What a stage's training shows of its labels."""
  settings = _settings(block)
  if settings["fusion"] == "none":
    return Drop(tree(block, meta), p_null=label_drop)
  return Drop(tree(block, meta), p_drop=settings["p_drop"], p_null=settings["p_null"])


def meaning(block, meta: dict) -> tuple:
  """What the rows of a stage's label tables stand for; equal for tables that can be exchanged."""
  settings = _settings(block)
  null = settings["p_null"] > 0 or settings["fusion"] == "none"
  return settings["fusion"], null, meta["classes"]


def tiered(config) -> bool:
  """Whether any stage of a recipe has tiers."""
  return any(_settings(config[name])["fusion"] != "none" for name in _stages(config))


def check(config) -> None:
  """Raises UserError where the `labels` blocks of a recipe make no sense, alone or together."""
  layouts = {}
  for name in _stages(config):
    settings = _settings(config[name])
    if settings["fusion"] not in ("none", *FUSIONS):
      raise UserError(
        f"{name}.labels.fusion={settings['fusion']!r} is unknown; choose 'none' or one of "
        f"{', '.join(FUSIONS)}."
      )
    for field in ("p_drop", "p_null"):
      if not 0 <= settings[field] <= 1:
        raise UserError(f"{name}.labels.{field}={settings[field]} must be 0 to 1.")
    layouts[name] = settings["fusion"] != "none" and ("null" if settings["p_null"] else "bare")
  if len(set(layouts.values())) > 1:
    raise UserError(
      f"one label draws map and picture, so {' and '.join(layouts)} must have labels with the same "
      "nodes; give both tiers (labels.fusion) or neither, and both labels.p_null or neither."
    )


def check_guidance(config, settings) -> None:
  """Raises UserError where guidance would lead away from labels that no training showed.

  Args:
    config: of the run.
    settings: sampling.generate.Settings.
  """
  content = content_block(config)
  scales = [("guidance", settings.guidance, content, content.diffusion.label_drop)]
  if "dgt" in config.stages:
    scales.append(("map_guidance", settings.map_guidance, config.dgt, config.dgt.label_drop))
  for name, scale, block, label_drop in scales:
    labels = _settings(block)
    tiers = labels["fusion"] != "none"
    if scale != 1 and not (labels["p_drop"] or labels["p_null"] if tiers else label_drop):
      raise UserError(
        f"{name}={scale} leads away from a coarser label, and training with "
        f"{'labels.p_drop' if tiers else 'label_drop'}=0 shows none; train with more, or take "
        f"{name}=1."
      )


def check_classes(table: ClassTable) -> None:
  """Raises UserError unless a class table has something to tell apart."""
  if table.num_classes < 2:
    raise UserError(
      f"labels.fusion needs a tree of classes, and the data has {table.num_classes or 'none'}"
      f"{': ' if table.children else ''}{', '.join(table.children)}; give a folder of classes, "
      "root/super/sub/*, or set labels.fusion=none."
    )


def content_block(config):
  """The block of the stage that draws pictures."""
  return config.dit if "dit" in config.stages else config.dct


def _stages(config) -> list[str]:
  return [name for name in _STAGES if name in config.stages]


def _settings(block) -> dict:
  """A stage's `labels`; a run from before there were tiers has none."""
  return {"fusion": "none", "p_drop": 0.1, "p_null": 0.0} | dict(block.get("labels", {}))
