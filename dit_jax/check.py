"""Says what a recipe will cost, and what a data set holds, before anything is trained.

python -m dit_jax.check --config=configs/d2it_xl.py [--target=v5e:4x4] [--json]
python -m dit_jax.check --data=DIR [--json]
"""

import collections
import functools
import json
import types

from absl import flags
from ml_collections import config_flags

from dit_jax import train
from dit_jax.core import cli, targets
from dit_jax.core import config as configs
from dit_jax.core.errors import UserError
from dit_jax.data import sources
from dit_jax.tasks import abstract, sizes
from dit_jax.training import memory

# Tokens below which both kinds of attention take as long as reading and writing their arrays does
# on an accelerator: the roofline, at head dim 72 in bfloat16.
PAYS_FROM = 512

FLAGS = flags.FlagValues()
_CONFIG = config_flags.DEFINE_config_file(
  "config", help_string="A recipe.", lock_config=True, flag_values=FLAGS
)
_DATA = flags.DEFINE_string("data", "", "An image folder.", flag_values=FLAGS)
_TARGET = flags.DEFINE_string(
  "target", "", "Compile for a machine that need not be here: v5e:4x4.", flag_values=FLAGS
)
_JSON = flags.DEFINE_bool("json", False, "One JSON object on stdout.", flag_values=FLAGS)


def main():
  if (_CONFIG.value is None) == (not _DATA.value):
    raise UserError("give either --config=FILE.py or --data=DIR; see --help.")
  facts = of_data(_DATA.value) if _DATA.value else of_config(_CONFIG.value, _TARGET.value)
  print(json.dumps(facts, indent=2) if _JSON.value else as_text(facts))


def of_config(config, target: str = "") -> dict:
  """Sizes of a recipe; see README for the fields.

  Args:
    config: the recipe.
    target: a machine of core.targets, whose compiler counts what the activations take; "" estimates
      them for the devices that are here, before any compiler fuses.
  """
  _, mesh = train.check_recipe(config, devices=_devices(target))
  classes, note = _classes(config)
  measured = sizes.measure(config, classes, mesh)
  if target:
    for name in config.stages:
      compile_ = functools.partial(abstract.compile_step, config, name, classes, mesh)
      program = memory.compiled(name, compile_)
      measured["activation_bytes"][name] = program.memory_analysis().temp_size_in_bytes
  return {
    "params": measured["params"],
    "trainable": sum(measured["trainable"].values()),
    "tokens": sizes.tokens(config),
    "flops_per_image": measured["flops_per_image"],
    "pro_blocks": sizes.pro_blocks(config),
    "bytes_per_device": {
      # Stages run one after the other.
      "state": max(measured["state_bytes"].values()),
      "activations": max(measured["activation_bytes"].values()),
    },
    "classes": {"children": classes[0], "superclasses": classes[1], "note": note},
    "devices": mesh.devices.size,
    "config": json.loads(configs.to_json(config)),
  }


def _devices(target: str):
  if not target:
    return None
  try:
    return targets.devices(target)
  except (RuntimeError, ValueError, ImportError) as e:
    reason = str(e).splitlines()[0]
    raise UserError(
      f"--target={target} cannot be compiled for here ({reason}); give one as {targets.EXAMPLES}, "
      "and install the extra tpu or cuda."
    ) from e


def _classes(config) -> tuple[tuple[int, ...], str]:
  """Classes by level counted from the data, or what the recipe expects where the data is absent."""
  absent = "data.path is empty"
  if config.data.path or config.data.source != "folder":
    try:
      return sources.open_source(config.data, "all").classes.sizes, "counted from the data"
    except UserError as e:
      if not isinstance(e.__cause__, ImportError):  # a packaged set that is not installed
        raise
      absent = str(e)
  return config.data.classes, f"expected by the recipe: {absent}"


def of_data(path: str) -> dict:
  """The class table of a folder: names, parents and counts."""
  wanted = types.SimpleNamespace(source="folder", path=path, image_size=64, holdout=0, only=())
  source = sources.open_source(wanted, "all")
  table, counts = source.classes, collections.Counter(source.labels.tolist())
  return {
    "images": len(source),
    "classes": {"children": len(table.children), "superclasses": len(table.superclasses)},
    "table": [
      {"id": i, "name": name, "superclass": table.superclasses[parent], "images": counts[i]}
      for i, (name, parent) in enumerate(zip(table.children, table.parents, strict=True))
    ],
    "empty_folders": list(source.empty),
  }


def as_text(facts: dict) -> str:
  """The same facts as lines for a person."""
  if "table" in facts:
    head = "{images:,} images, {classes[children]} classes in {classes[superclasses]} superclasses"
    rows = [
      f"{r['id']:5d}  {r['images']:6d}  {r['superclass']} / {r['name']}" for r in facts["table"]
    ]
    empty = [f"empty: {name}" for name in facts["empty_folders"]]
    return "\n".join([head.format(**facts), *rows, *empty])
  classes, per_device = facts["classes"], facts["bytes_per_device"]
  lines = [
    f"classes  {classes['children']} in {classes['superclasses']} superclasses ({classes['note']})",
    "tokens   {base} base, {refined_mean} refined on average, {refined_max} at most".format(
      **facts["tokens"]
    ),
  ]
  for name, count in facts["params"].items():
    cost = facts["flops_per_image"][name]
    lines.append(
      f"{name:8s} {count / 1e6:9.2f} M parameters, {cost['forward'] / 1e9:9.1f} GFLOP forward, "
      f"{cost['train'] / 1e9:9.1f} GFLOP a training step, an image"
    )
    lines += _pro_lines(name, facts["pro_blocks"].get(name, {}))
  total = sum(facts["params"].values())
  if (trained := facts["trainable"]) != total:
    lines.append(f"peft     {trained:,} parameters are trained, {trained / total:.3%} of all")
  lines.append(
    "memory   {state:.2f} GiB of state, {activations:.2f} GiB of activations".format(
      **{name: size / 2**30 for name, size in per_device.items()}
    )
    + f" on each of {facts['devices']} devices, each at its largest stage"
  )
  return "\n".join(lines)


def _pro_lines(name: str, blocks: dict[str, list[int]]) -> list[str]:
  """Where a stage's attention is prob-sparse, and whether that can pay."""
  lines = []
  for tokens, numbers in blocks.items():
    line = f"{name:8s} ProAttention in blocks {', '.join(map(str, numbers))} ({tokens} tokens)"
    if int(tokens) < PAYS_FROM:
      line += f"; warning: dense attention is as fast or faster below {PAYS_FROM} tokens"
    lines.append(line)
  return lines


if __name__ == "__main__":
  cli.run(main, FLAGS)
