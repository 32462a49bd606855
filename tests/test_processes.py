"""Two processes train together; one is killed, the other ends in time and names it, both resume.

Started by flags on this machine, a CPU device each; the pieces travel over the loopback.
"""

import json
import pathlib
import socket
import subprocess
import sys
import time

import pytest
import test_end_to_end as e2e
import test_resume

from dit_jax import evaluate, main
from dit_jax.core import cli, writer
from dit_jax.core import config as configs

ROOT = pathlib.Path(__file__).resolve().parents[1]
STAGES, STEPS, LIMIT = e2e.STAGES, 12, 120  # seconds that the other may live on


class Pair:
  """The command, running twice as one cluster."""

  def __init__(self, recipe, workdir, environment):
    with socket.socket() as free:
      free.bind(("", 0))
      port = free.getsockname()[1]
    self.logs = [workdir.with_suffix(f".{i}.log") for i in range(2)]
    self.processes = []
    for i, log in enumerate(self.logs):
      words = [f"--config={recipe}", f"--workdir={workdir}", f"--coordinator=localhost:{port}"]
      command = [sys.executable, "-m", "dit_jax.main", *words, "--num_processes=2"]
      with log.open("w") as out:
        self.processes.append(
          subprocess.Popen(
            [*command, f"--process_id={i}"], cwd=ROOT, env=environment, stdout=out, stderr=out
          )
        )

  def until(self, path: pathlib.Path, timeout=600):
    end = time.monotonic() + timeout
    while not path.exists():
      assert [p.poll() for p in self.processes] == [None, None], self.told()
      assert time.monotonic() < end, self.told()
      time.sleep(0.02)

  def told(self) -> str:
    return "\n".join(log.read_text()[-3000:] for log in self.logs)

  def finish(self):
    codes = [p.wait(timeout=900) for p in self.processes]
    assert codes == [0, 0], self.told()


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
  """The recipe, the environment, and the workdir of an undisturbed run."""
  folder = tmp_path_factory.mktemp("pair")
  images = e2e.make_images(folder / "images")
  config = e2e.shrink(configs.load(e2e.CONFIGS / "demo.py", "tiny"), images, STEPS)
  config.dct.model.refine_depth = 1
  recipe, environment = written(folder / "recipe.py", config), test_resume.environment(folder)
  Pair(recipe, folder / "straight", environment).finish()
  return recipe, environment, folder / "straight"


def written(path: pathlib.Path, config) -> pathlib.Path:
  """A recipe of its own, beside the config that it gives."""
  path.with_suffix(".json").write_text(configs.to_json(config))
  path.write_text(test_resume.RECIPE.replace("recipe.json", path.with_suffix(".json").name))
  return path


@pytest.mark.parametrize(
  "flags", [["--coordinator=h:1"], ["--coordinator=h:1", "--num_processes=2", "--process_id=2"]]
)
def test_flags_that_do_not_fit_start_nothing(tmp_path, capsys, flags):
  words = [f"--config={e2e.CONFIGS / 'demo.py'}", f"--workdir={tmp_path / 'new'}", *flags]
  with pytest.raises(SystemExit) as stop:
    cli.run(main.main, main.FLAGS, ["main", *words])
  err = capsys.readouterr().err
  assert (stop.value.code, err.count("\n"), err[:7]) == (2, 1, "error: ")
  assert not (tmp_path / "new").exists()


@pytest.mark.all
def test_two_processes_fine_tune_what_two_have_trained(setting, tmp_path):
  """The DVAE is taken over once, by one of them, while the other waits."""
  recipe, environment, straight = setting
  config = configs.from_json((recipe.parent / "recipe.json").read_text())
  config.init_from, config.peft, config.frozen_dtype = str(straight), "finediffusion", "bfloat16"
  pair = Pair(written(recipe.parent / "tuned.py", config), tmp_path / "run", environment)
  pair.finish()
  assert sum(log.read_text().count("[dvae] taken over from") for log in pair.logs) == 1
  for stage in ("dgt", "dct"):
    assert e2e.last(tmp_path / "run", stage)[0] == STEPS
  dvae = lambda workdir: e2e.last(workdir, "dvae")
  e2e.assert_bit_equal(dvae(tmp_path / "run"), dvae(straight))


@pytest.mark.all
def test_two_processes_evaluate_as_one_command_does(setting, tmp_path):
  """With HRIG, whose strength both measure: the same numbers, cards and pictures."""
  recipe, environment, _ = setting
  config = configs.from_json((recipe.parent / "recipe.json").read_text())
  config.data.holdout, config.dct.hrig.enabled = 2, True
  config.evals.reconstruction.update(every=STEPS, num=4)
  config.evals.fidelity.update(every=STEPS, num=5)
  workdir = tmp_path / "run"
  pair = Pair(written(recipe.parent / "evaluated.py", config), workdir, environment)
  pair.finish()
  assert "warning" not in pair.told()
  trained = {path: path.read_bytes() for path in (workdir / "evaluations").rglob("*.*")}
  folders = {path.parent.name for path in trained}
  assert len(folders) == 2
  for name in folders:
    stage, _, step, _ = name.split("_")
    words = [f"--stage={stage}", f"--step={int(step)}", f"--num={4 if stage == 'dvae' else 5}"]
    cli.run(evaluate.main, evaluate.FLAGS, ["evaluate", f"--workdir={workdir}", *words])
  assert {path: path.read_bytes() for path in (workdir / "evaluations").rglob("*.*")} == trained
  card = json.loads((workdir / f"evaluations/dct_step_{STEPS:08d}_fidelity/card.json").read_text())
  assert (card["n"], card["reference_n"]) == (5, 2 * len(e2e.CLASSES))
  lines = writer.read(workdir / "dct" / "metrics.jsonl")
  assert [line["eval/VGG-FD"] for line in lines if "eval/VGG-FD" in line] == [
    card["metrics"]["VGG-FD"]
  ]


@pytest.mark.all
@pytest.mark.parametrize(("dies", "stage"), [(1, "dct"), (0, "dgt")])
def test_a_dead_process_ends_the_other_and_both_resume(setting, tmp_path, capsys, dies, stage):
  recipe, environment, straight = setting
  workdir = tmp_path / "killed"
  pair = Pair(recipe, workdir, environment)
  pair.until(workdir / stage / "2")
  pair.processes[dies].kill()
  begin = time.monotonic()
  code = pair.processes[1 - dies].wait(timeout=LIMIT)
  took = time.monotonic() - begin
  time.sleep(2)  # the last line comes from a child, behind the end
  line = pair.logs[1 - dies].read_text().splitlines()[-1]
  with capsys.disabled():
    print(f"\nprocess {dies} killed: the other ended after {took:.1f} s, code {code}: {line}")
  assert code != 0
  assert line.startswith(f"error: process {dies}")
  assert not (workdir / stage / str(STEPS)).exists()

  Pair(recipe, workdir, environment).finish()
  for name in STAGES:
    got, want = e2e.last(workdir, name), e2e.last(straight, name)
    assert got[0] == STEPS
    e2e.assert_bit_equal(got, want)
    lines = [writer.read(folder / name / "metrics.jsonl") for folder in (workdir, straight)]
    assert lines[0] == lines[1]
