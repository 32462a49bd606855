"""What fine-tuning adds to a DiT, folded into the projections of its adaptive layer norms.

A norm with scale w and bias b is modulated by s and t, which are linear in silu(c):
(1) (w y + b) (1 + s) + t = y (1 + s') + t',  s' = w s + w - 1,  t' = t + b s + b
A factor gamma a channel on a branch multiplies its gate. So the same function has a plain DiT's
leaves: both are columns of one projection, scaled and added.
"""

import numpy as np

NORMS = {"norm1": (0, 1), "norm2": (3, 4), "norm": (0, 1)}  # chunks: shift and scale
GATES = {"gamma_attn": 2, "gamma_mlp": 5}
_PROJECTION = "/adaln/proj/"


def fold(leaves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The leaves of a plain DiT that computes what a tuned one does, up to rounding.

  Args:
    leaves: by path, "blocks/block_00/norm1/scale", of a `models.dit.DiT`; with or without the
      leaves of its fields affine and gamma.

  Returns:
    All leaves but those, in float32; computed in float64.
  """
  out = {name: np.asarray(x, np.float32) for name, x in leaves.items()}
  for name in leaves:
    place, found, kind = name.partition(_PROJECTION)
    if found and kind == "kernel":
      _fold_into(out, place)
  return out


def _fold_into(out: dict[str, np.ndarray], place: str) -> None:
  """Folds what was added beside one projection, in place."""
  paths = [f"{place}{_PROJECTION}{kind}" for kind in ("kernel", "bias")]
  width = out[paths[0]].shape[0]
  kernel, bias = (out[path].astype(np.float64).reshape(-1, width) for path in paths)
  kernel = kernel.reshape(width, -1, width)  # [in, chunk, out]
  for norm, (shift, scale) in NORMS.items():
    if f"{place}/{norm}/scale" in out:
      w, b = (out.pop(f"{place}/{norm}/{kind}").astype(np.float64) for kind in ("scale", "bias"))
      kernel[:, shift] += kernel[:, scale] * b
      kernel[:, scale] *= w
      bias[shift] += bias[scale] * b + b
      bias[scale] = bias[scale] * w + w - 1
  for gamma, gate in GATES.items():
    if f"{place}/{gamma}" in out:
      factor = out.pop(f"{place}/{gamma}").astype(np.float64)
      kernel[:, gate] *= factor
      bias[gate] *= factor
  for path, x in zip(paths, (kernel, bias), strict=True):
    out[path] = x.reshape(out[path].shape).astype(np.float32)
