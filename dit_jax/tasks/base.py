"""Where a fine-tune starts: `config.init_from`, weights of an earlier run or of a converted file.

It is a workdir of ours (each transformer from its own stage, the DVAE taken over as it is), the
folder of one stage, or a `.safetensors` file with arrays named by paths, "blocks/block_00/...".
Every array of a base has a place and every place an array, but for what a fine-tune makes anew by
rule: label tables, affine, gamma, hrig. What happened to each is reported.
"""

import collections
import pathlib
import re
import shutil
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils

from dit_jax.core import config as configs
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
  path, told = pathlib.Path(config.init_from), f"init_from={config.init_from}"
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
    UserError: the file or the checkpoint cannot be read.
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
  arrays = {name.removeprefix(_ROOT): np.asarray(x) for name, x in sorted(arrays.items())}
  return arrays, trees.content_hash(arrays), facts


def fit(path, arrays: dict[str, np.ndarray], params: dict, frozen: dict) -> Start:
  """Gives the arrays of a base their places in a model.

  Args:
    path: of the base, for messages.
    arrays: of the base, as from `read`.
    params: shapes of the trained parameters, as nested dicts.
    frozen: {peft.BASE: shapes of the frozen ones}, or {}.

  Raises:
    UserError: an array without a place, a place without an array, or another shape, that no rule
      allows: the first five by name; or what is drawn anew would stay frozen.
  """
  trained, kept = trees.flatten(params), trees.flatten(frozen.get(peft.BASE, {}))
  wanted = trained | kept
  full_name = {name.removeprefix(_ROOT): name for name in wanted}
  have = {full_name.get(name, name): x for name, x in arrays.items()}
  new, dropped = _by_rule(have, wanted)
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
  report = (
    f"loaded {len(loaded)} arrays, {sum(x.size for x in loaded.values()):,} numbers"
    + (f", {cast} arrays cast" if cast else ""),
    _listed("re-initialised", {n: wanted[n] for n in new}),
    _listed("skipped", {n: have[n] for n in dropped}),
  )
  base = {peft.BASE: _nested({n: x for n, x in loaded.items() if n in kept})} if kept else {}
  return Start({n: x for n, x in loaded.items() if n in trained}, base, {}, report)


def _by_rule(have: dict, wanted: dict) -> tuple[list[str], list[str]]:
  """Paths that are drawn anew, and paths of the base that are left out."""
  new, dropped = [], []
  for name, s in wanted.items():
    if name not in have:
      new += [name] * _any(RENEWABLE, name)
    elif have[name].shape != s.shape and _any((peft.LABEL,), name):  # another number of classes
      new.append(name)
      dropped.append(name)
  dropped += [name for name in have if name not in wanted and _any(DROPPABLE, name)]
  return new, dropped


def start(config, stage: str, params: dict, frozen: dict) -> Start:
  """What a stage is born from; the arguments are those of `fit`.

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
  found = fit(path, arrays, params, frozen)
  told = tuple(f"[{stage}] init_from {path} ({name}): {line}" for line in found.report)
  return found._replace(record={"path": str(path), "hash": name}, report=told)


def check(config, names, workdir) -> None:
  """Refuses, before anything is written, what `start` and `adopt` would refuse later."""
  workdir = pathlib.Path(workdir)
  meta = sizes.latent_meta(config)  # tables of any number of classes are made anew
  for name in names:
    if name not in peft.STAGES or Checkpoints(workdir / name).steps():
      continue
    init, how = sizes.parts(config, name, meta)[0], peft.of(config, name)
    shapes = jax.eval_shape(how.init(init), rng.abstract_key())
    start(config, name, shapes, how.base(init))
  if (folder := donor(config)) and not Checkpoints(workdir / "dvae").steps():
    _check_dvae(config, folder)


def refuse_other(config, stage: str, record: dict) -> None:
  """Refuses to resume over another base than the checkpoint's, `record`, as far as one is there.

  What the base gave is in the checkpoint and in its frozen weights: the base itself may be gone.
  """
  if not record or not pathlib.Path(config.init_from).exists():
    return
  path = place(config, stage)
  if path is not None and (name := read(path)[1]) != record["hash"]:
    raise UserError(
      f"stage {stage} was started from the base {record['hash']}, and init_from={path} now is "
      f"{name}; put the old one back, or choose a new workdir."
    )


def donor(config) -> pathlib.Path | None:
  """The folder of the DVAE that the base was trained on, where the base is a run of ours."""
  if not config.get("init_from", "") or "dvae" not in config:
    return None
  path = pathlib.Path(config.init_from)
  for workdir in (path, path.parent):
    if (workdir / "config.json").exists() and Checkpoints(workdir / "dvae").steps():
      return workdir / "dvae"
  return None


def adopt(config, workdir) -> None:
  """Copies the newest checkpoint of the base's DVAE, whose latents alone the base knows."""
  folder, target = donor(config), pathlib.Path(workdir) / "dvae"
  if folder is None:
    return
  if jax.process_index() == 0 and not Checkpoints(target).steps():
    step = _check_dvae(config, folder)
    target.mkdir(exist_ok=True)
    half = target / "adopted.tmp"
    shutil.rmtree(half, ignore_errors=True)  # of a run killed here
    shutil.copytree(folder / str(step), half)
    half.rename(target / str(step))
    print(f"[dvae] taken over from {folder / str(step)}: the base knows its latents", flush=True)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices("dvae taken over")


def _check_dvae(config, folder: pathlib.Path) -> int:
  """The step of a base's DVAE, if this recipe could have trained it."""
  checkpoints = Checkpoints(folder)
  step = checkpoints.whole()
  if step is None:
    raise UserError(f"every checkpoint in {folder}, the base's DVAE, is damaged; put back a copy.")
  old = configs.from_json(checkpoints.read_meta(step)["config"])
  model = lambda c: {"dvae": {"model": c.dvae.model}, "data": {"image_size": c.data.image_size}}
  if found := configs.resume_differences(model(old), model(config)):
    raise UserError(
      f"the DVAE of init_from={config.init_from} is another one, stored -> wanted: "
      f"{'; '.join(found[:5])}; set its values in the recipe."
    )
  if step < config.dvae.total_steps:
    raise UserError(
      f"the DVAE of init_from={config.init_from} is at step {step}; set dvae.total_steps={step}, "
      f"which now is {config.dvae.total_steps}, or train it to its end."
    )
  return step


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
