"""Every command line of docs/launch.md, replayed against tools that write down what they are told.

The tools stand in for clusters: what gcloud sends to a host is unpacked and run in a folder, sbatch
runs a copy of its script, xpk runs its command in the folder that it would put into an image.
"""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time

import pytest

from dit_jax import main
from dit_jax.core import cli

ROOT = pathlib.Path(__file__).resolve().parents[1]
FENCES = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "docs/launch.md").read_text(), re.M | re.S)
BLOCKS = [text for language, text in FENCES if language != "text"]  # which is output
SCRIPTS = ("tpu_vm", "tpu_queued", "xpk", "slurm", "gpu")
SHIPPED = ("configs", "constraints.txt", "dit_jax", "launch", "pyproject.toml", "setup.py")
COMMON = (  # and nothing else of this machine
  *("bash", "basename", "cat", "cksum", "cp", "dirname", "env", "flock", "grep", "gzip", "mkdir"),
  *("mktemp", "rm", "sleep", "tail", "tar"),
)
WHERE = {"PROJECT": "my-project", "ZONE": "us-east5-b", "NAME": "xl", "CLUSTER": "tpus"}
NEEDED = {
  "tpu_vm": ("gcloud", "PROJECT", "ZONE", "NAME"),
  "tpu_queued": ("gcloud", "PROJECT", "ZONE", "NAME"),
  "xpk": ("xpk", "PROJECT", "ZONE", "NAME", "CLUSTER"),
  "slurm": ("srun",),
  "gpu": ("nvidia-smi",),
}

STAND_IN = """
import json, os, pathlib, shutil, subprocess, sys, time
tool, words = os.path.basename(sys.argv[1]), sys.argv[2:]
with open(os.environ["CALLS"], "a") as calls:
  calls.write(json.dumps([tool, *words]) + "\\n")
flags = dict(w[2:].split("=", 1) for w in words if w.startswith("--") and "=" in w)
host = pathlib.Path(os.environ["HOST"])

def shell(command, cwd, **env):
  return subprocess.run(["bash", "-c", command], cwd=cwd, env=os.environ | env).returncode

def gcloud():
  kind, verb, name = words[2:5]
  state = pathlib.Path(os.environ["STATES"]) / f"{kind} {name}"
  states = state.read_text().split() if state.exists() else []
  if verb == "describe":
    if not states:
      return 1
    print(states[0])
    state.write_text(" ".join(states[1:] or states))  # the last one stays
  elif verb == "delete":
    state.write_text("")
  elif verb in ("create", "start"):
    state.write_text("ACTIVE" if kind == "queued-resources" else "READY")
  elif verb == "scp":
    shutil.copy(name, host / pathlib.Path(name).name)
  elif verb == "ssh" and "pkill" not in flags["command"]:
    return shell(flags["command"], host, HOME=str(host))
  return 0

def python():
  if words[:2] == ["-m", "venv"]:
    folder = pathlib.Path(words[2]) / "bin"
    folder.mkdir(parents=True)
    (folder / "python").symlink_to(shutil.which("python3"))
  if words[:2] == ["-m", "dit_jax.main"]:
    while os.path.exists(os.environ["CALLS"] + ".wait"):
      time.sleep(0.05)
    return int(os.environ.get("CODE", 0))
  return 0

def sbatch():
  at = next(i for i, word in enumerate(words) if word.endswith(".sh"))
  lines = pathlib.Path(words[at]).read_text().splitlines()
  given = [line.split()[1] for line in lines if line.startswith("#SBATCH")] + words[:at]
  given = dict(word[2:].split("=", 1) for word in given if "=" in word)
  copy = shutil.copy(words[at], host / "slurm_script")
  return subprocess.run(["bash", copy, *words[at + 1 :]], cwd=host, env=os.environ | {
    "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": os.getcwd(),
    "SLURM_NTASKS_PER_NODE": given["ntasks-per-node"],
    "SLURM_CPUS_PER_TASK": given["cpus-per-task"]}).returncode

def srun():
  at = next(i for i, word in enumerate(words) if not word.startswith("--"))
  return subprocess.run(words[at:]).returncode

def xpk():
  if words[0] == "workload":
    assert "\\n" not in flags["command"]  # it would end xpk's block of YAML
    return shell(flags["command"], flags["script-dir"])
  return 0

act = {"gcloud": gcloud, "python": python, "python3": python, "sbatch": sbatch, "srun": srun,
       "xpk": xpk}.get(tool, lambda: 1 if tool == "mountpoint" else 0)
sys.exit(act())
"""
TOOLS = ("gcloud", "xpk", "srun", "sbatch", "nvidia-smi", "python", "python3", "sudo", "mountpoint")


