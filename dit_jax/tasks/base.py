"""Where a fine-tune starts: `config.init_from`, weights of an earlier run or of a converted file.

It is a workdir of ours (each transformer from its own stage, the DVAE taken over as it is), the
folder of one stage, or a `.safetensors` file with arrays named by paths, "blocks/block_00/...".
Every array of a base has a place and every place an array, but for what a fine-tune makes anew by
rule: label tables, affine, gamma, hrig. What happened to each is reported.
"""

import collections
import pathlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from dit_jax.core import rng
from dit_jax.core import tree as trees
from dit_jax.core.errors import UserError
from dit_jax.tasks import base_model, sizes
from dit_jax.training import peft, stored
from dit_jax.training.checkpoint import Checkpoints
from dit_jax.weights import files

AFFINE = r"(.*/)?norm[12]?/(scale|bias)"  # not the scales of qk_norm, which change the function
RENEWABLE = (peft.LABEL, AFFINE, peft.GAMMA, peft.HRIG)  # may start as drawn
DROPPABLE = (peft.LABEL, peft.HRIG)  # of the base: without them it computes what it did
_ROOT = "params/"  # flax's collection, which a file need not name


class Start(NamedTuple):
  """What a state is born from.

  Attributes:
    params: trained parameters by path, those that are not drawn anew.
    frozen: {peft.BASE: the frozen ones as nested dicts}, or {}.
    record: {"path", "hash"} of the base, or {}: the checkpoint's meta keeps it.
    report: lines for the user.
  """

  params: dict[str, np.ndarray]
  frozen: dict[str, Any]
  record: dict[str, str]
  report: tuple[str, ...] = ()


def place(config, stage: str) -> pathlib.Path | None:
  """The file, or the stage's folder, that a transformer starts from; None where it is drawn.

  Raises:
    UserError: there is no such thing, or it is another stage's.
  """
  if not config.get("init_from", "") or stage not in peft.STAGES:
    return None
  path, told = pathlib.Path(config.init_from).expanduser(), f"init_from={config.init_from}"
  if not path.exists():
    raise UserError(
      f"{told} does not exist; give a workdir, the folder of one of its stages, or a .safetensors "
      "file."
    )
  if (path / "config.json").exists():
    path, told = path / stage, f"{told} has no trained stage {stage}"
  else:
    transformers = [name for name in config.stages if name in peft.STAGES]
    if len(transformers) > 1:
      raise UserError(
        f"{told} is of one stage, and this recipe trains {', '.join(transformers)}; give the "
        "workdir that holds them all."
      )
    told = f"{told} is no checkpoint"
  if path.is_file() or Checkpoints(path).steps():
    return path
  raise UserError(
    f"{told}; give a workdir, the folder of one of its stages, or a .safetensors file."
  )


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], str, dict]:
  """Arrays by path below the root of the parameters, and their hash, whatever holds them.

  The third is what it says besides: the metadata of a file, the meta of a checkpoint.

  Raises:
    UserError: the file or the checkpoint cannot be read, or holds what no base does.
  """
  if path.is_file():
    try:
      arrays, facts = files.load_safetensors(path)
    except UserError as e:
      reason = " ".join(str(e).split())
      raise UserError(
        f"init_from={path} is no whole .safetensors file ({reason}); convert or copy it again."
      ) from e
  else:
    ema, facts, _ = Checkpoints(path).restore_ema()
    arrays = trees.flatten(ema)
  short = {name.removeprefix(_ROOT): np.asarray(x) for name, x in sorted(arrays.items())}
  wrong = [f"{name} twice" for name in short if name in arrays and f"{_ROOT}{name}" in arrays]
  for name, x in short.items():
    if not jnp.issubdtype(x.dtype, jnp.floating):
      wrong.append(f"{name} of dtype {x.dtype}")
    elif not np.isfinite(x).all():
      wrong.append(f"{name} with numbers that are not finite")
  if wrong:
    raise UserError(f"init_from={path} is no base: it has {'; '.join(wrong[:5])}; choose another.")
  return short, trees.content_hash(short), facts


