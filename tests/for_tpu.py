"""Programs of rows are lowered for TPUs instead of run, as if the devices here were some."""

import jax
import numpy as np

from dit_jax.kernels import attention
from dit_jax.sampling import parallel


def lower_rows(monkeypatch) -> list[str]:
  """What is lowered from now on; results are zeros."""
  texts, jit = [], parallel.Rows.jit

  def lowering(*args, **kwargs):
    compiled = jit(*args, **kwargs)

    def lowered(*args):
      traced = compiled.trace(*args)
      texts.append(traced.lower(lowering_platforms=("tpu",)).as_text())
      return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), traced.out_info)

    return lowered

  monkeypatch.setattr(attention, "platform", lambda: "tpu")
  monkeypatch.setattr(parallel.Rows, "jit", lowering)
  return texts
