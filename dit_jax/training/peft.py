"""Parameter-efficient fine-tuning: what of a model is trained, as regexes over parameter paths.

FineDiffusion (arXiv 2402.18331) trains biases, norms and label tables, about 2 % of a DiT. The rest
is a frozen base, in `TrainState.frozen[BASE]`: it is not differentiated, has no optimizer state and
no average, and is saved once. Losses and samplers see the merged tree.
"""

import dataclasses
import re

import jax
from flax import traverse_util

from dit_jax.core import rng
from dit_jax.core import tree as trees
from dit_jax.core.errors import UserError

STAGES = ("dgt", "dct", "dit")  # whose models have what the masks name
BASE = "base"  # its place in TrainState.frozen
DTYPES = ("float32", "bfloat16")

BIAS = r"(?!hrig/)(.*/)?bias"  # not of HRIG, which is trained whole or not at all
NORM = r"(.*/)?\w*norm\w*/\w+"  # affine of the layer norms, scales of qk_norm
GAMMA = r"(.*/)?gamma_(attn|mlp)"
LABEL = r"(.*/)?label/.*"  # every table, and what fuses several
HRIG = r"hrig/.*"
MASKS = {
  "full": (r".*",),
  "bitfit": (BIAS, LABEL),  # BitFit, arXiv 2106.10199
  "difffit": (BIAS, NORM, GAMMA, LABEL),  # DiffFit, arXiv 2304.06648
  "finediffusion": (BIAS, NORM, LABEL),
  "efdit": (BIAS, NORM, LABEL, HRIG),  # arXiv 2512.05152; our reconstruction
}
FIELDS = {  # of the models: parameters that DiT has not, and that start without effect
  "difffit": {"affine": True, "gamma": True},
  "finediffusion": {"affine": True},
  "efdit": {"affine": True},
}


@dataclasses.dataclass(frozen=True)
class Peft:
  """What a stage trains.

  Attributes:
    name: of MASKS.
    dtype: of the frozen base, "float32" or "bfloat16"; what is trained is always float32.

  Raises:
    UserError: an unknown name or dtype.
  """

  name: str = "full"
  dtype: str = "float32"

  def __post_init__(self):
    for field, value, known in (("peft", self.name, MASKS), ("frozen_dtype", self.dtype, DTYPES)):
      if value not in known:
        raise UserError(f"{field}={value!r} is unknown; choose one of {', '.join(known)}.")

  @property
  def fields(self) -> dict[str, bool]:
    """Fields of the model whose parameters the mask trains and a stock model lacks."""
    return FIELDS.get(self.name, {})

  def split(self, params) -> tuple[dict, dict]:
    """(trained, frozen): the leaves of a tree, as nested dicts that share no path."""
    parts = {}, {}
    for path, leaf in trees.flatten(params).items():
      parts[not any(re.fullmatch(p, path) for p in MASKS[self.name])][path] = leaf
    return tuple(traverse_util.unflatten_dict(part, sep="/") for part in parts)

  def init(self, init):
    """key -> the trained parameters, from key -> all of them."""
    return init if self.name == "full" else lambda key: self.split(init(key))[0]

  def base(self, init) -> dict:
    """{BASE: shapes of the frozen parameters}, or {} where there are none."""
    if self.name == "full":
      return {}
    _, frozen = self.split(jax.eval_shape(init, rng.abstract_key()))
    cast = lambda s: jax.ShapeDtypeStruct(s.shape, self.dtype)
    return {BASE: jax.tree.map(cast, frozen)}

  def over_base(self, fn):
    """(trained, frozen, *rest) -> fn(all parameters, frozen, *rest)."""
    if self.name == "full":
      return fn
    return lambda params, frozen, *rest: fn(merge(params, frozen[BASE]), frozen, *rest)


def of(config, stage: str) -> Peft:
  """What a recipe trains of a stage: of the transformers `config.peft`, of others everything."""
  named = Peft(config.get("peft", "full"), config.get("frozen_dtype", "float32"))
  return named if stage in STAGES else Peft()


def merge(params, base) -> dict:
  """One tree of two whose paths are disjoint; where they are not, `base` wins."""
  return traverse_util.unflatten_dict(trees.flatten(params) | trees.flatten(base), sep="/")
