"""A script of benchmarks/ as a module, for the tests of its parts; benchmarks/ is no package."""

import importlib.util
import pathlib
import sys

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"


def load(name: str):
  spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
  found = importlib.util.module_from_spec(spec)
  sys.modules[name] = found  # dataclasses look their module up
  spec.loader.exec_module(found)
  return found
