"""DiT's weights as its authors publish them: a state dict in a `.pt` file (arXiv 2212.09748).

A training checkpoint of theirs is {"model": .., "ema": .., "opt": .., "args": ..}: the average is
read. The file does not say the number of heads, nor the period of the timestep's frequencies.
"""

import math

import numpy as np

from dit_jax.core.errors import UserError
from dit_jax.weights import rename

CHECKPOINT_KEYS = ("ema", "model")
MAX_PERIOD = 10_000.0  # w_i = MAX_PERIOD ** (-i / 128)
TOP = {
  "time/in": "t_embedder.mlp.0",
  "time/out": "t_embedder.mlp.2",
  "final/adaln/proj": "final_layer.adaLN_modulation.1",
  "final/linear": "final_layer.linear",
}
BLOCK = {
  "adaln/proj": "adaLN_modulation.1",
  "attn/qkv": "attn.qkv",
  "attn/proj": "attn.proj",
  "mlp/in": "mlp.fc1",
  "mlp/out": "mlp.fc2",
}
LEAVES = {"label/table/embedding": "y_embedder.embedding_table.weight"}


def rows(fields: dict) -> list[rename.Row]:
  """The table of a model with `fields` of `models.dit.DiT`."""
  out = rename.layer("patch_embed/proj", "x_embedder.proj", rename.patches(fields["patch"]))
  out.append(rename.Row("position/table", ("pos_embed",), rename.BATCHED))
  out += [rename.Row(ours, (theirs,)) for ours, theirs in LEAVES.items()]
  for ours, theirs in TOP.items():
    out += rename.layer(ours, theirs)
  for i in range(fields["depth"]):
    for ours, theirs in BLOCK.items():
      out += rename.layer(f"blocks/block_{i:02d}/{ours}", f"blocks.{i}.{theirs}")
  return out


def fields(arrays: dict[str, np.ndarray], num_heads: int) -> dict:
  """The fields of `models.dit.DiT` that the shapes tell.

  Raises:
    UserError: a key that tells them is missing, or they contradict each other.
  """
  try:
    width, z_channels, patch, _ = arrays["x_embedder.proj.weight"].shape
    cells = arrays["pos_embed"].shape[1]
    labels = arrays["y_embedder.embedding_table.weight"].shape[0]
    outputs = arrays["final_layer.linear.weight"].shape[0] / (patch**2 * z_channels)
    numbers = [key.split(".")[1] for key in arrays if key.startswith("blocks.")]
    depth = 1 + max((int(n) for n in numbers if n.isdecimal()), default=-1)
  except (ArithmeticError, KeyError, ValueError, IndexError) as e:
    raise UserError(
      f"these are not the weights of a DiT as its authors publish them ({e}); check --from."
    ) from e
  side = math.isqrt(cells)
  if side**2 != cells or outputs not in (1, 2):
    raise UserError(
      f"these weights have {cells} positions and {outputs:g} outputs a channel; expected a square "
      "grid and one output, or two with a learned variance."
    )
  return dict(
    depth=depth,
    width=width,
    num_heads=num_heads,
    patch=patch,
    grid=(side * patch, side * patch),
    z_channels=z_channels,
    num_classes=labels - 1,
    learn_sigma=outputs == 2,
    max_period=MAX_PERIOD,
  )