class World:
  """A copy of the repository in a folder with a space, a host to send it to, and the tools."""

  def __init__(self, folder: pathlib.Path):
    self.root, self.host, self.bin = folder / "my repo", folder / "a host", folder / "bin"
    self.states, self.log = folder / "states", folder / "calls"
    for path in (self.root, self.host, self.bin, self.states):
      path.mkdir()
    for name in (*SHIPPED, "README.md"):
      copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
      copy(ROOT / name, self.root / name)
    for name in COMMON:
      (self.bin / name).symlink_to(shutil.which(name))
    stand_in = folder / "stand_in.py"
    stand_in.write_text(STAND_IN)
    for name in TOOLS:  # a shell's lines: the path of an interpreter may have spaces
      line = f'exec "{sys.executable}" -IS "{stand_in}" "$0" "$@"'
      (self.bin / name).write_text(f"#!/bin/sh\n{line}\n")
      (self.bin / name).chmod(0o755)
    self.log.write_text("")
    self.env = {
      "PATH": str(self.bin),
      "TMPDIR": str(folder),
      "CALLS": str(self.log),
      "HOST": str(self.host),
      "STATES": str(self.states),
      "POLL": "0",
    }

  def start(self, script: str, **env) -> subprocess.Popen:
    """Bash, running a text in the root of the repository."""
    return subprocess.Popen(
      ["bash", "-euc", script],
      cwd=self.root,
      env=self.env | env,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def run(self, script: str, **env) -> subprocess.CompletedProcess:
    process = self.start(script, **env)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(script, process.returncode, out, err)

  def launch(self, name: str, *words: str, **env) -> subprocess.CompletedProcess:
    """One of SCRIPTS with its variables, as its users call it."""
    before = "sbatch " if name == "slurm" else ""
    return self.run(f"{before}launch/{name}.sh {shlex.join(words)}", **WHERE | env)

  def calls(self, *start: str) -> list[list[str]]:
    """The command lines that began with these words, without them."""
    told = [json.loads(line) for line in self.log.read_text().splitlines()]
    return [words[len(start) :] for words in told if words[: len(start)] == list(start)]

  def trainings(self) -> list[list[str]]:
    """The flags that dit_jax.main got, call by call."""
    return self.calls("python", "-m", "dit_jax.main")


@pytest.fixture
def world(tmp_path):
  return World(tmp_path)


def documented(block: str) -> list[list[str]]:
  """The flags of dit_jax.main in a block of the page, line by line."""
  lines = block.replace("\\\n", " ").splitlines()
  words = [shlex.split(line, comments=True) for line in lines if "--config=" in line]
  return [line[next(i for i, w in enumerate(line) if "--config=" in w) :] for line in words]


def test_the_page_names_every_script():
  text = "\n".join(BLOCKS)
  assert all(f"launch/{name}.sh" in text for name in SCRIPTS)
  assert sum(len(documented(block)) for block in BLOCKS) >= 8


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: b.split("\n")[0][:40])
def test_every_documented_line_does_what_it_says(world, block, monkeypatch):
  done = world.run(block)
  assert done.returncode == 0, done.stderr
  assert world.trainings() == documented(block)
  monkeypatch.chdir(ROOT)
  for words in world.trainings():
    cli.parse_flags(main.FLAGS, ["main", *words])
    assert main._CONFIG.value.stages
    assert main._WORKDIR.value
  missing = [w for w in re.findall(r"launch/(\w+)\.sh", block) if w not in SCRIPTS]
  assert not missing


