"""Whatever a user gets wrong is one line and exit code 2, before a compile, and leaves nothing."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny_images
from jax.experimental import multihost_utils

from dit_jax import check, main, sample, train
from dit_jax.core import cli
from dit_jax.core import config as configs
from dit_jax.core.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECIPE = ROOT / "configs" / "demo.py"
COMPILED = "/jax/core/compile/backend_compile_duration"
ENTRIES = {"main": main, "check": check, "sample": sample}

RECIPES = {  # files that a user could hand to --config
  "syntax.py": "def get_config(:\n",
  "imports.py": "import no_such_module\n",
  "lacks.py": "x = 1\n",
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  return tiny_images.write(tmp_path_factory.mktemp("images") / "set")


@pytest.fixture
def here(tmp_path, images, monkeypatch):
  """A folder with what the cases below name, as the current one."""
  for name, text in RECIPES.items():
    (tmp_path / name).write_text(text)
  (tmp_path / "empty").mkdir()
  (tmp_path / "broken" / "birds" / "finch").mkdir(parents=True)
  (tmp_path / "broken" / "birds" / "finch" / "0.png").write_bytes(b"no picture")
  (tmp_path / "file").write_text("a file")
  (tmp_path / "holiday").mkdir()
  (tmp_path / "holiday" / "photo.jpg").write_text("not ours")
  (tmp_path / "damaged").mkdir()
  (tmp_path / "damaged" / "config.json").write_text('{"seed": ')
  (tmp_path / "foreign").mkdir()
  (tmp_path / "foreign" / "config.json").write_text('{"hidden_size": 768}')
  (tmp_path / "images").symlink_to(images)
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.fixture
def compiles():
  """Names of the programs that were compiled meanwhile; an eager operation counts as one."""
  seen = []
  listener = lambda event, _, **facts: seen.append(facts) if event == COMPILED else None
  jax.monitoring.register_event_duration_secs_listener(listener)
  yield seen
  jax.monitoring.unregister_event_duration_listener(listener)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  """Every path below a folder, with what a file holds."""
  return {str(p): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


def refused(capsys, entry: str, *words: str) -> str:
  """The one line on stderr of a command that ends with exit code 2."""
  capsys.readouterr()
  module = ENTRIES[entry]
  with pytest.raises(SystemExit) as stop:
    cli.run(module.main, module.FLAGS, [entry, *words])
  out, err = capsys.readouterr()
  assert stop.value.code == 2
  assert err.startswith("error: ")
  assert (err.count("\n"), out) == (1, "")
  return err


def training(*words: str) -> tuple[str, ...]:
  """The words of `main` that train the tiny demo on the images."""
  return (
    f"--config={RECIPE}:tiny",
    "--workdir=run",
    "--config.data.path=images",
    "--config.data.only=()",
    *words,
  )


def test_the_listener_sees_a_compile(compiles):
  jax.jit(lambda x: x + 1)(np.ones(3))
  assert compiles


REAL = [
  ("main", (f"--config={RECIPE}", "--workdr=run"), "Did you mean: workdir"),
  ("main", training("--config.dct.batchsize=8"), "did you mean 'batch_size'"),
  ("main", ("--config=no_such.py", "--workdir=run"), "no such config file"),
  ("main", ("--config=imports.py", "--workdir=run"), "ModuleNotFoundError"),
  ("main", training("--config.dct.model.num_heads=5"), "num_heads=5"),
  ("main", training("--workdir=holiday"), "holds files but no config.json"),
  ("check", (f"--config={RECIPE}", "--config.seed=x"), "must be of type int"),
  ("sample", ("--workdir=run",), "has no config.json"),
]


@pytest.mark.parametrize(("entry", "words", "told"), REAL, ids=[told for _, _, told in REAL])
def test_real_commands(here, entry, words, told):
  before = contents(here)
  command = [sys.executable, "-m", f"dit_jax.{entry}", *words]
  env = os.environ | {"PYTHONPATH": str(ROOT)}
  run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
  assert (run.returncode, run.stdout) == (2, "")
  assert run.stderr.startswith("error: ")
  assert run.stderr.count("\n") == 1
  assert told in run.stderr
  assert contents(here) == before


WORDS = [
  ("main", (), "are needed"),
  ("main", (f"--config={RECIPE}",), "are needed"),
  ("main", training("resume"), "unexpected argument 'resume'"),
  ("main", training("--stage=dtc"), "--stage=dtc is not in config.stages"),
  ("main", training("--config.dtc.batch_size=8"), "did you mean 'dgt'"),
  ("main", training("--config.dct.batch_size=abc"), "must be of type int, like"),
  ("main", training("--config.dvae.ratios=(0.5,"), "must be of type tuple"),
  ("main", ("--config=syntax.py", "--workdir=run"), "line 1: SyntaxError"),
  ("main", ("--config=lacks.py", "--workdir=run"), "no function get_config"),
  ("main", (f"--config={RECIPE}:tny", "--workdir=run"), "did you mean 'tiny'"),
  ("check", (), "give either --config"),
  ("check", (f"--config={RECIPE}", "--data=images"), "give either --config"),
  ("check", ("--data=images", "--json=maybe"), "json"),
  ("check", ("--data=empty",), "holds no image"),
  ("check", ("--data=nowhere",), "does not exist"),
  ("check", (f"--config={RECIPE}:tiny", "--config.data.path=nowhere"), "does not exist"),
  ("check", (f"--config={RECIPE}:tiny", "--config.dgt.model.num_heads=3"), "num_heads=3"),
  ("check", (f"--config={RECIPE}:tiny", "--config.dvae.ratios=(1.0,)"), "one share a factor"),
  ("sample", (), "--workdir=DIR is needed"),
  ("sample", ("--workdir=run", "--num=0"), "num"),
  ("sample", ("--workdir=run", "--steps=ten"), "steps"),
  ("sample", ("--workdir=run", "--seed=-2"), "seed"),
  ("sample", ("--workdir=run", "--classs=finch"), "Did you mean: classes"),
  ("sample", ("--workdir=run", "--grain=fine"), "--grain=fine is unknown"),
  ("sample", ("--workdir=run", "--grain=entropy-of"), "--grain=entropy-of is unknown"),
  ("sample", ("--workdir=run", "--out=file/grid.png"), "--out=file/grid.png cannot be written"),
  ("sample", ("--workdir=run", "--npz=empty"), "--npz=empty cannot be written"),
  ("sample", ("--workdir=holiday",), "has no config.json"),
  ("sample", ("--workdir=damaged",), "the file is damaged"),
  ("sample", ("--workdir=foreign",), "train first, or correct --workdir"),
]


@pytest.mark.parametrize(
  ("entry", "words", "told"), WORDS, ids=[" ".join(w[-2:]) for _, w, _ in WORDS]
)
def test_wrong_words(here, capsys, compiles, entry, words, told):
  before = contents(here)
  assert told in refused(capsys, entry, *words)
  assert contents(here) == before
  assert compiles == []


FIELDS = [  # of a recipe whose first stage could be trained before the last one is refused
  ("dct.model.num_heads=5", "must be a multiple of num_heads=5; change one of the two"),
  ("dgt.model.num_heads=3", "must be a multiple of num_heads=3; change one of the two"),
  ("dct.model.remat=some", "remat='some' is unknown"),
  ("dct.model.dtype=bf16", "dct.model.dtype='bf16' is unknown; choose float32 or bfloat16"),
  ("dct.model.attention.kind=some", "attention.kind='some' is unknown; choose one of ['full', "),
  ("dct.model.attention.c=0", "attention.c=0 must be from 1 to 64"),
  ("dgt.model.attention.pro_blocks=(9,)", "names block 9; the model has the blocks 0 to 1"),
  ("dct.batch_size=12", "multiple of 8 data x fsdp shards x accum=1 micro-batches; nearest is 16"),
  ("dct.accum=3", "accum=3"),
  ("mesh.fsdp=3", "does not fit 8 devices"),
  ("dct.diffusion.schedule=cosin", "schedule 'cosin'"),
  ("dct.diffusion.prediction=eps", "predict 'flow'"),
  ("dct.diffusion.loss=mean", "loss kind 'mean'"),
  ("dct.diffusion.label_drop=1.5", "dct.diffusion.label_drop=1.5 must be 0 to 1"),
  ("dct.diffusion.label_drop=0.0", "guidance=2.0 leads away from a coarser label"),
  ("dct.optim.name=sgd", "optim.name='sgd' is unknown"),
  ("dct.optim.warmup_steps=4", "warmup_steps=4 leaves nothing"),
  ("dct.total_steps=0", "dct.total_steps=0 must be 1 or more"),
  ("dct.every.save=0", "dct.every.save=0 must be 1 or more"),
  ("dct.ema_decay=2.0", "dct.ema_decay=2.0 must be 0 to 1"),
  ("sampling.stepper=heum", "stepper='heum' is unknown"),
  ("sampling.spacing=karras", "log-SNR is infinite at t = 1, so wanted 'linspace'"),
  ("sampling.guidance_rescale=-1.0", "guidance_rescale=-1.0 must be 0 (off) to 1"),
  ("sampling.steps=0", "steps=0 must be at least 1"),
  ("sampling.map_order=sorted", "map_order='sorted' is unknown"),
  ("latents.batch_size=0", "latents.batch_size=0 must be 1 or more"),
  ("seed=-1", "seed=-1 must be 0 to 4294967295"),
  ("data.image_size=60", "data.image_size=60 must be a multiple of"),
  ("data.path=empty", "holds no image"),
  ("data.path=nowhere", "does not exist"),
  ("data.path=file", "is a file of no kind that holds images"),
  ("data.path=broken", "none of the 1 images"),
  ("data.holdout=1", "the split 'train' is empty"),
  ("dvae.ratios=(1.0,)", "must give one share a factor"),
  ("dvae.model.factors=(4, 12)", "ascending powers of two"),
  ("dvae.model.encoder_mults=(1,)", "encoder_mults=(1,) has 1 levels"),
  ("peft=lora", "peft='lora' is unknown; choose one of full, bitfit"),
  ("peft=bitfit", "trains a small part of the stage dgt over a pretrained base"),
  ("frozen_dtype=int8", "frozen_dtype='int8' is unknown"),
  ("init_from=nowhere", "init_from=nowhere does not exist"),
  ("init_from=empty", "is of one stage, and this recipe trains dgt, dct"),
  ("stages=('dvae', 'dtc')", "config.stages has 'dtc'"),
  ("stages=()", "config.stages is empty"),
  ("stages=('dct',)", "builds on dvae"),
]


@pytest.mark.parametrize(("field", "told"), FIELDS, ids=[field for field, _ in FIELDS])
def test_recipes_that_do_not_fit(here, capsys, compiles, field, told):
  before = contents(here)
  assert told in refused(capsys, "main", *training(f"--config.{field}"))
  assert contents(here) == before
  assert compiles == []


@pytest.mark.parametrize(
  ("field", "told"),
  [
    ("data.holdout=0", "dct.hrig.enabled needs held-out images"),
    ("data.holdout=9", "the split 'heldout' is empty with data.holdout=9"),
    ("dct.hrig.depth=0", "dct.hrig.depth=0 must be 1 or more"),
    ("dct.hrig.snr=1e9", "no step of the schedule is that clear"),
  ],
)
def test_hrig_that_could_not_be_measured(here, capsys, field, told):
  """Known before the stages that its own builds on are trained for days."""
  before = contents(here)
  words = training("--config.dct.hrig.enabled=True", f"--config.{field}")
  assert told in refused(capsys, "main", *words)
  assert contents(here) == before


def test_a_superclass_that_the_folder_lacks(here, capsys):
  words = training("--config.data.source=folder", "--config.data.only=('bird',)")
  assert "no superclass of this set; did you mean 'birds'" in refused(capsys, "main", *words)


def test_dit_wants_one_grain(here, capsys, compiles):
  recipe = ROOT / "configs" / "dit_xl.py"
  words = (f"--config={recipe}:tiny", "--workdir=run", "--config.data.path=images")
  mults = ("--config.dvae.model.encoder_mults=()", "--config.dvae.ratios=(0.5, 0.5)")
  told = refused(capsys, "main", *words, *mults, "--config.dvae.model.factors=(4, 8)")
  assert "takes latents of one grain" in told
  assert "a multiple of patch=3" in refused(capsys, "main", *words, "--config.dit.model.patch=3")
  assert compiles == []
  assert not (here / "run").exists()


@pytest.mark.parametrize("stage", ["dgt", "dct"])
def test_a_stage_without_its_dvae(here, capsys, stage):
  assert "builds on dvae" in refused(capsys, "main", *training(f"--stage={stage}"))
  assert not (here / "run").exists()


@pytest.mark.parametrize("workdir", ["file", "file/run", "damaged"])
def test_a_workdir_that_cannot_be_used(here, capsys, workdir):
  before = contents(here)
  told = refused(capsys, "main", *training(f"--workdir={workdir}"))
  assert ("damaged" if workdir == "damaged" else "cannot be used (Not a directory)") in told
  assert contents(here) == before


def test_a_workdir_that_cannot_be_written(here, capsys, monkeypatch):
  def read_only(*args, **options):
    raise OSError(30, "Read-only file system")

  monkeypatch.setattr(pathlib.Path, "mkdir", read_only)
  assert "cannot be used (Read-only file system)" in refused(capsys, "main", *training())


def test_a_workdir_of_another_config(here, capsys, compiles):
  first, now = configs.load(RECIPE, "tiny"), configs.load(RECIPE, "tiny")
  first.data.path, first.data.only, first.seed = "images", (), 7
  first.dvae.ratios, first.dgt.label_drop = (0.125, 0.875), 0.7
  first.dct.model.depth, first.dct.optim.lr, first.dct.ema_decay = 7, 0.7, 0.7
  train.claim(here / "run", first)
  before = contents(here)
  told = refused(capsys, "main", *training())
  assert f"dct.model.depth: 7 -> {now.dct.model.depth};" in told
  assert f"dvae.ratios: (0.125, 0.875) -> {now.dvae.ratios} and 1 more" in told
  assert told.count(" -> ") == 5
  assert contents(here) == before
  assert compiles == []


def test_what_may_change_is_not_refused(here):
  """The same claim, with other steps of sampling and another interval, passes."""
  first = configs.load(RECIPE, "tiny")
  train.claim(here / "run", first)
  again = configs.load(RECIPE, "tiny")
  again.sampling.steps, again.dct.every.log, again.data.workers = 9, 1, 3
  train.claim(here / "run", again)
  assert configs.from_json((here / "run" / "config.json").read_text()) == again


def test_other_processes_leave_the_workdir_alone_until_the_first_has_claimed_it(here, monkeypatch):
  """A folder that the second process filled first would be refused as somebody else's."""
  config, found = configs.load(RECIPE, "tiny"), []

  def first_claims(name):
    found.append((here / "run").exists())
    (here / "run").mkdir()
    (here / "run" / "config.json").write_text(configs.to_json(config))

  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  monkeypatch.setattr(multihost_utils, "sync_global_devices", first_claims)
  train.claim(here / "run", config)
  assert found == [False]
  config.seed += 1
  monkeypatch.setattr(multihost_utils, "sync_global_devices", lambda name: None)
  with pytest.raises(UserError, match="seed"):
    train.claim(here / "run", config)
