"""Our own weight files: safetensors, leaves by path, and in the metadata what model they are of."""

import json

import numpy as np

from dit_jax.core.errors import UserError
from dit_jax.weights import files, limits

KEY = "dit_jax"  # of the metadata
VERSION = 1


def save(path, model: str, fields: dict, leaves: dict[str, np.ndarray]) -> None:
  """Writes the leaves of a model.

  Args:
    path: of the new file; see `files.new_path`.
    model: "dit" or "sd-vae".
    fields: of the model's class, as JSON can hold them.
    leaves: by path, "blocks/block_00/attn/qkv/kernel".
  """
  text = json.dumps({"version": VERSION, "model": model, **fields}, sort_keys=True)
  files.save_safetensors(path, leaves, {KEY: text})


def load(path) -> tuple[str, dict, dict[str, np.ndarray]]:
  """(model, fields, leaves) of a file that `save` wrote; lists come back as tuples.

  Raises:
    UserError: the file is torn, of a later version, not one of ours, or says fields that no model
      has; whether its sizes are those of its leaves is for `limits.check`.
  """
  leaves, metadata = files.load_safetensors(path)
  return *facts(path, metadata), leaves


def facts(path, metadata: dict[str, str]) -> tuple[str, dict]:
  """(model, fields) of a file's metadata; raises UserError as `load` does."""
  try:
    told = json.loads(metadata[KEY])
    version, model = told.pop("version"), told.pop("model")
  except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as e:
    raise UserError(
      f"{path} does not say what model it is of; make it with python -m dit_jax.convert --to=ours."
    ) from e
  if version != VERSION:
    raise UserError(f"{path} is of version {version!r}, expected {VERSION}; convert it again.")
  fields = {key: tuple(x) if isinstance(x, list) else x for key, x in told.items()}
  try:
    limits.check_fields(model, fields)
  except UserError as e:
    raise limits.no_model(path, e) from e
  return model, fields
