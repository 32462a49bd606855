"""Runs the real command as a user would: one process, no fake devices, XLA as it comes."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]


def one_device() -> dict[str, str]:
  """This environment without fake devices, for commands that compile longer than they run."""
  flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
  return os.environ | {"XLA_FLAGS": " ".join(flags)}


def main(recipe: str, workdir, *overrides: str) -> str:
  """`python -m dit_jax.main` on tests/recipes/`recipe`; its standard output."""
  env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  words = [f"--config={ROOT / 'tests' / 'recipes' / recipe}", f"--workdir={workdir}", *overrides]
  command = [sys.executable, "-m", "dit_jax.main", *words]
  done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stdout