@pytest.mark.parametrize("name", [*SCRIPTS, "cluster"])
def test_a_script_is_a_page(name):
  path = ROOT / "launch" / f"{name}.sh"
  assert len(path.read_text().splitlines()) <= 40
  assert os.access(path, os.X_OK) == (name != "cluster")  # which is sourced
  subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.parametrize("name", SCRIPTS)
def test_words_arrive_whole(world, name):
  words = [
    "--config=configs/demo.py:tiny",
    "--workdir=/shared/two words",
    "--config.data.path=it's=$HOME/*",
    '--config.data.only=("a b", "c")',
  ]
  done = world.launch(name, *words)
  assert done.returncode == 0, done.stderr
  assert world.trainings() == [words]


@pytest.mark.parametrize(
  ("name", "lacks"), [(name, lacks) for name in SCRIPTS for lacks in NEEDED[name]]
)
def test_what_is_missing_is_one_line(world, name, lacks):
  (world.bin / lacks).unlink(missing_ok=True)
  done = world.launch(name, "--config=x", **{lacks: ""} if lacks in WHERE else {})
  assert done.returncode == 2
  assert done.stderr.count("\n") == 1
  assert done.stderr.startswith(f"{'slurm_script' if name == 'slurm' else name + '.sh'}: {lacks} ")
  assert world.trainings() == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_flags_are_one_line(world, name):
  done = world.launch(name)
  assert (done.returncode, done.stderr.count("\n")) == (2, 1)
  assert "--config" in done.stderr


def test_slurm_without_a_job_is_one_line(world):
  done = world.run("launch/slurm.sh --config=x")
  assert (done.returncode, done.stderr.count("\n")) == (2, 1)
  assert "sbatch" in done.stderr
  elsewhere = world.run("cd configs && sbatch ../launch/slurm.sh --config=x")
  assert (elsewhere.returncode, elsewhere.stderr.count("\n")) == (2, 1)


def test_a_tpu_vm_is_made_once_and_reused(world):
  for _ in range(2):
    done = world.launch("tpu_vm", "--config=x", ACCELERATOR_TYPE="v5p-128", VERSION="v5", SPOT="1")
    assert done.returncode == 0, done.stderr
  where = ["xl", "--project=my-project", "--zone=us-east5-b"]
  vm = ("gcloud", "compute", "tpus", "tpu-vm")
  assert world.calls(*vm, "create") == [
    [*where, "--accelerator-type=v5p-128", "--version=v5", "--spot"]
  ]
  assert world.trainings() == [["--config=x"]] * 2
  for words in world.calls(*vm, "ssh"):
    assert words[:4] == ["xl", "--worker=all", *where[1:]]
  assert len(world.calls("python", "-m", "pip")) == 1  # installed once


@pytest.mark.parametrize(
  ("state", "verbs"),
  [
    ("READY", []),
    ("STOPPED", ["start"]),
    ("PREEMPTED", ["delete", "create"]),
    ("TERMINATED", ["delete", "create"]),
    ("", ["create"]),
  ],
)
def test_a_tpu_vm_in_any_state_comes_back(world, state, verbs):
  (world.states / "tpu-vm xl").write_text(state)
  assert world.launch("tpu_vm", "--config=x").returncode == 0
  told = [words[0] for words in world.calls("gcloud", "compute", "tpus", "tpu-vm")]
  assert told == ["describe", *verbs, "scp", "ssh"]


