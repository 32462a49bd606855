"""What the tree may not contain: long files and functions, loose ends, paths of one machine, code
that runs what it reads, a number of classes written in. Each rule is tried on a planted fault too.
"""

import ast
import itertools
import pathlib
import re
import runpy
import subprocess
import sys
import types

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dit_jax"
FOLDERS = ("dit_jax", "configs", "launch", "benchmarks", "docs", "notebooks", "tests", ".ci")
TEXT = {".py", ".sh", ".md", ".toml", ".txt", ".ipynb", ".json", ".yaml", ".yml", ""}

MAX_FILE, MAX_FUNCTION, MAX_LOOP, MAX_SCRIPT = 350, 60, 150, 40
_LOOSE_ENDS = re.compile(r"\b(TODO|FIXME|XXX)\b")
_MACHINE_PATHS = re.compile(r"(?<![\w.})-])/(?:home|root|work|farm|Users|mnt|opt)/\w")


def texts() -> list[pathlib.Path]:
  """Every file of the repository that a person wrote."""
  found = [p for folder in FOLDERS for p in (ROOT / folder).rglob("*") if p.suffix in TEXT]
  found += [p for p in ROOT.iterdir() if p.suffix in TEXT - {""} or p.name == "LICENSE"]
  return sorted(p for p in found if p.is_file() and "__pycache__" not in p.parts)


def lines_matching(pattern: re.Pattern, text: str) -> list[int]:
  """Numbers of the lines that contain the pattern."""
  return [n for n, line in enumerate(text.splitlines(), 1) if pattern.search(line)]


def long_functions(tree: ast.AST, limits=(MAX_FUNCTION,)) -> list[str]:
  """Functions past their limit: the longest is held to the first limit, the rest to the last."""
  kinds = ast.FunctionDef | ast.AsyncFunctionDef
  found = [n for n in ast.walk(tree) if isinstance(n, kinds)]
  sizes = sorted(((n.end_lineno - n.lineno + 1, n.name) for n in found), reverse=True)
  limit = itertools.chain(limits, itertools.repeat(limits[-1]))
  rows = zip(sizes, limit, strict=False)
  return [f"{name}: {size} lines" for (size, name), most in rows if size > most]


def unsafe_calls(tree: ast.AST) -> list[str]:
  """Calls that run what they read: eval, exec, unpickling."""
  found = []
  for node in ast.walk(tree):
    if not isinstance(node, ast.Call):
      continue
    name = ast.unparse(node.func)
    if name in {"eval", "exec"} or re.fullmatch(r"_?c?[pP]ickle\.(loads?|Unpickler)", name):
      found.append(f"line {node.lineno}: {name}(")
    if any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords):
      found.append(f"line {node.lineno}: {name}(allow_pickle=")
  return found


def written_in_classes(tree: ast.AST) -> list[int]:
  """Lines where 1000 stands for a number of classes or for the null label.

  A pair (name, value) is a keyword, a default, an assignment, a dict entry, or the two sides of an
  operation; the number of time steps is called something else.
  """
  pairs = []
  for node in ast.walk(tree):
    match node:
      case ast.keyword(arg=name, value=value):
        pairs.append((name, value))
      case ast.arguments():
        named = [*node.posonlyargs, *node.args]
        named = named[len(named) - len(node.defaults) :] + node.kwonlyargs
        values = [*node.defaults, *node.kw_defaults]
        pairs += [(arg.arg, value) for arg, value in zip(named, values, strict=True)]
      case ast.Assign(targets=targets, value=value):
        pairs += [(target, value) for target in targets]
      case ast.AnnAssign(target=target, value=value):
        pairs.append((target, value))
      case ast.Dict(keys=keys, values=values):
        pairs += zip(keys, values, strict=True)
      case ast.Compare(left=left, comparators=[right]) | ast.BinOp(left=left, right=right):
        pairs += [(left, right), (right, left)]
  return sorted({value.lineno for name, value in pairs if _names_classes(name) and _is_1000(value)})


def _names_classes(name) -> bool:
  text = name if isinstance(name, str) else ast.unparse(name) if name else ""
  return re.search("class|label|null|child", text) is not None


def _is_1000(value) -> bool:
  if not isinstance(value, ast.expr):
    return False
  return any(isinstance(n, ast.Constant) and n.value in (1000, 1001) for n in ast.walk(value))


SOURCES = sorted(PACKAGE.rglob("*.py"))
every_source = pytest.mark.parametrize(
  "path", SOURCES, ids=lambda p: p.relative_to(PACKAGE).as_posix()
)


@every_source
def test_source_is_short_and_runs_nothing_it_reads(path):
  text = path.read_text(encoding="utf-8")
  tree, length = ast.parse(text), text.count("\n")
  assert length <= MAX_FILE
  loop = (MAX_LOOP,) if path == PACKAGE / "train.py" else ()
  assert long_functions(tree, (*loop, MAX_FUNCTION)) == []
  assert written_in_classes(tree) == []
  if PACKAGE / "weights" not in path.parents:
    assert unsafe_calls(tree) == []