def fit(
  path, arrays: dict[str, np.ndarray], params: dict, frozen: dict, same_labels: bool = True
) -> Start:
  """Gives the arrays of a base their places in a model.

  Args:
    path: of the base, for messages.
    arrays: of the base, as from `read`.
    params: shapes of the trained parameters, as nested dicts.
    frozen: {peft.BASE: shapes of the frozen ones}, or {}.
    same_labels: whether rows of label tables of one size mean the same; else they are drawn anew.

  Raises:
    UserError: an array without a place, a place without an array, or another shape, that no rule
      allows: the first five by name; or what is drawn anew would stay frozen.
  """
  trained, kept = trees.flatten(params), trees.flatten(frozen.get(peft.BASE, {}))
  wanted = trained | kept
  full_name = {name.removeprefix(_ROOT): name for name in wanted}
  have = {full_name.get(name, name): x for name, x in arrays.items()}
  _refuse_tuned(path, have, wanted)
  new, dropped = _by_rule(have, wanted, same_labels)
  shapes = lambda tree, passed: {  # dtypes may differ: they are cast
    n: jax.ShapeDtypeStruct(x.shape, np.float32) for n, x in tree.items() if n not in passed
  }
  if first := stored.differences(shapes(have, dropped), shapes(wanted, new)):
    raise UserError(
      f"init_from={path} is of another model, stored -> wanted: {first}; set that base's model in "
      "the recipe, or choose another base."
    )
  if stuck := [name for name in new if name in kept]:
    raise UserError(
      f"init_from={path} has no {stuck[0]} that fits, and this peft would keep it as it was drawn; "
      "choose a peft that trains it, or for hrig/ set hrig.enabled=False."
    )
  loaded = {n: have[n].astype(s.dtype, copy=False) for n, s in wanted.items() if n not in new}
  cast = sum(x.dtype != have[n].dtype for n, x in loaded.items())
  tables = {n: x for n, x in loaded.items() if _any((peft.LABEL,), n)}
  report = (
    f"loaded {len(loaded)} arrays, {sum(x.size for x in loaded.values()):,} numbers"
    + (f", {cast} arrays cast" if cast else "")
    + (f"; {_listed('label tables', tables)}, for the same classes" if tables else ""),
    _listed("re-initialised", {n: wanted[n] for n in new}),
    _listed("skipped", {n: have[n] for n in dropped}),
  )
  base = {peft.BASE: _nested({n: x for n, x in loaded.items() if n in kept})} if kept else {}
  return Start({n: x for n, x in loaded.items() if n in trained}, base, {}, report)


def _refuse_tuned(path, have: dict, wanted: dict) -> None:
  """Refuses a base with parameters that its own peft added and this one has not."""
  for field, pattern in (("affine", AFFINE), ("gamma", peft.GAMMA)):
    left = [name for name in have if name not in wanted and re.fullmatch(pattern, name)]
    if left:
      names = [name for name, fields in peft.FIELDS.items() if field in fields]
      raise UserError(
        f"init_from={path} is itself a fine-tune, with {left[0]} {list(have[left[0]].shape)}, for "
        f"which this peft has no place; set peft to {' or '.join(names)}, or start from its base."
      )


def _by_rule(have: dict, wanted: dict, same_labels: bool) -> tuple[list[str], list[str]]:
  """Paths that are drawn anew, and paths of the base that are left out."""
  new, dropped = [], []
  for name, s in wanted.items():
    if name not in have:
      new += [name] * _any(RENEWABLE, name)
    elif _any((peft.LABEL,), name) and not (same_labels and have[name].shape == s.shape):
      new.append(name)
      dropped.append(name)
  dropped += [name for name in have if name not in wanted and _any(DROPPABLE, name)]
  return new, dropped


def start(config, stage: str, params: dict, frozen: dict, meta: dict) -> Start:
  """What a stage is born from.

  Args:
    config: the recipe.
    stage: its name.
    params, frozen: as for `fit`.
    meta: the facts of the stage's latents; its class table tells whether label tables fit.

  Raises:
    UserError: the base does not exist, is damaged, does not fit or is of another model; or frozen
      weights have none.
  """
  path = place(config, stage)
  if path is None:
    if frozen.get(peft.BASE):
      raise UserError(
        f"peft={config.peft!r} trains a small part of the stage {stage} over a pretrained base; "
        "name it by init_from, or set peft='full'."
      )
    return Start({}, {}, {})
  arrays, name, facts = read(path)
  base_model.refuse_other(config, stage, path, facts)
  same_labels = base_model.same_labels(config, stage, meta, facts)
  found = fit(path, arrays, params, frozen, same_labels)
  told = tuple(f"[{stage}] init_from {path} ({name}): {line}" for line in found.report)
  return found._replace(record={"path": str(path), "hash": name}, report=told)


def check(config, names, workdir) -> None:
  """Refuses, before anything is written, what `start` would refuse later."""
  workdir = pathlib.Path(workdir)
  meta = sizes.latent_meta(config)  # tables of any number of classes are made anew
  for name in names:
    if name not in peft.STAGES or Checkpoints(workdir / name).steps():
      continue
    init, how = sizes.parts(config, name, meta)[0], peft.of(config, name)
    shapes = jax.eval_shape(how.init(init), rng.abstract_key())
    start(config, name, shapes, how.base(init), meta)


def _any(patterns, name: str) -> bool:
  return any(re.fullmatch(pattern, name) for pattern in patterns)


def _nested(flat: dict) -> dict:
  return traverse_util.unflatten_dict(flat, sep="/")


def _listed(what: str, arrays: dict) -> str:
  """All of them, blocks of a kind together: "skipped 3: a [3], blocks/block_*/b [4, 5] x 2"."""
  kinds = collections.Counter(
    f"{re.sub(r'block_[0-9]+', 'block_*', name)} {list(x.shape)}" for name, x in arrays.items()
  )
  names = [kind if times == 1 else f"{kind} x {times}" for kind, times in kinds.items()]
  return f"{what} {len(arrays)}" + (": " + ", ".join(names) if names else "")
