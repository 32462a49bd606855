"""Laws of the command line: a user's error is one line and exit code 2, a bug keeps its trace."""

import socket
import subprocess
import sys
import textwrap

import jax
import pytest
from absl import flags
from ml_collections import config_flags

from dit_jax.core import cli, last_words
from dit_jax.core.errors import UserError

RECIPE = """
from dit_jax.core import config
import ml_collections

def get_config(arg=None):
  arg = config.parse_arg(arg, tiny=False)
  c = ml_collections.ConfigDict()
  c.seed, c.flag, c.stages = 0, True, ("dct",)
  c.dct = dict(batch_size=2 if arg.tiny else 256, lr=1e-4)
  return c
"""


class Program:
  """An entry point: its own flags, and the config that main saw last."""

  def __init__(self, doing=lambda: None):
    self.flags = flags.FlagValues()
    self.config = config_flags.DEFINE_config_file("config", flag_values=self.flags)
    self.workdir = flags.DEFINE_string("workdir", "", "Where.", flag_values=self.flags)
    self.mode = flags.DEFINE_enum("mode", "a", ["a", "b"], "Which.", flag_values=self.flags)
    self.num = flags.DEFINE_integer("num", 1, "How many.", flag_values=self.flags)
    self.doing, self.ran = doing, 0

  def main(self):
    self.ran += 1
    self.doing()

  def run(self, *words):
    cli.run(self.main, self.flags, ["program", *words])


@pytest.fixture
def recipe(tmp_path):
  path = tmp_path / "re cipe.py"
  path.write_text(RECIPE)
  return path


def refused(program: Program, capsys, *words) -> str:
  with pytest.raises(SystemExit) as stop:
    program.run(*words)
  err = capsys.readouterr().err
  assert stop.value.code == 2
  assert err.startswith("error: ")
  assert err.count("\n") == 1
  assert program.ran == 0
  return err


def test_overrides_and_recipe_arguments(recipe):
  program = Program()
  program.run(f"--config={recipe}:tiny", "--config.dct.lr=0.5", "--noconfig.flag", "--num=3")
  c = program.config.value
  assert (c.dct.batch_size, c.dct.lr, c.flag, program.num.value) == (2, 0.5, False, 3)
  assert c.is_locked


def test_a_second_call_starts_from_the_defaults(recipe):
  program = Program()
  program.run(f"--config={recipe}", "--config.seed=4", "--num=3")
  program.run("--config", str(recipe), "--config.dct.lr", "0.25")
  c = program.config.value
  assert (c.seed, c.dct.lr, program.num.value) == (0, 0.25, 1)
  program.run()
  assert program.config.value is None


def test_two_entry_points_live_in_one_process(recipe):
  one, two = Program(), Program()
  one.run(f"--config={recipe}", "--config.seed=1")
  two.run(f"--config={recipe}", "--config.seed=2")
  assert (one.config.value.seed, two.config.value.seed) == (1, 2)


@pytest.mark.parametrize(
  ("words", "told"),
  [
    (["--config.dct.batchsize=3"], "did you mean 'batch_size'"),
    (["--config.dtc.batch_size=3"], "did you mean 'dct'"),
    (["--config.dct.batch_size=abc"], "must be of type int, like 256"),
    (["--config.dct.batch_size", "abc"], "must be of type int"),
    (["--config.dct.batch_size=3.5"], "must be of type int"),
    (["--config.dct.batch_size"], "has no value"),
    (["--config.flag=maybe"], "must be of type bool"),
    (["--config.stages=(1,"], "must be of type tuple"),
    (["--config.dct=3"], "is a block"),
    (["--config.dct.lr.x=3"], "names no field"),
    (["--config.=3"], "names no field"),
    (["--workdr=x"], "Did you mean: workdir"),
    (["--mode=c"], "<a|b>"),
    (["--num=x"], "num"),
    (["--num"], "num"),
    (["resume"], "unexpected argument 'resume'"),
  ],
  ids=str,
)
def test_wrong_words_are_one_line(recipe, capsys, words, told):
  assert told in refused(Program(), capsys, f"--config={recipe}", *words)


