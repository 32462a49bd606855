"""Checkpoints: four items a step (state, ema, data, meta), and a sha256 of every file.

```
<directory>/<step>/{state,ema,data,meta,manifest.json}   whole or absent: one rename
<directory>/frozen/<hash>/                               parameters that never change, once
<directory>/aside/<step>/                                what was damaged or foreign
```
Trees are stored as nested dicts of names, so a checkpoint needs none of our classes, and a mesh of
any other shape can read it.
"""

import json
import shutil
import sys
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from dit_jax.core.errors import UserError
from dit_jax.training import frozen, manifest, peft, stored
from dit_jax.training.state import TrainState

FORMAT = 1
ITEMS = ("state", "ema", "data", "meta")
_TMP = ".orbax-checkpoint-tmp"


class Restored(NamedTuple):
  """What `restore` gives back."""

  step: int
  state: TrainState
  data: dict
  meta: dict


class Checkpoints:
  """The checkpoints of one stage; every process of a run makes one and calls it alike."""

  def __init__(self, directory, keep: int = 2):
    """Names the directory; nothing is written before `restore` or `save`.

    Args:
      directory: local or gs://.
      keep: how many of the newest steps stay; 0 keeps all.
    """
    from etils import epath  # comes with orbax; pathlib that knows gs://

    self.directory = epath.Path(directory).absolute()
    self._keep = keep
    self._manager = None
    self._saving = 0  # the step on its way to disk
    self._failure = ""  # why the newest save failed
    self._frozen = None  # hash of the frozen parameters, "" for none

  def steps(self) -> list[int]:
    """Steps that look like checkpoints of ours, ascending; not verified."""
    if not self.directory.exists():
      return []
    paths = [path for path in self.directory.iterdir() if path.name.isdigit() and _ours(path)]
    return sorted(int(path.name) for path in paths)

  def latest(self) -> int | None:
    """The newest step on disk, None where there is none; not verified."""
    return max(self.steps(), default=None)

  def whole(self) -> int | None:
    """The newest step whose files are as they were written, None where there is none."""
    return next((step for step in reversed(self.steps()) if not self._problem(step)), None)

  def save(self, step: int, state: TrainState, data: dict, meta: dict) -> bool:
    """Starts to write a checkpoint; a step that is there already is left as it is.

    A save that fails (full disk) is told on stderr, at the latest by the next call; training goes
    on and the older checkpoints stay. `close` raises if the newest save failed.

    Args:
      step: finished steps.
      state: the train state; its buffers may be donated as soon as this returns.
      data: JSON of the data pipeline, {step, seed, fingerprint}.
      meta: JSON: config, class table, thresholds, latent statistics, fingerprints.

    Returns:
      Whether a save was started.
    """
    self.wait()
    if step in self.steps():
      return False
    self._saving, self._failure = step, ""
    try:
      manager = self._open_manager()
      if self._frozen is None:  # hashed once: it never changes
        self._frozen = frozen.save(self.directory / "frozen", state.frozen)
      meta = {**meta, "format": FORMAT, "step": step, "frozen": self._frozen}
      trained = state.replace(ema=None, frozen=None)
      manager.save(
        step,
        force=True,  # orbax would skip a step below the newest
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(stored.nested(trained)),
          ema=ocp.args.StandardSave(stored.nested(state.ema)),
          data=ocp.args.JsonSave(data),
          meta=ocp.args.JsonSave(meta),
        ),
      )
    except UserError:
      raise
    except (OSError, ValueError, RuntimeError) as e:  # tensorstore reports a full disk as any
      self._save_failed(e)
      return False
    return True

  def wait(self) -> None:
    """Blocks until the save on its way is on disk or has failed."""
    if self._manager is None or not self._saving:
      return
    try:
      self._manager.wait_until_finished()
    except Exception as e:  # whatever the background thread met
      self._save_failed(e)
    self._saving = 0

  def close(self) -> None:
    """Waits for the last save.

    Raises:
      OSError: the newest save failed, so work would be lost.
    """
    self.wait()
    if self._manager is not None:
      self._manager.close()
      self._manager = None
    if self._failure:
      raise OSError(f"{self._failure}; newest usable checkpoint: {self.latest()}")

  def restore(self, abstract: TrainState) -> Restored | None:
    """The newest checkpoint that is whole; a damaged one is set aside with a warning.

    Args:
      abstract: a TrainState of ShapeDtypeStructs, whose shardings decide where arrays go.

    Returns:
      None where there is no checkpoint at all.

    Raises:
      UserError: trees, shapes or dtypes differ from the checkpoint's (first five named), or all
        checkpoints are damaged.
    """
    self._prepare()
    damaged = {}
    for step in reversed(self.steps()):
      why = self._problem(step)
      if not why:
        restored, why = self._try_restore(step, abstract)
      if not why:
        for bad in damaged:
          self._set_aside(bad)
        return restored
      damaged[step] = why
      _warn(f"checkpoint {self.directory / str(step)} is damaged ({why}); trying the one before")
    if damaged:
      raise UserError(
        f"none of the checkpoints {sorted(damaged)} in {self.directory} can be read; put back a "
        "copy, or delete them to start from scratch."
      )
    return None

  def read_meta(self, step: int | None = None) -> dict | None:
    """The meta item of `step`, or of the newest whole one; None where there is no checkpoint."""
    for candidate in self._candidates(step, ("meta",)):
      return self._json(candidate, "meta")
    return None

  def restore_ema(self, step: int | None = None, sharding=None) -> tuple[dict, dict, int]:
    """The averaged weights for inference, those of a fine-tune over its frozen base.

    Reads the items ema and meta alone, and of a fine-tune the frozen weights; writes nothing.

    Args:
      step: None takes the newest that is whole.
      sharding: one sharding for every leaf; None is the first local device.

    Returns:
      (ema as nested dicts, meta, step).

    Raises:
      UserError: there is no such checkpoint, or it is damaged.
    """
    for candidate in self._candidates(step, ("ema", "meta")):
      path = self.directory / str(candidate) / "ema"
      ema, meta = stored.read(path, stored.shapes(path), sharding), self._json(candidate, "meta")
      if meta.get("peft", "full") != "full":
        kept = frozen.read(self.directory / "frozen", meta["frozen"], sharding)
        ema = peft.merge(ema, kept[peft.BASE])
      return ema, meta, candidate
    raise UserError(f"no checkpoint in {self.directory}; train first, or correct --workdir.")

  def _try_restore(self, step: int, abstract: TrainState) -> tuple[Restored | None, str]:
    """(what the checkpoint holds, "") or (None, what went wrong)."""
    path = self.directory / str(step)
    wanted = {"state": abstract.replace(ema=None, frozen=None), "ema": abstract.ema}
    try:
      stored.refuse_difference({name: stored.shapes(path / name) for name in wanted}, wanted, path)
      got = {
        name: stored.like(tree, stored.read(path / name, stored.nested(tree)))
        for name, tree in wanted.items()
      }
      data, meta = self._json(step, "data"), self._json(step, "meta")
    except UserError:
      raise
    except Exception as e:
      return None, _reason(e)
    kept = frozen.restore(self.directory / "frozen", meta["frozen"], abstract.frozen)
    state = got["state"].replace(ema=got["ema"], frozen=kept)
    return Restored(step, state, data, meta), ""

  def _candidates(self, step: int | None, parts: tuple[str, ...]):
    """The step asked for, or whole steps from the newest down."""
    if step is not None and step not in self.steps():
      there = ", ".join(map(str, self.steps())) or "none"
      raise UserError(f"no checkpoint of step {step} in {self.directory}; there are: {there}.")
    steps = list(reversed(self.steps())) if step is None else [step]
    for candidate in steps:
      why = self._problem(candidate, parts)
      if not why:
        yield candidate
      elif step is None:
        _warn(f"checkpoint {self.directory / str(candidate)} is damaged ({why}); not used")
    if steps:
      raise UserError(f"checkpoint {self.directory / str(steps[-1])} is damaged ({why}).")

  def _problem(self, step: int, parts: tuple[str, ...] = ()) -> str:
    """What is wrong with a checkpoint's files; process 0 looks, and all processes agree."""
    path = self.directory / str(step)
    why = ""
    if jax.process_index() == 0:
      if lacking := [name for name in parts or ITEMS if not (path / name).exists()]:
        why = f"{lacking[0]} is missing"
      elif manifest.sealed(path):
        why = manifest.problem(path, parts)
      else:
        _warn(f"checkpoint {path} has no {manifest.NAME}: its contents cannot be verified")
    if jax.process_count() > 1:
      bad = multihost_utils.broadcast_one_to_all(jax.numpy.asarray(bool(why)))
      return (why or "process 0 found it damaged") if bad else ""
    return why

  def _json(self, step: int, item: str) -> dict:
    value = json.loads((self.directory / str(step) / item / "metadata").read_text())
    if item == "meta" and value["format"] > FORMAT:
      raise UserError(
        f"checkpoint {self.directory / str(step)} has format {value['format']}; this version reads "
        f"up to {FORMAT}: update dit_jax."
      )
    return value

  def _prepare(self) -> None:
    """Makes the directory, drops unfinished saves and sets foreign directories aside."""
    if jax.process_index() == 0:
      try:
        self.directory.mkdir(parents=True, exist_ok=True)
        for folder in (self.directory, self.directory / "frozen"):
          for path in folder.iterdir() if folder.exists() else ():
            if _TMP in path.name:
              path.rmtree()
      except OSError as e:
        raise UserError(f"checkpoints cannot be written to {self.directory} ({e}).") from e
      for path in list(self.directory.iterdir()):
        if path.name.isdigit() and not _ours(path):  # orbax would take it for the latest step
          _warn(f"{path} is no checkpoint")
          self._set_aside(int(path.name))
    _barrier("checkpoints prepared")

  def _set_aside(self, step: int) -> None:
    if jax.process_index() == 0:
      aside = self.directory / "aside"
      aside.mkdir(exist_ok=True)
      taken = {path.name for path in aside.iterdir()}
      names = (f"{step}" if n == 0 else f"{step}.{n}" for n in range(len(taken) + 1))
      target = aside / next(name for name in names if name not in taken)
      (self.directory / str(step)).rename(target)
      _warn(f"moved it to {target}")
    _barrier("checkpoint set aside")

  def _open_manager(self) -> ocp.CheckpointManager:
    if self._manager is None:
      self._prepare()
      self._manager = ocp.CheckpointManager(
        self.directory,
        item_names=ITEMS,
        options=ocp.CheckpointManagerOptions(
          max_to_keep=self._keep or None,
          async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        ),
      )
    return self._manager

  def _seal(self) -> None:
    """Called by orbax in the background, between the last byte and the rename that commits."""
    if jax.process_index() == 0:
      for name in (f"{self._saving}{_TMP}", str(self._saving)):
        if (self.directory / name).exists():
          manifest.write(self.directory / name)
          return

  def _save_failed(self, error: Exception) -> None:
    step, self._saving = self._saving, 0
    self._failure = f"checkpoint of step {step} was not written ({_reason(error)})"
    _warn(f"{self._failure}; training goes on, older checkpoints stay")
    self._manager = None  # the next save starts with a fresh one and clears what is half written
    for path in self.directory.iterdir() if jax.process_index() == 0 else ():
      if path.name.startswith(f"{step}{_TMP}"):  # the space may be what the next save lacks
        shutil.rmtree(path, ignore_errors=True)


def _ours(path) -> bool:
  return any((path / name).exists() for name in (*ITEMS, manifest.NAME))


def _barrier(name: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def _reason(error: Exception) -> str:
  """One line; of a long one the end, where tensorstore puts the cause."""
  text = " ".join(str(error).split())
  return f"{type(error).__name__}: {text if len(text) <= 200 else '... ' + text[-200:]}"


def _warn(text: str) -> None:
  if jax.process_index() == 0:
    print(f"warning: {text}", file=sys.stderr, flush=True)