def test_no_loose_ends_and_no_path_of_one_machine():
  found = []
  for path in texts():
    if path == pathlib.Path(__file__).resolve():
      continue  # the planted faults below
    text = path.read_text(encoding="utf-8")
    for pattern in (_LOOSE_ENDS, _MACHINE_PATHS):
      found += [f"{path.relative_to(ROOT)}:{n}" for n in lines_matching(pattern, text)]
  assert found == []


@pytest.mark.parametrize("path", sorted((ROOT / "launch").glob("*.sh")), ids=lambda p: p.name)
def test_launch_scripts_are_short_and_parse(path):
  assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_SCRIPT
  check = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
  assert (check.returncode, check.stderr) == (0, "")


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_constraints_pin_every_dependency_once(python, monkeypatch):
  """On each Python one pin, inside the range of setup.py; [tpu] and [cuda] only add to jax."""
  told = {}
  fake = types.ModuleType("setuptools")
  fake.setup, fake.find_packages = told.update, lambda **_: []
  monkeypatch.setitem(sys.modules, "setuptools", fake)
  runpy.run_path(str(ROOT / "setup.py"))
  wanted = [Requirement(r) for r in told["install_requires"]]
  wanted += [Requirement(r) for extra in told["extras_require"].values() for r in extra]

  env = {**default_environment(), "python_version": python}
  lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
  pins = [Requirement(line.partition(" #")[0]) for line in lines if line and line[0] != "#"]
  pins = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(env)]
  versions = {_plain(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
  assert len(versions) == len(pins)
  for want in wanted:
    assert want.specifier.contains(versions[_plain(want.name)]), want


def _plain(name: str) -> str:
  return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize(
  ("check", "source"),
  [
    (long_functions, "def f():\n" + "  x = 1\n" * MAX_FUNCTION),
    (long_functions, "class A:\n  async def f(self):\n" + "    x = 1\n" * MAX_FUNCTION),
    (unsafe_calls, "eval('1')"),
    (unsafe_calls, "exec(text)"),
    (unsafe_calls, "pickle.load(f)"),
    (unsafe_calls, "pickle.loads(b)"),
    (unsafe_calls, "np.load(f, allow_pickle=True)"),
    (unsafe_calls, "np.load(f, allow_pickle=flag)"),
    (written_in_classes, "DiT(num_classes=1000)"),
    (written_in_classes, "def f(x, num_classes: int = 1000): return x"),
    (written_in_classes, "def f(x, *, classes=(1000, 1)): return x"),
    (written_in_classes, "class A:\n  num_classes: int = 1000"),
    (written_in_classes, "null = [1000] * b"),
    (written_in_classes, "self.num_labels = 1000"),
    (written_in_classes, "label = jnp.where(drop, 1000, label)"),
    (written_in_classes, "guided = label != 1000"),
    (written_in_classes, "rows = 1000 + num_classes"),
    (written_in_classes, "dict(a={'num_classes': 1000})"),
  ],
)
def test_a_planted_fault_is_found(check, source):
  assert check(ast.parse(source)) != []


@pytest.mark.parametrize(
  ("check", "source"),
  [
    (long_functions, "def f():\n" + "  x = 1\n" * (MAX_FUNCTION - 1)),
    (unsafe_calls, "model.eval()\nnp.load(f, allow_pickle=False)\njax.eval_shape(f)"),
    (written_in_classes, "T: int = 1000\nLinearBeta(T=1000)\nDiT(num_classes=n, steps=1000)"),
    (written_in_classes, "def f(num_classes, steps=1000): return 1000 * t"),
  ],
)
def test_sound_code_is_not(check, source):
  assert check(ast.parse(source)) == []


def test_only_one_function_may_be_a_loop():
  body = "  x = 1\n" * 100
  tree = ast.parse(f"def loop():\n{body}\ndef other():\n{body}")
  assert long_functions(tree, (MAX_LOOP, MAX_FUNCTION)) == ["loop: 101 lines"]


@pytest.mark.parametrize(
  ("pattern", "line", "expected"),
  [
    (_LOOSE_ENDS, "x = 1  # TODO(me): later", [1]),
    (_LOOSE_ENDS, "todo = TODOS", []),
    (_MACHINE_PATHS, 'path = "/home/me/birds"', [1]),
    (_MACHINE_PATHS, "cd /root/x", [1]),
    (_MACHINE_PATHS, "[birds](/work/birds)", [1]),
    (_MACHINE_PATHS, "$HOME/work/x, ./opt/x, runs/home/x, gs://b/opt/x, /data/birds", []),
  ],
)
def test_patterns(pattern, line, expected):
  assert lines_matching(pattern, line) == expected


def test_no_two_test_files_share_a_name():
  """One by one they would be collected; all together, the second of them would not."""
  names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
  assert len(set(names)) == len(names)
