"""One loop for every stage: stages in order, each resumed from its last checkpoint.

`train_and_evaluate(config, workdir)` is what `dit_jax.main`, notebooks and tests call.
"""

import contextlib
import functools
import importlib
import pathlib
import signal
import sys
import time

import jax
import numpy as np
from clu import parameter_overview
from jax.experimental import multihost_utils

from dit_jax.core import clock, files, signals
from dit_jax.core import config as configs
from dit_jax.core import tree as trees
from dit_jax.core.errors import UserError
from dit_jax.core.writer import Writer
from dit_jax.data import sources
from dit_jax.evals import report
from dit_jax.sampling import grids
from dit_jax.tasks import autoencoder, base, dct, hrig, labels, sizes, timed
from dit_jax.tasks.task import Task, Timed
from dit_jax.training import checkpoint, memory, optim, peft, sharding, state, step, stored

STAGES = ("dvae", "dgt", "dct", "dit", "superres")


def train_and_evaluate(config, workdir, stage: str = "") -> None:
  """Trains every stage of `config.stages` in order; finished stages are passed over.

  Args:
    config: a recipe's ConfigDict.
    workdir: everything is written here, each stage in a folder of its own.
    stage: train this one alone; the stages that it builds on must be finished.

  Raises:
    UserError: what the user can change: config, data, mesh, workdir.
    FloatingPointError: ten updates in a row were not finite.
    SystemExit: a signal asked to stop; the state is saved.
  """
  names, mesh = check_recipe(config, stage)
  if "://" in str(workdir):
    raise UserError(f"--workdir={workdir} must be a folder that every host sees: mount the bucket.")
  workdir = pathlib.Path(workdir)
  if not (workdir / "config.json").exists():
    source = sources.open_source(config.data, "train")
    source[0]  # what cannot be read is refused before we write
    for name in names:
      if hrig.enabled(config[name]):
        hrig.check(config, name, dct.make_process(config[name].diffusion))
    if labels.tiered(config):
      labels.check_classes(source.classes)
  autoencoder.check(config, workdir)
  base.check(config, names, workdir)
  timed.check(config, names, workdir)
  on_latents = [name for name in names if name not in ("dvae", "superres")]
  trained = "dvae" in names or autoencoder.pretrained(config) or autoencoder.donor(config)
  if on_latents and not trained:
    check_dvae(config, workdir, on_latents[0])
  claim(workdir, config)
  autoencoder.adopt(config, workdir)
  if jax.config.jax_compilation_cache_dir is None:  # so that a restart compiles nothing again
    jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
  for name in names:
    begin = time.monotonic()
    folder = workdir / name
    if _finished(folder, config[name].total_steps):
      _say(f"[{name}] finished before: {config[name].total_steps} steps in {folder}")
      continue
    task = importlib.import_module(f"dit_jax.tasks.{name}").build(config, workdir, mesh)
    train_stage(timed.attached(task, config, workdir), config, folder, mesh)
    del task  # with the files of its cache, before the next opens others
    _say(f"[{name}] done in {clock.duration(time.monotonic() - begin)}")
  _say(f"everything is in {workdir}: checkpoints, metrics, previews of each stage; {report.PAGE}")


def check_recipe(config, stage: str = "", devices=None):
  """The stages to train and the mesh to train them on, if the recipe fits them.

  Args:
    config: a recipe.
    stage: this one alone.
    devices: None takes those that are there.

  Raises:
    UserError: what no data and no workdir could mend.
  """
  names = check_stages(config, stage)
  sizes.check_models(config)
  mesh = sharding.make_mesh(config.mesh, devices)
  for name in names:
    sharding.check_batch(config[name].batch_size, config[name].accum, mesh)
  return names, mesh


def check_stages(config, stage: str = "") -> tuple[str, ...]:
  """The stages to train, after refusing what no stage could train with."""
  if not config.stages:
    raise UserError(f"config.stages is empty; expected names of {', '.join(STAGES)}.")
  for name in config.stages:
    if name not in STAGES or name not in config:
      raise UserError(
        f"config.stages has {name!r}; expected names of {', '.join(STAGES)}, each with its block."
      )
  if not stage:
    return tuple(config.stages)
  if stage not in config.stages:
    raise UserError(f"--stage={stage} is not in config.stages={tuple(config.stages)}.")
  return (stage,)


def check_dvae(config, workdir: pathlib.Path, stage: str) -> None:
  """Refuses to train on the latents of a DVAE that is not there."""
  if not _finished(workdir / "dvae", config.dvae.total_steps):
    raise UserError(
      f"the stage {stage} builds on dvae, which is not finished in {workdir}; train it first, with "
      "--stage=dvae or without --stage."
    )


def _finished(folder: pathlib.Path, total_steps: int) -> bool:
  """Whether a stage's last checkpoint is there and whole; an earlier one is not read through."""
  checkpoints = checkpoint.Checkpoints(folder)
  reached = (checkpoints.latest() or 0) >= total_steps
  return reached and (checkpoints.whole() or 0) >= total_steps


