"""`convert --from=run`: a fine-tune with tiers and HRIG is a plain DiT in every format."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_images
from flax import traverse_util
from test_end_to_end import compile_once, one_device  # noqa: F401
from tiny_sd_vae import DIT, fine_tune, write_dit, write_vae

from dit_jax import convert, train
from dit_jax.core import cli
from dit_jax.models.dit import DiT
from dit_jax.nn import embed
from dit_jax.tasks import restored
from dit_jax.weights import ours

POSITIONS = "position/table"


def run(source: str, target: str, src, dst, *more: str):
  words = [f"--from={source}", f"--to={target}", f"--src={src}", f"--dst={dst}", *more]
  cli.run(convert.main, convert.FLAGS, ["convert", *words])
  return dst


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """Four classes under two superclasses; norms, biases, tables and HRIG trained over a base."""
  root = tmp_path_factory.mktemp("tuned")
  images = tiny_images.write(root / "images")
  vae, base = write_vae(root / "vae.safetensors"), write_dit(root / "dit.safetensors")
  config = fine_tune(images, base, path=str(vae))
  config.dit.optim.lr = 0.1  # so that two steps move what is folded
  config.dit.every.preview, config.dit.hrig.depth = 0, 1  # quicker
  train.train_and_evaluate(config, root / "run")
  return root / "run"


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
  return run("run", "ours", workdir, tmp_path_factory.mktemp("out") / "dit.safetensors")


def test_the_file_computes_what_the_run_samples_with(workdir, exported):
  """Children, superclasses; a last row for "no class", which this tree has not."""
  tuned = restored.load(workdir)
  model, fields, leaves = ours.load(exported)
  assert (model, fields["num_classes"]) == ("dit", 6)
  assert not leaves["label/table/embedding"][6].any()
  assert all(x.dtype == np.float32 for x in leaves.values())
  norm = tuned.params["content"]["params"]["blocks"]["block_00"]["norm1"]["scale"]
  assert np.abs(norm - 1).max() > 1e-3
  z = jnp.asarray(np.random.default_rng(0).normal(size=(6, 16, 16, 4)), "f")
  t, nodes = jnp.linspace(0.0, 999.0, 6), jnp.arange(6)
  want = tuned.models.content(tuned.params, z, t, nodes, None, None)
  params = jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(leaves, sep="/"))
  got = DiT(**fields).apply({"params": params}, z, t, nodes)
  np.testing.assert_allclose(got, want, atol=1e-5 * float(want.std()))


def test_other_formats_hold_the_same(workdir, exported, tmp_path, monkeypatch, capsys):
  """But for the positions of a base frozen in bfloat16: diffusers computes the fixed ones."""
  monkeypatch.setitem(convert.HEADS, DIT["width"], DIT["num_heads"])
  _, fields, leaves = ours.load(exported)
  for form, name in (("dit", "dit.pt"), ("diffusers-dit", "pipe")):
    there = run("run", form, workdir, tmp_path / name)
    back = run(form, "ours", there, tmp_path / f"{form}.safetensors")
    _, told, again = ours.load(back)
    assert told | {"qk_norm": False} == fields | {"max_period": convert.PERIODS[form]}
    if form == "diffusers-dit":
      assert np.array_equal(again.pop(POSITIONS), embed.sincos_table(8, 8, DIT["width"]))
    assert {n: x.tobytes() for n, x in again.items()} == {n: leaves[n].tobytes() for n in again}
  notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
  assert len(notes) == 2 * 3
  for word in ("classes are 0 to 3, the superclasses 4 to 5", "no null row", "HRIG's network"):
    assert sum(word in line for line in notes) == 2


def test_what_is_no_trained_dit_is_told_in_a_line(workdir, tmp_path, capsys):
  empty, other = tmp_path / "empty", tmp_path / "other"
  for folder in (empty, other):
    folder.mkdir()
    shutil.copy(workdir / "config.json", folder)
  config = json.loads((other / "config.json").read_text())
  config["stages"] = ["dvae", "dgt", "dct"]
  (other / "config.json").write_text(json.dumps(config))
  for src, told in (
    (tmp_path / "none", "has no config.json; give the folder of a trained run"),
    (empty, "has no checkpoint of its stage dit; train it first"),
    (other, "is a run of the stages dvae, dgt, dct; give one with the stage dit"),
  ):
    with pytest.raises(SystemExit) as e:
      run("run", "ours", src, tmp_path / "x.safetensors")
    assert e.value.code == cli.USER_ERROR
    assert told in capsys.readouterr().err.strip().splitlines()[-1]