@pytest.mark.parametrize(
  ("text", "told"),
  [
    ("def get_config(:\n", "line 1: SyntaxError"),
    ("import no_such_module\n", "ModuleNotFoundError"),
    ("x = 1\n", "no function get_config"),
    ("def get_config():\n  raise KeyError('boom')\n", "line 2: KeyError"),
    ("def get_config():\n  raise ValueError('two\\nlines')\n", "line 2: ValueError: two lines"),
    ("def get_config():\n  open('/no/such/file')\n", "line 2: FileNotFoundError"),
    ("def get_config():\n  return {'a': 1}\n", "returned a dict"),
    ("def get_config():\n  pass\n", "returned a NoneType"),
    ("def get_config():\n  return 1 / 0\n", "ZeroDivisionError"),
  ],
  ids=str,
)
def test_a_failing_config_file_is_one_line(tmp_path, capsys, text, told):
  path = tmp_path / "bad.py"
  path.write_text(text)
  err = refused(Program(), capsys, f"--config={path}")
  assert told in err
  assert "bad.py" in err or "returned" in err


@pytest.mark.parametrize("path", ["no_such.py", "", ".", "recipe.txt"])
def test_a_missing_config_file_is_one_line(tmp_path, monkeypatch, capsys, path):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "recipe.txt").write_text(RECIPE)
  assert "no such config file" in refused(Program(), capsys, f"--config={path}")


def test_a_wrong_recipe_argument_is_one_line(recipe, capsys):
  assert "did you mean 'tiny'" in refused(Program(), capsys, f"--config={recipe}:tny")


def test_an_override_before_its_config_is_one_line(recipe, capsys):
  assert "before" in refused(Program(), capsys, "--config.seed=1", f"--config={recipe}")


def raising(error):
  def doing():
    raise error

  return doing


def test_user_errors_of_main_are_one_line(capsys):
  program = Program(raising(UserError("batch_size=3\nmust be even")))
  with pytest.raises(SystemExit) as stop:
    program.run()
  assert stop.value.code == 2
  assert capsys.readouterr().err == "error: batch_size=3 must be even\n"


def test_own_bugs_are_not_hidden():
  with pytest.raises(ValueError, match="our bug"):
    Program(raising(ValueError("our bug"))).run()


def test_ctrl_c_is_130():
  with pytest.raises(SystemExit) as stop:
    Program(raising(KeyboardInterrupt())).run()
  assert stop.value.code == 130


def test_help_runs_nothing(recipe, capsys):
  program = Program()
  with pytest.raises(SystemExit) as stop:
    program.run(f"--config={recipe}", "--help")
  out = capsys.readouterr().out
  assert stop.value.code == 0
  assert program.ran == 0
  assert "--workdir" in out
  assert "Laws of the command line" in out


def test_exit_codes_of_a_real_process(tmp_path):
  script = tmp_path / "program.py"
  script.write_text(
    textwrap.dedent("""
      from absl import flags
      from dit_jax.core import cli
      FLAGS = flags.FlagValues()
      BUG = flags.DEFINE_bool("bug", False, "Be wrong.", flag_values=FLAGS)
      def main():
        if BUG.value:
          raise RuntimeError("our bug")
      if __name__ == "__main__":
        cli.run(main, FLAGS)
    """)
  )
  root = cli.__file__.split("/dit_jax/")[0]

  def run(*words):
    argv = [sys.executable, str(script), *words]
    return subprocess.run(argv, cwd=root, env={"PYTHONPATH": root}, capture_output=True, text=True)

  wrong, bug = run("--bgu"), run("--bug")
  assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
  assert bug.returncode == 1
  assert "Traceback" in bug.stderr


@pytest.fixture
def started(monkeypatch):
  """Calls of jax.distributed.initialize, which is not made."""
  calls = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **_: calls.append(args))
  monkeypatch.setattr(last_words, "listen", lambda: None)
  for name in ("JAX_COORDINATOR_ADDRESS", "SLURM_JOB_ID", "TPU_WORKER_HOSTNAMES"):
    monkeypatch.delenv(name, raising=False)
  return calls