def claim(workdir: pathlib.Path, config) -> None:
  """Stores the config in the workdir, or refuses a workdir that holds another config's run."""
  path = workdir / "config.json"
  try:
    if jax.process_index() == 0:
      _claim(path, config)
    if jax.process_count() > 1:  # a faster process may not fill the folder before it is claimed
      multihost_utils.sync_global_devices("workdir claimed")
      if path.exists():
        configs.refuse_drift(configs.from_json(path.read_text(encoding="utf-8")), config)
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise UserError(f"--workdir={workdir} cannot be used ({e.strerror}); choose another.") from e


def _claim(path: pathlib.Path, config) -> None:
  workdir, left = path.parent, set(path.parent.glob(f"{path.name}.*.tmp"))  # by a run killed here
  if path.exists():
    configs.refuse_drift(configs.from_json(path.read_text(encoding="utf-8")), config)
  elif workdir.exists() and set(workdir.iterdir()) - left:
    raise UserError(f"--workdir={workdir} holds files but no config.json; give an empty folder.")
  for half in left:
    half.unlink()
  files.write_text(path, configs.to_json(config))


def train_stage(task: Task, config, folder: pathlib.Path, mesh) -> None:
  """Trains one stage to `total_steps`, from its last checkpoint if there is one."""
  block = config[task.name]
  task = task.tuned(peft.of(config, task.name))
  tx = optim.make_tx(block.optim, block.total_steps)
  checkpoints = checkpoint.Checkpoints(folder)
  train_state, first, origin = _born_or_restored(task, tx, checkpoints, config, mesh)
  shardings = jax.tree.map(lambda x: x.sharding, train_state)
  make_step = functools.partial(
    step.make_step,
    normalizers=task.normalizers,
    tx=tx,
    ema_decay=block.ema_decay,
    seed=config.seed,
    accum=block.accum,
    mesh=mesh,
    state_shardings=shardings,
  )
  _banner(task, block, train_state, first, mesh)
  if jax.process_index() == 0:
    table = parameter_overview.get_parameter_overview(train_state.params, include_stats=False)
    text = "\n".join((table, *sharding.describe(train_state, shardings)))
    (folder / "parameters.txt").write_text(f"{text}\n", encoding="utf-8")
  how = {"peft": config.get("peft", "full"), "base": origin} if origin else {}
  meta = task.meta | {"config": configs.to_json(config)} | how
  save = functools.partial(_save, checkpoints, task, config.seed, meta)
  progress = clock.Progress(
    block.total_steps, block.batch_size, first, label=task.name, stream=sys.stdout
  )
  with (
    signals.stop_on_signal() as stop,
    Writer(folder, task.name, first + 1) as writer,
    contextlib.closing(checkpoints),
    contextlib.closing(progress),
    contextlib.closing(task.batches(first)) as batches,
  ):
    now, pending, stopping = first, None, False
    ready = sharding.put_batch(next(batches), mesh)
    programs = _compiled(task, make_step, train_state, ready, first)
    if task.measured is not None:  # it compiles here, not in a save that a signal asks for
      task.measured(*stored.host((train_state.ema, train_state.frozen)))
    for now in range(first + 1, block.total_steps + 1):
      run = next(program for start, program in reversed(programs) if start < now)
      train_state, metrics = run(train_state, ready)
      if now < block.total_steps:  # the next batch is read and sent while this step runs
        ready = sharding.put_batch(next(batches), mesh)
      progress.tick(now)
      if pending is not None:  # the step before this one: the device is never waited for
        _report(*pending, task.name, writer, progress)
        pending = None
      if clock.due(now, block.every.log, block.total_steps):
        pending = now, metrics
      stopping = _all_stop(stop.requested, now, block)  # a later signal waits for the next step
      asked = [e for e in task.evaluators if clock.due(now, e.every, block.total_steps)]
      if clock.due(now, block.every.save, block.total_steps) or stopping or asked:
        step.check_finite(jax.device_get(metrics), task.name, now)
        if pending is not None:  # no run resumes behind a line that was never written
          _report(*pending, task.name, writer, progress)
          pending = None
        save(train_state)
      pictured = clock.due(now, block.every.preview, block.total_steps)
      if pictured:
        _preview(task, train_state, now, folder, writer)
      if stopping:  # evaluations take long: what they would see is saved
        break
      for evaluator in asked:
        _evaluate(evaluator, train_state, now, writer)
      if (pictured or asked) and now < block.total_steps:
        _page(folder.parent)
    if pending is not None:
      _report(*pending, task.name, writer, progress)
  _page(folder.parent)  # of a stopped run, too
  if stopping or _all_stop(stop.requested, now, block):  # or it came after the last look
    _say(f"[{task.name}] stopped by a signal and saved at step {now}")
    raise SystemExit(128 + (stop.signum or signal.SIGTERM))
  if skipped := task.skipped():
    _say(f"[{task.name}] skipped {len(skipped)} unreadable images: {', '.join(skipped[:5])}")


