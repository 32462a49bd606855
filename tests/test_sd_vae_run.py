"""A run on Stable Diffusion's autoencoder: converted files in, pictures out, a fine-tune of it."""

import filecmp
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_images
from test_end_to_end import compile_once, one_device  # noqa: F401
from tiny_sd_vae import RECIPES, SIZE, VAE, fine_tune, recipe, write_dit, write_vae

from dit_jax import train
from dit_jax.core import config as configs
from dit_jax.core import tree as trees
from dit_jax.core.errors import UserError
from dit_jax.data import latents
from dit_jax.models import sd_vae
from dit_jax.sampling import generate
from dit_jax.tasks import autoencoder, restored
from dit_jax.training import peft
from dit_jax.training.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  return tiny_images.write(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
  return write_vae(tmp_path_factory.mktemp("weights") / "vae.safetensors")


@pytest.fixture(scope="module")
def source(images, vae, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("source") / "run"
  train.train_and_evaluate(recipe(images, vae), workdir)
  return workdir


def test_latents_are_the_autoencoders_scaled_by_its_factor(source, images, vae):
  """No deviation is measured: a base knows these latents at this scale alone."""
  cache, config = latents.LatentSource(source / "latents"), recipe(images, vae)
  assert cache.meta["statistics"] == {"mean": [[0.0] * 4], "std": [[4.0] * 4]}
  run = restored.load(source)
  np.testing.assert_array_equal(run.models.mean, np.zeros((1, 4)))
  np.testing.assert_array_equal(1 / run.models.std, np.full((1, 4), VAE["scaling_factor"]))
  assert not (source / "latents" / "statistics.json").exists()
  params, thresholds = autoencoder.load(config, source)
  assert (cache.meta["factors"], thresholds["taus"]) == ([2], [])
  assert cache.meta["vae"] == trees.content_hash(params) == run.meta["vae"]
  model = sd_vae.AutoencoderKL(**VAE)
  row = cache.read([0])
  (image,) = [
    item["image"] for item in _items(config) if int(item["index"]) == int(cache.indices[0])
  ]
  x = image.astype(np.float32)[None] / 127.5 - 1
  want = model.apply({"params": params}, jnp.asarray(x), method="encode")
  np.testing.assert_allclose(row["moments"], want, atol=1e-4)


def _items(config):
  from dit_jax.data import sources

  source = sources.open_source(config.data, "train")
  return [source[i] for i in range(len(source))]


def test_the_workdir_samples_and_resumes_without_the_file(images, vae, source, tmp_path):
  workdir, moved = tmp_path / "run", shutil.copy(vae, tmp_path / "moved.safetensors")
  shutil.copytree(source, workdir)
  assert filecmp.cmp(workdir / autoencoder.COPY, moved, shallow=False)
  pathlib.Path(moved).unlink()
  config = recipe(images, moved)
  config.dit.total_steps = 3
  train.train_and_evaluate(config, workdir)
  assert Checkpoints(workdir / "dit").latest() == 3
  run = restored.load(workdir)
  generator = generate.Generator(run.models, run.settings())
  label = np.array([0, 3])
  maps = generator.grain_maps(run.params, label, label, 0)
  assert generator.images(run.params, label, label, maps, 0).shape == (2, SIZE, SIZE, 3)


def test_a_fine_tune_stands_on_the_latents_of_its_base(images, source, tmp_path):
  """From a run of ours, which brings its autoencoder; R_phi, both tables, norms and biases."""
  workdir = tmp_path / "run"
  train.train_and_evaluate(fine_tune(images, source), workdir)
  assert filecmp.cmp(workdir / autoencoder.COPY, source / autoencoder.COPY, shallow=False)
  old, new = (trees.flatten(Checkpoints(w / "dit").restore_ema()[0]) for w in (source, workdir))
  trained = trees.flatten(peft.Peft("efdit").split(new)[0])
  assert any(n.startswith("hrig/") for n in trained)
  assert "params/label/level_1/embedding" in trained
  for name in set(new) - set(trained):
    assert np.array_equal(new[name], np.asarray(old[name]).astype("bfloat16"))


def test_a_converted_dit_is_a_base(images, vae, tmp_path):
  file = write_dit(tmp_path / "dit.safetensors")
  train.train_and_evaluate(fine_tune(images, file, path=str(vae)), tmp_path / "run")
  meta = Checkpoints(tmp_path / "run" / "dit").read_meta()
  assert meta["base"]["path"] == str(file)
  assert restored.load(tmp_path / "run").config.peft == "efdit"


@pytest.mark.parametrize(
  ("change", "told"),
  [
    (lambda c, f: c.sd_vae.update(path=""), "sd_vae.path is empty; give the .safetensors file"),
    (lambda c, f: c.sd_vae.update(path="no"), "no cannot be read .No such file"),
    (lambda c, f: c.sd_vae.update(path=str(write_dit(f))), "is of a dit, expected an sd-vae"),
    (lambda c, f: c.sd_vae.update(path=_torn(write_vae(f))), "not a whole safetensors file"),
    (
      lambda c, f: c.sd_vae.update(path=str(write_vae(f, scaling_factor=0.5))),
      "another autoencoder than sd_vae.model, stored -> wanted: scaling_factor: 0.5 -> 0.25",
    ),
    (lambda c, f: c.data.update(image_size=31), "data.image_size=31 must be a multiple of 2"),
    (lambda c, f: c.sd_vae.model.update(dtype="half"), "sd_vae.model.dtype='half' is unknown"),
    (lambda c, f: c.update(dvae=dict(total_steps=1)), "dvae and sd_vae; give one of the blocks"),
  ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
  images, vae, tmp_path, change, told
):
  config = recipe(images, vae)
  change(config, tmp_path / "other.safetensors")
  with pytest.raises(UserError, match=told) as e:
    train.train_and_evaluate(config, tmp_path / "run")
  assert "\n" not in str(e.value)
  assert not (tmp_path / "run").exists()


def _torn(path):
  path.write_bytes(path.read_bytes()[:-5])
  return str(path)


def test_another_autoencoder_than_the_bases_is_refused(images, vae, source, tmp_path):
  other = write_vae(tmp_path / "other.safetensors", seed=1)
  with pytest.raises(UserError, match=r"is not the autoencoder in .*sd_vae\.safetensors, whose"):
    train.train_and_evaluate(fine_tune(images, source, path=str(other)), tmp_path / "run")
  with pytest.raises(UserError, match="is not the autoencoder in"):  # nor on resume
    train.train_and_evaluate(recipe(images, other), source)
  config = configs.load(RECIPES / "dit_xl.py", "tiny")
  config.data = recipe(images).data
  config.init_from = str(source)
  with pytest.raises(UserError, match=r"\(sd_vae\), and this recipe has a DVAE of its own"):
    train.train_and_evaluate(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()