@pytest.mark.parametrize(
  ("env", "calls"),
  [
    ({}, []),
    ({"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "1"}, []),
    ({"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "4"}, [()]),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, []),
    ({"TPU_WORKER_HOSTNAMES": "t0,t1"}, [()]),
    ({"DIT_JAX_DISTRIBUTED": "1"}, [()]),
    (
      {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
      [("h:1", 2, 1)],
    ),
  ],
  ids=str,
)
def test_a_cluster_is_joined_only_where_there_is_one(monkeypatch, started, env, calls):
  for name, value in env.items():
    monkeypatch.setenv(name, value)
  cli.initialize_distributed()
  assert started == calls


def test_half_a_cluster_is_refused(monkeypatch, started):
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "h:1")
  monkeypatch.setenv("JAX_PROCESS_ID", "1")
  with pytest.raises(UserError, match="missing: JAX_NUM_PROCESSES"):
    cli.initialize_distributed()
  monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
  with pytest.raises(
    UserError, match="JAX_NUM_PROCESSES=two and JAX_PROCESS_ID=1 must be integers"
  ):
    cli.initialize_distributed()
  assert started == []


def test_flags_go_before_the_environment(monkeypatch, started):
  monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "t0,t1")
  cli.initialize_distributed("[::1]:99", 8, 7)
  assert started == [("[::1]:99", 8, 7)]


@pytest.mark.parametrize(
  ("flags", "told"),
  [
    (("h:1", None, None), "missing: --num_processes, --process_id"),
    (("", 2, 0), "missing: --coordinator"),
    (("", None, 0), "missing: --coordinator, --num_processes"),
    (("h:1", 0, 0), "--num_processes=0 must be at least 1"),
    (("h:1", 2, 2), "--process_id=2 must be one of 0 to 1"),
    (("h:1", 2, -1), "--process_id=-1 must be one of 0 to 1"),
    (("h", 2, 1), "--coordinator=h must be HOST:PORT"),
    ((":1", 2, 1), "must be HOST:PORT"),
    (("h:99999", 2, 1), "must be HOST:PORT"),
  ],
  ids=str,
)
def test_an_impossible_cluster_is_refused(started, flags, told):
  with pytest.raises(UserError, match=told):
    cli.initialize_distributed(*flags)
  assert started == []


def test_a_port_in_use_is_refused_by_the_process_that_needs_it(started):
  with socket.create_server(("", 0)) as server:
    address = f"localhost:{server.getsockname()[1]}"
    with pytest.raises(UserError, match="is in use on this host"):
      cli.initialize_distributed(address, 2, 0)
    cli.initialize_distributed(address, 2, 1)  # whose host is another one
  assert started == [(address, 2, 1)]


DIED = "... the JAX distributed service detected fatal errors. ... absl::Status: "


@pytest.mark.parametrize(
  ("told", "story"),
  [
    ("INTERNAL: UNAVAILABLE: Task 12 heartbeat timeout. This ...", "process 12 gives no sign"),
    ("tasks are unhealthy (stopped sending heartbeats):\n1\n3\nThe tasks", "process 1, 3 gives no"),
    ("UNAVAILABLE: ... Either the leader task was preempted", "process 0, the coordinator, died"),
    ("Barrier timed out. ... The first task at the barrier: 1. Some", "process 1 ended before"),
    ("DEADLINE_EXCEEDED\nRPC: /x.CoordinationService/RegisterTask", "not all processes came"),
    ("words of a later version", "another process died"),
  ],
)
def test_the_last_words_name_the_process_that_died(told, story):
  text = f"Task 9 heartbeat timeout, in an earlier line\n{DIED}{told}\n"
  assert last_words.story(text).startswith(story)


@pytest.mark.parametrize("fatal", [True, False])
def test_stderr_is_passed_on_and_explained(fatal):
  end = f"{DIED}Task 1 heartbeat timeout" if fatal else "done"
  program = f"""
import os, subprocess
from dit_jax.core import last_words
last_words.listen()
os.write(2, b"as it comes, ")
subprocess.run(["sh", "-c", "echo from a child >&2; sleep 3 > /dev/null &"])
os.write(2, {end.encode()!r} + b"\\n")
os.kill(os.getpid(), {6 if fatal else 0})
"""
  root = cli.__file__.split("/dit_jax/")[0]
  done = subprocess.run(
    [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60
  )
  lines = done.stderr.splitlines()
  assert lines[0] == "as it comes, from a child"
  assert lines[1] == end
  assert done.returncode == (-6 if fatal else 0)
  assert [line.split(" gives")[0] for line in lines[2:]] == ["error: process 1"] * fatal