def _compiled(task: Task, make_step, train_state, batch, first: int) -> list:
  """(steps done before it, executable) of every phase still to come: nothing compiles later.

  Raises:
    UserError: a program that needs more memory than a device has.
  """
  begin = time.monotonic()
  last = max(start for start, _ in task.phases if start <= first)
  phases = [(start, loss_fn) for start, loss_fn in task.phases if start >= last]
  compile_ = lambda loss_fn: make_step(loss_fn=loss_fn).compile(train_state, batch)
  programs = [
    (start, memory.compiled(task.name, functools.partial(compile_, loss_fn)))
    for start, loss_fn in phases
  ]
  for _, program in programs:
    memory.check(task.name, program, jax.local_devices()[0])
  seconds = time.monotonic() - begin
  _say(f"[{task.name}] compiled {len(programs)} program(s) in {clock.duration(seconds)}")
  return programs


def _all_stop(asked: bool, now: int, block) -> bool:
  """Whether to stop after this step; all processes at the same one, as saving is a joint act."""
  if jax.process_count() == 1:
    return asked
  if not clock.due(now, block.every.log or block.every.save, block.total_steps):
    return False
  return bool(multihost_utils.process_allgather(np.asarray(asked)).any())


def _born_or_restored(task: Task, tx, checkpoints, config, mesh):
  """The state, born sharded or from the last checkpoint, its step, and the record of its base."""
  born, abstract = state.abstract(task.init, tx, task.frozen, mesh, config.sharding)
  restored = checkpoints.restore(abstract)
  if restored is None:
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    places = jax.tree.map(lambda s: s.sharding, abstract)
    found = base.start(config, task.name, abstract.params, abstract.frozen, task.meta)
    for line in found.report:
      _say(line)
    # Through the host: an array of one device cannot be put on those of other processes.
    frozen = jax.device_put(jax.device_get(task.frozen | found.frozen), places.frozen)
    where = trees.flatten(places.params)
    params = {name: jax.device_put(x, where[name]) for name, x in found.params.items()}
    return jax.jit(born, out_shardings=places)(key, frozen, params), 0, found.record
  want = {"seed": config.seed, "fingerprint": task.fingerprint}
  old = restored.data
  if changed := [f"{k}: {old.get(k)} -> {v}" for k, v in want.items() if old.get(k) != v]:
    raise UserError(
      f"stage {task.name} was trained on other data ({'; '.join(changed)}); go back to that data, "
      "or choose a new workdir."
    )
  return restored.state, restored.step, restored.meta.get("base", {})


def _save(checkpoints, task: Task, seed: int, meta: dict, train_state) -> None:
  now = int(train_state.step)
  data = {"step": now, "seed": seed, "fingerprint": task.fingerprint}
  if task.measured is not None:
    meta = meta | task.measured(*stored.host((train_state.ema, train_state.frozen)))
  checkpoints.save(now, train_state, data=data, meta=meta)


def _report(now: int, metrics, name: str, writer: Writer, progress: clock.Progress) -> None:
  metrics = jax.device_get(metrics)
  step.check_finite(metrics, name, now)
  writer.write(now, metrics)
  if jax.process_index() == 0:
    progress.report(now, metrics)


def _preview(task: Task, train_state, now: int, folder: pathlib.Path, writer: Writer) -> None:
  picture = task.preview(*stored.host((train_state.ema, train_state.frozen)))
  if jax.process_index() == 0:
    grids.save_png(folder / "previews" / f"step_{now:08d}.png", picture)
    writer.write_images(now, {"preview": picture})


def _page(workdir: pathlib.Path) -> None:
  """The run's page, of what its folder holds now."""
  if jax.process_index() == 0:
    report.refresh(workdir)


def _evaluate(evaluator: Timed, train_state, now: int, writer: Writer) -> None:
  """Writes an evaluator's numbers; where data or disk refuse them, the run goes on without."""
  try:
    found = evaluator.run(*stored.host((train_state.ema, train_state.frozen)), now)
  except (UserError, OSError) as e:
    _say(f"warning: evals.{evaluator.name} at step {now} was not made ({' '.join(str(e).split())})")
    return
  writer.write(now, {f"eval/{name}": value for name, value in found.items()})


def _banner(task: Task, block, train_state, first: int, mesh) -> None:
  shards = sharding.num_shards(mesh)
  rows = block.batch_size // shards // block.accum
  kept = trees.count(train_state.frozen.get(peft.BASE, {}))
  over = f" over a frozen base of {kept:,}" if kept else ""
  _say(
    f"[{task.name}] {trees.count(train_state.params):,} parameters{over}; batch"
    f" {block.batch_size} global = {rows} a device x {shards} x {block.accum} accumulated;"
    f" {task.num_images:,} images, {task.num_images / block.batch_size:.1f} steps an"
    f" epoch; steps {first} -> {block.total_steps}"
    + (f" in {len(task.phases)} phases, a program each" if len(task.phases) > 1 else "")
  )


def _say(line: str) -> None:
  if jax.process_index() == 0:
    print(line, flush=True)
