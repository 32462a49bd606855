"""Every module imports, together with all others, and the entry points start quickly."""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dit_jax"
ENTRIES = [
  name
  for name in ("train", "sample", "evaluate", "check", "convert")
  if (PACKAGE / f"{name}.py").exists()
]
FOREIGN = ("tensorflow", "torch", "diffusers", "matplotlib")

# Imports what is named on the command line; prints seconds, failures and foreign modules.
_IMPORT = """
import importlib, json, sys, time, traceback
failures = {}
for name in sys.argv[1:]:
  try:
    importlib.import_module(name)
  except Exception:
    failures[name] = traceback.format_exc(limit=-2)
print(json.dumps(dict(seconds=time.process_time(), failures=failures, modules=list(sys.modules))))
"""


def modules(package: pathlib.Path = PACKAGE) -> list[str]:
  """The dotted name of every module of the package, sorted."""
  paths = [p.relative_to(package.parent).with_suffix("") for p in package.rglob("*.py")]
  return sorted(".".join(p.parts).removesuffix(".__init__") for p in paths)


def imported(names: list[str]) -> dict:
  """What a fresh process says of importing `names` in this order."""
  code = [sys.executable, "-c", _IMPORT, *names]
  run = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
  return json.loads(run.stdout.splitlines()[-1])


def test_every_module_imports_in_one_process():
  found = imported(modules())
  assert not found["failures"], "".join(found["failures"].values())
  assert set(modules()) <= set(found["modules"])
  assert not set(FOREIGN) & set(found["modules"])


def test_modules_are_found():
  assert {"dit_jax", "dit_jax.core", "dit_jax.core.errors"} <= set(modules())


def test_a_module_that_does_not_import_is_named():
  assert list(imported(["json", "dit_jax.no_such_room"])["failures"]) == ["dit_jax.no_such_room"]


def test_entry_points_start_in_three_seconds_without_foreign_frameworks():
  """Processor time, best of three: what an import costs, however busy the machine is."""
  runs = [imported([f"dit_jax.{name}" for name in ENTRIES]) for _ in range(3)]
  assert not runs[0]["failures"], "".join(runs[0]["failures"].values())
  assert not set(FOREIGN) & set(runs[0]["modules"])
  assert min(run["seconds"] for run in runs) < 3
