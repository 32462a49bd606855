"""The notebooks: short, without definitions, imports that resolve; run headless with --all."""

import ast
import importlib
import json
import pathlib
import re
import shutil

import nbformat
import numpy as np
import pytest
import real_run
import tiny_images
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST_CELLS = 15
ONLY_IN_COLAB = "google.colab"
_DEFINITIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
_FIELD = re.compile(r"^([A-Z]+) = (.+?)  # @param .+$", re.MULTILINE)

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def code_cells(notebook) -> list:
  return [cell for cell in notebook.cells if cell.cell_type == "code"]


def program(notebook) -> ast.Module:
  """The code cells as one program, their magics turned into calls."""
  transform = TransformerManager().transform_cell
  return ast.parse("\n".join(transform(cell.source) for cell in code_cells(notebook)))


def definitions(tree: ast.AST) -> list[str]:
  """Functions and classes that a notebook should import instead."""
  found = [node for node in ast.walk(tree) if isinstance(node, _DEFINITIONS)]
  return [f"line {node.lineno}: {getattr(node, 'name', 'lambda')}" for node in found]


def unresolved(tree: ast.AST) -> list[str]:
  """Imports that fail, and names that an imported module does not have."""
  bound, missing = {}, []
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      wanted = [(alias.asname or alias.name, alias.name, "") for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      wanted = [(alias.asname or alias.name, node.module, alias.name) for alias in node.names]
    else:
      continue
    for name, module, member in wanted:
      if module == ONLY_IN_COLAB:
        continue
      try:
        bound[name] = _imported(module, member)
      except (ImportError, AttributeError):
        missing.append(f"{module} {member}".strip())
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
      owner = bound.get(node.value.id)
      if owner is not None and not hasattr(owner, node.attr):
        missing.append(f"{node.value.id}.{node.attr}")
  return missing


def _imported(module: str, member: str):
  if not member:
    return importlib.import_module(module)
  try:
    return importlib.import_module(f"{module}.{member}")
  except ImportError:
    return getattr(importlib.import_module(module), member)


def test_both_are_here():
  assert [path.stem for path in NOTEBOOKS] == ["sample", "train_tpu"]


@each
def test_short_valid_and_stored_without_outputs(path):
  notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
  nbformat.validate(notebook)
  assert (notebook.nbformat, notebook.nbformat_minor >= 5) == (4, True)
  assert len({cell.id for cell in notebook.cells}) == len(notebook.cells) <= MOST_CELLS
  for cell in code_cells(notebook):
    assert (cell.outputs, cell.execution_count) == ([], None), cell.id


@each
def test_imports_the_package_and_defines_nothing(path):
  tree = program(nbformat.read(path, as_version=4))
  assert definitions(tree) == []
  assert unresolved(tree) == []
  assert "dit_jax" in ast.unparse(tree)


@each
def test_all_parameters_are_in_the_form_on_top(path):
  cells = code_cells(nbformat.read(path, as_version=4))
  form, *rest = (cell.source for cell in cells)
  assert form.startswith("# @title ")
  fields = [node.targets[0].id for node in ast.parse(form).body]
  assert fields == [name for name, _ in _FIELD.findall(form)]
  assert not _FIELD.search("\n".join(rest))
  used = {node.id for source in rest for node in _names(source)}
  assert set(fields) <= used


def _names(source: str) -> list[ast.Name]:
  tree = ast.parse(TransformerManager().transform_cell(source))
  return [node for node in ast.walk(tree) if isinstance(node, ast.Name)]


@pytest.mark.parametrize(
  ("check", "source"),
  [
    (definitions, "def f(): pass"),
    (definitions, "for i in x:\n  class A: pass"),
    (definitions, "f = lambda x: x"),
    (unresolved, "import dit_jax.nowhere"),
    (unresolved, "if COLAB:\n  from dit_jax.sampling import nothing"),
    (unresolved, "from dit_jax.sampling import grids\ngrids.overlays(x)"),
  ],
)
def test_a_planted_fault_is_found(check, source):
  assert check(ast.parse(source)) != []


def test_sound_code_is_not():
  source = (
    "import jax\nfrom google.colab import drive\nfrom PIL import Image\nImage.open(jax.devices())"
  )
  assert definitions(ast.parse(source)) == unresolved(ast.parse(source)) == []


def execute(name: str, folder: pathlib.Path, **fields):
  """The notebook after a real run in `folder`, with other values in its form."""
  notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
  form = code_cells(notebook)[0]
  lines = {field: f"{field} = {value!r}" for field, value in fields.items()}
  assert set(lines) <= {field for field, _ in _FIELD.findall(form.source)}
  form.source = _FIELD.sub(lambda match: lines.get(match[1], match[0]), form.source)
  folder.mkdir()
  where = {"metadata": {"path": str(folder)}}
  return NotebookClient(notebook, timeout=900, kernel_name="python3", resources=where).execute()


def outputs(notebook, cell_id: str) -> tuple[str, int]:
  """What a cell printed, and how many pictures it showed."""
  (cell,) = (cell for cell in notebook.cells if cell.id == cell_id)
  text = "".join(out.text for out in cell.outputs if out.output_type == "stream")
  return text, sum("image/png" in out.get("data", {}) for out in cell.outputs)


@pytest.mark.all
def test_trains_resumes_on_a_new_machine_and_samples(tmp_path, monkeypatch):
  """The first machine's folder is deleted; the workdir stays, as on a mounted drive."""
  monkeypatch.setenv("XLA_FLAGS", real_run.one_device()["XLA_FLAGS"])
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "programs"))
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  workdir = tmp_path / "drive" / "run"
  photos = tiny_images.write(tmp_path / "photos")
  archive = shutil.make_archive(str(tmp_path / "drive" / "photos"), "zip", photos)
  fields = dict(SOURCE=str(ROOT), WORKDIR=str(workdir))
  tiny = dict(fields, IMAGES=archive, RECIPE="configs/demo.py", TINY=True)

  first = execute("train_tpu", tmp_path / "vm", **tiny)
  assert "12 images, 4 classes in 2 superclasses" in outputs(first, "images")[0]
  said, _ = outputs(first, "train")
  for stage in ("dvae", "dgt", "dct"):
    assert f"[{stage}] done in" in said
    assert list((workdir / stage / "tensorboard").iterdir())
  curves, pictures = outputs(first, "curves")
  assert (curves.count("loss"), pictures) == (3, 3)
  assert outputs(first, "grids")[1] == 3
  assert outputs(first, "samples")[1] == 1
  samples = (workdir / "samples.png").read_bytes()

  shutil.rmtree(tmp_path / "vm")
  shutil.rmtree(workdir / "dct" / "4")  # the machine died before the last checkpoint
  again = execute("train_tpu", tmp_path / "new_vm", **tiny)
  said, _ = outputs(again, "train")
  assert said.count("finished before") == 2
  assert "steps 2 -> 4" in said
  lines = (workdir / "dct" / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [2, 4]
  assert (workdir / "samples.png").read_bytes() == samples

  few = dict(CLASSES="gull, #3", NUM=3, STEPS=2, GUIDANCE=1.5)
  drawn = execute("sample", tmp_path / "sampler", **fields, **few)
  listed, _ = outputs(drawn, "run")
  for i, child in enumerate(tiny_images.CLASSES):
    assert re.search(rf"^#{i}  \w+ / {child}$", listed, re.MULTILINE)
  assert "2 steps, guidance 1.5" in outputs(drawn, "pictures")[0]
  assert [outputs(drawn, cell)[1] for cell in ("pictures", "grains")] == [1, 1]
  with np.load(tmp_path / "sampler" / "samples.npz") as file:
    arrays = dict(file)
  np.testing.assert_array_equal(arrays["label"], np.repeat([1, 3], 3))
  side = arrays["arr_0"].shape[1]
  plain, tinted = (
    np.asarray(Image.open(tmp_path / "sampler" / f"{name}.png"), int)[2 : 2 + side, 2 : 2 + side]
    for name in ("samples", "grains")
  )
  cell = side // arrays["grains"].shape[1]
  fine = np.kron(arrays["grains"][0], np.ones((cell, cell), int)) == 1
  np.testing.assert_array_equal(plain[~fine], tinted[~fine])
  assert fine.any()
  assert (plain != tinted).any(-1)[fine].mean() > 0.9
