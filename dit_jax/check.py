"""Says what a recipe will cost, and what a data set holds, before anything is trained.

python -m dit_jax.check --config=configs/d2it_xl.py [--target=v5e:4x4] [--json]
python -m dit_jax.check --data=DIR [--image_size=256] [--factors=8,16] [--ratios=0.5,0.5] [--json]

Pictures of the data with their grain maps go to --sheet=check.png; with --config the data is looked
at only where --sheet is given. --data is whatever data.path may be, or tfds:NAME.
"""

import functools
import json

from absl import flags
from ml_collections import config_flags

from dit_jax import train
from dit_jax.core import cli, targets
from dit_jax.core import config as configs
from dit_jax.core.errors import UserError
from dit_jax.data import sources
from dit_jax.tasks import abstract, autoencoder, data_report, dvae, sizes
from dit_jax.training import memory

# Tokens below which both kinds of attention take as long as reading and writing their arrays does
# on an accelerator: the roofline, at head dim 72 in bfloat16.
PAYS_FROM = 512
COUNTED = "counted from the data"

FLAGS = flags.FlagValues()
_CONFIG = config_flags.DEFINE_config_file(
  "config", help_string="A recipe.", lock_config=True, flag_values=FLAGS
)
_DATA = flags.DEFINE_string("data", "", "A data set: docs/data.md.", flag_values=FLAGS)
_TARGET = flags.DEFINE_string(
  "target", "", "Compile for a machine that need not be here: v5e:4x4.", flag_values=FLAGS
)
_SIZE = flags.DEFINE_integer("image_size", 256, "Pixels a side, with --data.", flag_values=FLAGS)
_FACTORS = flags.DEFINE_list(
  "factors", ["8", "16"], "Pixels a side of a code, finest first, with --data.", flag_values=FLAGS
)
_RATIOS = flags.DEFINE_list(
  "ratios", ["0.5", "0.5"], "Share of a grain, coarsest first, with --data.", flag_values=FLAGS
)
_SHEET = flags.DEFINE_string(
  "sheet",
  None,
  "Where pictures of the data go, with --data check.png; empty for none.",
  flag_values=FLAGS,
)
_JSON = flags.DEFINE_bool("json", False, "One JSON object on stdout.", flag_values=FLAGS)


def main():
  if (_CONFIG.value is None) == (not _DATA.value):
    raise UserError("give either --config=FILE.py or --data=DIR; see --help.")
  if _DATA.value:
    factors, ratios = _numbers("factors", int), _numbers("ratios", float)
    sheet = "check.png" if _SHEET.value is None else _SHEET.value
    facts = of_data(_DATA.value, _SIZE.value, factors, ratios, sheet)
  else:
    _refuse_data_flags()
    facts = of_config(_CONFIG.value, _TARGET.value)
    if _SHEET.value is not None and facts["classes"]["note"] == COUNTED:
      facts["data"] = of_recipes_data(_CONFIG.value, _SHEET.value)
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
      return sources.open_source(config.data, "all").classes.sizes, COUNTED
    except UserError as e:
      if not isinstance(e.__cause__, ImportError):  # a packaged set that is not installed
        raise
      absent = str(e)
  return config.data.classes, f"expected by the recipe: {absent}"


def _numbers(name: str, kind) -> tuple:
  """The values of a flag that is a list."""
  words = FLAGS[name].value
  try:
    return tuple(kind(word) for word in words)
  except ValueError:
    raise UserError(
      f"--{name}={','.join(words)} must be numbers with commas between them, like "
      f"{','.join(FLAGS[name].default)}."
    ) from None


def _refuse_data_flags() -> None:
  given = [f"--{name}" for name in ("image_size", "factors", "ratios") if FLAGS[name].present]
  if given:
    raise UserError(
      f"{', '.join(given)} and --config: a recipe has its own; set --config.data.image_size, "
      "--config.dvae.model.factors or --config.dvae.ratios."
    )


def of_data(path: str, image_size=256, factors=(8, 16), ratios=(0.5, 0.5), sheet: str = "") -> dict:
  """What a data set holds; see tasks.data_report.

  Args:
    path: of the images, or "tfds:NAME".
    image_size: pixels a side that they are scaled to.
    factors: pixels a side of a code, finest first.
    ratios: share of regions a grain, coarsest first.
    sheet: a PNG file for pictures with their grain maps; "" writes none.
  """
  if not factors or min(factors) < 1 or list(factors) != sorted(set(factors)):
    raise UserError(f"--factors={_commas(factors)} must be pixels, ascending, like 8,16.")
  if len(ratios) != len(factors):
    raise UserError(
      f"--ratios={_commas(ratios)} must give one share a factor of --factors={_commas(factors)}."
    )
  source = sources.open_source(sources.block_at(path, image_size), "all")
  return data_report.measure(source, ratios, factors[-1], sheet)


def _commas(values) -> str:
  return ",".join(map(str, values))


def of_recipes_data(config, sheet: str = "") -> dict:
  """The same of a recipe's training images; {} where it has no grains."""
  if not sizes.latent_meta(config):
    return {}
  ratios = (1.0,) if autoencoder.pretrained(config) else tuple(config.dvae.ratios)
  source = sources.open_source(dvae.every_superclass(config.data), "train")
  return data_report.measure(source, ratios, autoencoder.of(config).factors[-1], sheet)


def as_text(facts: dict) -> str:
  """The same facts as lines for a person."""
  if "table" in facts:
    return "\n".join(data_report.lines(facts))
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
  if facts.get("data"):
    lines += ["", "training images:", *data_report.lines(facts["data"], table=False)]
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
