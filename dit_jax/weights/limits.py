"""What a file may say of its model: fields of known kinds, and sizes that its own arrays bear out.

A few bytes can name a model of any size, and whoever makes its shapes pays for them. So nothing is
made of a file's fields before they have passed here, where nothing is made.
"""

import math
import reprlib

import numpy as np

from dit_jax.core.errors import UserError

MOST = 2**16  # of a width, a side, a number of heads or of channels
MOST_CLASSES = 2**24
MOST_LEVELS = 8
MOST_BLOCKS = 2**8  # DiT-XL has 28; to trace one takes 20 ms of a processor
ANY_FILE = 2**20  # numbers that one array may have whatever the file holds: diffusers' positions


def _is_size(x) -> bool:
  return type(x) is int and 1 <= x <= MOST


def _are_sizes(x, low: int, high: int) -> bool:
  return type(x) is tuple and low <= len(x) <= high and all(map(_is_size, x))


SIZE = (_is_size, f"a whole number from 1 to {MOST}")
SIDES = (lambda x: _are_sizes(x, 2, 2), f"two whole numbers from 1 to {MOST}")
LEVELS = (
  lambda x: _are_sizes(x, 1, MOST_LEVELS),
  f"1 to {MOST_LEVELS} whole numbers from 1 to {MOST}",
)
CLASSES = (
  lambda x: type(x) is int and 0 <= x <= MOST_CLASSES,
  f"a whole number from 0 to {MOST_CLASSES}",
)
POSITIVE = (lambda x: type(x) in (int, float) and 0 < x < math.inf, "a finite number above 0")
FLAG = (lambda x: type(x) is bool, "true or false")
TEXT = (lambda x: type(x) is str, "text")
NOTHING = (lambda x: x is None, "null: a class tree is not kept in such a file")
FIELDS = {  # of models.dit.DiT and models.sd_vae.AutoencoderKL, but for how they are computed
  "dit": {
    **dict.fromkeys(("depth", "width", "num_heads", "patch", "z_channels"), SIZE),
    **dict.fromkeys(("learn_sigma", "qk_norm", "affine", "gamma"), FLAG),
    "grid": SIDES,
    "num_classes": CLASSES,
    "max_period": POSITIVE,
    "tiers": NOTHING,
    "fusion": TEXT,
  },
  "sd-vae": {
    "block_out_channels": LEVELS,
    "layers_per_block": SIZE,
    "latent_channels": SIZE,
    "scaling_factor": POSITIVE,
  },
}
OPTIONAL = {*("qk_norm", "affine", "gamma", "max_period", "tiers", "fusion"), "scaling_factor"}


def no_model(path, reason) -> UserError:
  """The error of a file whose fields make no model, for a reason."""
  return UserError(
    f"{path} is of no model that can be made here ({str(reason).rstrip('.')}); download or convert "
    "it again."
  )


def check_fields(model: str, fields: dict) -> None:
  """Raises UserError unless the fields are known ones of the model, of their kinds."""
  if not isinstance(model, str) or model not in FIELDS:
    raise UserError(f"unknown model {reprlib.repr(model)}, known are {', '.join(FIELDS)}")
  for name, value in fields.items():
    if name not in FIELDS[model]:
      raise UserError(f"unknown field {reprlib.repr(name)}")
    sound, wanted = FIELDS[model][name]
    if not sound(value):
      raise UserError(f"{name}={reprlib.repr(value)} must be {wanted}")


def check(model: str, fields: dict, arrays: dict[str, np.ndarray]) -> None:
  """Refuses fields of a model that has more blocks or larger arrays than the file.

  Args:
    model: "dit" or "sd-vae".
    fields: of the model's class.
    arrays: all that the file holds, by its own names.

  Raises:
    UserError: says the first field that is wrong; as `check_fields` does, too.
  """
  check_fields(model, fields)
  if lacking := [name for name in FIELDS[model] if name not in {*fields, *OPTIONAL}]:
    raise UserError(f"the fields {', '.join(lacking)} are missing")
  numbers = max(ANY_FILE, sum(x.size for x in arrays.values()))
  blocks, fewest, largest = (_dit if model == "dit" else _sd_vae)(fields)
  if blocks > MOST_BLOCKS or blocks * fewest > len(arrays):
    raise UserError(
      f"{blocks:,} blocks are more than {MOST_BLOCKS}, or than {len(arrays):,} arrays can hold"
    )
  for name, count in largest.items():
    if count > numbers:
      raise UserError(f"{name}={fields[name]} asks for {count:,} numbers, and the file has less")


def _dit(fields: dict) -> tuple[int, int, dict[str, int]]:
  """Blocks, the fewest arrays a block in any format, and by field the largest array it decides."""
  width, patch = fields["width"], fields["patch"]
  cells = math.prod(side // patch for side in fields["grid"])
  largest = {"width": width**2, "grid": cells * width}
  largest["z_channels"] = fields["z_channels"] * patch**2 * width
  largest["num_classes"] = (fields["num_classes"] + 1) * width
  return fields["depth"], 10, largest


def _sd_vae(fields: dict) -> tuple[int, int, dict[str, int]]:
  """As `_dit`; a block is one of the encoder with one of the decoder."""
  channels = fields["block_out_channels"]
  largest = {"block_out_channels": 9 * max(channels) ** 2}
  largest["latent_channels"] = (2 * fields["latent_channels"]) ** 2
  return len(channels) * fields["layers_per_block"], 16, largest