def test_a_tpu_vm_that_is_being_made_is_not_made_again(world):
  (world.states / "tpu-vm xl").write_text("CREATING")
  done = world.launch("tpu_vm", "--config=x")
  assert (done.returncode, done.stderr.count("\n")) == (2, 1)
  assert world.trainings() == []


@pytest.mark.parametrize(
  ("states", "verbs"),
  [
    ("ACTIVE", []),
    ("WAITING_FOR_RESOURCES PROVISIONING ACTIVE", []),
    ("SUSPENDING SUSPENDED", ["delete", "create"]),
    ("FAILED", ["delete", "create"]),
    ("", ["create"]),
  ],
)
def test_the_queue_is_waited_for(world, states, verbs):
  (world.states / "queued-resources xl").write_text(states)
  done = world.launch("tpu_queued", "--config=x", SPOT="yes")
  assert done.returncode == 0, done.stderr
  queue = ("gcloud", "compute", "tpus", "queued-resources")
  assert [words[0] for words in world.calls(*queue) if words[0] != "describe"] == verbs
  for words in world.calls(*queue, "create"):
    assert {"xl", "--zone=us-east5-b", "--node-id=xl", "--accelerator-type=v6e-8"} <= {*words}
    assert {"--runtime-version=v2-alpha-tpuv6e", "--spot"} <= {*words}
  assert world.trainings() == [["--config=x"]]


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_exit_code_is_that_of_the_training(world, name):
  assert world.launch(name, "--config=x", CODE="134").returncode == 134
  assert world.launch(name, "--config=x", CODE="0").returncode == 0


def wait_until(happened, seconds=60):
  """Returns when it has happened, and fails when it does not."""
  end = time.monotonic() + seconds
  while not happened():
    assert time.monotonic() < end, f"waited {seconds} s in vain"
    time.sleep(0.05)


def test_a_second_call_follows_the_run_that_goes_on(world):
  hold = pathlib.Path(f"{world.log}.wait")
  hold.touch()
  line = "launch/tpu_vm.sh --config=x"
  first = world.start(line, **WHERE)
  wait_until(world.trainings)
  first.kill()  # the connection breaks; the run on the host goes on
  second = world.start(line, **WHERE)
  wait_until(lambda: len(world.calls("gcloud", "compute", "tpus", "tpu-vm", "ssh")) == 2)
  time.sleep(0.5)
  hold.unlink()
  assert second.wait(timeout=60) == 0
  assert world.trainings() == [["--config=x"]]


def test_setup_runs_on_the_host_first(world):
  done = world.launch("tpu_vm", "--config=x", SETUP="sudo mount it # a comment")
  assert done.returncode == 0, done.stderr
  assert world.calls("sudo") == [["mount", "it"]]
  failed = world.launch("tpu_vm", "--config=x", SETUP="false")
  assert failed.returncode == 1
  assert len(world.trainings()) == 1


def test_slurm_starts_one_task_a_gpu_that_sees_all_of_them(world):
  done = world.run("sbatch --nodes=2 --ntasks-per-node=4 launch/slurm.sh --config=x")
  assert done.returncode == 0, done.stderr
  (words,) = world.calls("srun")
  asked = {"--ntasks-per-node=4", "--cpus-per-task=8", "--gpu-bind=none", "--kill-on-bad-exit=1"}
  assert asked <= {*words}


def test_xpk_gets_this_tree_and_the_cluster(world):
  done = world.launch("xpk", "--config=x", TPU_TYPE="v6e-64", SLICES="2", STORAGE="runs")
  assert done.returncode == 0, done.stderr
  (words,) = world.calls("xpk", "workload", "create")
  asked = {"--cluster=tpus", "--workload=xl", "--tpu-type=v6e-64", "--num-slices=2"}
  assert asked | {"--storage=runs", "--zone=us-east5-b", "--project=my-project"} <= {*words}
  (pip,) = world.calls("python", "-m", "pip")
  assert pip[-3:] == [".[tpu,demo]", "-c", "constraints.txt"]
