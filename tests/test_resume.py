"""Ten SIGKILLs at random moments of the real command change no bit of what it trains.

The moments are drawn inside ten stretches of the undisturbed run that follow each other, so that
every stage, saves, the latent cache and the time between stages are all met; where a kill really
fell is read from the files and lines that it left.
"""

import collections
import pathlib
import random
import re
import subprocess
import sys
import time

import pytest
import real_run
import test_end_to_end as e2e

from dit_jax.core import config as configs
from dit_jax.core import writer
from dit_jax.training.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).resolve().parents[1]
STAGES, STEPS, KILLS = e2e.STAGES, 12, 10
RECIPE = """
import pathlib
from dit_jax.core import config
def get_config():
  return config.from_json(pathlib.Path(__file__).with_name("recipe.json").read_text())
"""
_BANNER = re.compile(r"^\[(\w+)\] (?:[\d,]+ parameters|encoding)", re.MULTILINE)


def environment(folder: pathlib.Path) -> dict[str, str]:
  """Of the command: one device, and programs kept in the folder, whatever they took to compile."""
  return real_run.one_device() | {
    "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
  }


class Run:
  """The command, running, and what it does to its workdir."""

  def __init__(self, recipe, workdir, environment):
    self.workdir = workdir
    self.leftovers = set(self._unfinished())  # of an earlier kill
    self.log = workdir.with_suffix(".log")
    command = [sys.executable, "-m", "dit_jax.main", f"--config={recipe}", f"--workdir={workdir}"]
    with self.log.open("w") as log:
      self.process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
      )

  def _unfinished(self):
    """Name and identity of the checkpoints that are half written."""
    for path in self.workdir.glob("*/*orbax-checkpoint-tmp*"):
      try:
        yield str(path.relative_to(self.workdir)), path.stat().st_ino, path.stat().st_ctime_ns
      except FileNotFoundError:  # finished in between
        continue

  def begun(self, stage):
    """Whether this process has begun to train a stage."""
    return stage in _BANNER.findall(self.log.read_text())

  def writing(self, name):
    """What this process is writing: of a stage, or "latents"."""
    if not self.begun(name):  # it may still be removing what the last one left
      return []
    if name == "latents":
      return [] if self.cached() else [name]
    new = set(self._unfinished()) - self.leftovers
    return [path for path, *_ in new if path.startswith(name)]

  def cached(self):
    """Whether the latent cache is finished."""
    return (self.workdir / "latents" / "meta.json").exists()

  def finished(self, stage):
    return (self.workdir / stage / str(STEPS)).exists()

  def until(self, condition, timeout=400):
    """Waits for a condition; False if the process ended before it."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
      if condition(self):
        return True
      if self.process.poll() is not None:
        return condition(self)
      time.sleep(0.004)
    raise TimeoutError(self.log.read_text())

  def kill(self):
    """SIGKILL; the phase that it met."""
    alive = self.process.poll() is None
    self.process.kill()
    self.process.wait()
    assert alive, f"the run ended before its kill:\n{self.log.read_text()}"
    for stage in STAGES:
      if self.writing(stage):
        return f"{stage}: mid-save"
    if self.writing("latents"):
      return "mid-latent-cache"
    ended = [stage for stage in STAGES if self.finished(stage)]
    for stage in STAGES:
      if self.begun(stage) and stage not in ended:
        return f"{stage}: between saves"
    return f"between stages, after {ended[-1]}" if ended else "start"

  def finish(self):
    code = self.process.wait(timeout=600)
    assert code == 0, self.log.read_text()


def moments(draw, spans):
  """(condition, seconds after it) of every kill, in the order of the run."""
  for stage in STAGES:
    if stage == "dvae":
      yield lambda run: True, draw.uniform(0.2, 0.9) * spans["start"]
    else:
      before = STAGES[STAGES.index(stage) - 1]
      yield lambda run, s=before: run.finished(s), draw.uniform(0, 0.9) * spans["behind", before]
    if stage == "dgt":
      yield lambda run: run.writing("latents"), draw.uniform(0, 0.7) * spans["latents"]
    yield lambda run, s=stage: run.begun(s), draw.uniform(0.1, 0.8) * spans["stage", stage]
    yield lambda run, s=stage: run.writing(s), draw.uniform(0, 0.7) * spans["save", stage]


def observe(run):
  """How long the stretches of an undisturbed run take, in seconds."""
  begin, spans = time.monotonic(), {}

  def wait(condition):
    assert run.until(condition), run.log.read_text()
    return time.monotonic()

  spans["start"] = wait(lambda r: (r.workdir / "config.json").exists()) - begin
  for stage in STAGES:
    if stage != "dvae":
      before = STAGES[STAGES.index(stage) - 1]
      done = wait(lambda r, s=before: r.finished(s))
      if stage == "dgt":
        cache = wait(lambda r: r.writing("latents"))
        spans["latents"] = wait(lambda r: r.cached()) - cache
        spans["behind", before] = cache - done
      else:
        spans["behind", before] = wait(lambda r, s=stage: (r.workdir / s).exists()) - done
    first = wait(lambda r, s=stage: r.begun(s))
    saving = wait(lambda r, s=stage: r.writing(s))
    spans["save", stage] = wait(lambda r, s=stage: not r.writing(s)) - saving
    spans["stage", stage] = wait(lambda r, s=stage: r.finished(s)) - first
  run.finish()
  return spans


@pytest.mark.all
def test_ten_kills_change_no_bit(tmp_path, capsys):
  config = e2e.shrink(
    configs.load(e2e.CONFIGS / "demo.py", "tiny"), e2e.make_images(tmp_path / "images"), STEPS
  )
  config.dct.model.refine_depth = 1
  for name in STAGES:
    config[name].every.preview = STEPS
  (tmp_path / "recipe.json").write_text(configs.to_json(config))
  recipe = tmp_path / "recipe.py"
  recipe.write_text(RECIPE)
  surroundings = environment(tmp_path)
  straight, again, killed = (tmp_path / name for name in ("straight", "again", "killed"))
  Run(recipe, straight, surroundings).finish()
  spans = observe(Run(recipe, again, surroundings))  # as fast as the restarts: nothing to compile
  phases = []
  for condition, delay in moments(random.Random(0), spans):
    run = Run(recipe, killed, surroundings)
    assert run.until(condition), run.log.read_text()
    time.sleep(delay)
    phases.append(run.kill())
    with capsys.disabled():
      steps = {stage: Checkpoints(killed / stage).latest() or 0 for stage in STAGES}
      print(
        f"\nkill {len(phases)}: {phases[-1]}, {delay:.2f} s in, saved {steps}", end="", flush=True
      )
  Run(recipe, killed, surroundings).finish()

  equal = total = 0
  for stage in STAGES:
    got, want, control = (e2e.last(workdir, stage) for workdir in (killed, straight, again))
    e2e.assert_bit_equal(control, want)
    assert got[:2] == want[:2]
    assert got[0] == STEPS
    assert list(got[2]) == list(want[2])
    total += len(want[2])
    equal += sum(x.tobytes() == want[2][name].tobytes() for name, x in got[2].items())
    metas = [Checkpoints(workdir / stage).read_meta() for workdir in (killed, straight)]
    assert metas[0] == metas[1]
    lines = [writer.read(workdir / stage / "metrics.jsonl") for workdir in (killed, straight)]
    assert lines[0] == lines[1]
  with capsys.disabled():
    met = dict(collections.Counter(phases))
    print(f"\nresume: {len(phases)} kills, phases {met}, bit-equal {equal}/{total} arrays")
  assert len(phases) == KILLS
  assert equal == total
  assert "mid-latent-cache" in phases
  for stage in STAGES:
    assert any(phase.startswith(stage) for phase in phases)
  assert any("mid-save" in phase for phase in phases)
  assert any("between stages" in phase for phase in phases)
