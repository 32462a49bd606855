"""Folders that diffusers reads with `from_pretrained`: config.json and one file of weights."""

import json
import pathlib

import numpy as np

from dit_jax.core.errors import UserError
from dit_jax.weights import files, torch_file

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
OLD_WEIGHTS = "diffusion_pytorch_model.bin"
PIPELINE = {  # model_index.json: the class of each part, which is in the folder of its name
  "_class_name": "DiTPipeline",
  "transformer": ["diffusers", "DiTTransformer2DModel"],
  "vae": ["diffusers", "AutoencoderKL"],
  "scheduler": ["diffusers", "DDIMScheduler"],
}


def load(folder) -> tuple[dict, dict[str, np.ndarray]]:
  """The config and the arrays by name.

  Raises:
    UserError: the folder lacks one of the files, or a file is broken.
  """
  folder = pathlib.Path(folder)
  try:
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
  except OSError as e:
    raise UserError(
      f"{folder / CONFIG} cannot be read ({e.strerror}); give the folder of one model, as "
      "PIPELINE/transformer or PIPELINE/vae."
    ) from e
  except (ValueError, RecursionError) as e:
    raise UserError(f"{folder / CONFIG} is not JSON ({e}); download it again.") from e
  if not isinstance(config, dict):
    raise UserError(f"{folder / CONFIG} holds no fields; download it again.")
  if (folder / WEIGHTS).exists():
    return config, files.load_safetensors(folder / WEIGHTS)[0]
  if (folder / OLD_WEIGHTS).exists():
    return config, torch_file.load(folder / OLD_WEIGHTS)
  if any(folder.glob("*.index.json")):
    raise UserError(
      f"{folder} has its weights in several files (shards), which are not read; save them in one, "
      "with save_pretrained(FOLDER, max_shard_size='99GB') in diffusers."
    )
  raise UserError(f"{folder} has neither {WEIGHTS} nor {OLD_WEIGHTS}; download one of them.")


def save(folder, config: dict, arrays: dict[str, np.ndarray]) -> None:
  """Writes a folder of one model; `folder` should come from `files.new_path`."""
  folder = pathlib.Path(folder)
  folder.mkdir()
  _write_json(folder / CONFIG, config)
  files.save_safetensors(folder / WEIGHTS, arrays, {"format": "pt"})  # diffusers asks for it


def complete_pipeline(folder, scheduler: dict) -> None:
  """Makes the folder above a transformer's and a VAE's a DiTPipeline; keeps files that are there.

  Args:
    folder: with the subfolders transformer and vae, or one of them and the other to come.
    scheduler: its config.
  """
  folder = pathlib.Path(folder)
  for path, content in (
    (folder / "scheduler" / "scheduler_config.json", scheduler),
    (folder / "model_index.json", PIPELINE),
  ):
    if not path.exists():
      path.parent.mkdir(exist_ok=True)
      with files.new_path(path) as new:
        _write_json(new, content)


def _write_json(path: pathlib.Path, content: dict) -> None:
  path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
