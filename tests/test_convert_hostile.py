"""Files that lie about their model, through `convert`: a line each, before they cost anything."""

import json
import resource
import time

import numpy as np
import pytest
import test_convert
from test_convert import KEYS, refusal, run

from dit_jax import convert
from dit_jax.nn import conv
from dit_jax.weights import diffusers_dit, dit, files, limits, ours, rename, sd_vae, torch_file

DIT = test_convert.DIT | dict(depth=1, width=4, grid=(4, 4), num_classes=2)
VAE = test_convert.VAE | dict(block_out_channels=(8, 8))
SECONDS, BYTES = 5, 2**28  # of the processor for one file, of memory for all
TABLE, POSITIONS, PATCH = "y_embedder.embedding_table.weight", "pos_embed", "x_embedder.proj.weight"


def leaves(model: str, fields: dict) -> dict:
  return {name: np.zeros(x.shape, np.float32) for name, x in convert.shapes(model, fields).items()}


def published() -> dict:
  """A whole DiT under its authors' names, without the blank leaves of its positions."""
  return rename.to_theirs(dit.rows(DIT), leaves("dit", DIT))


def blank(*shape) -> np.ndarray:
  return np.zeros(shape, np.float32)


PUBLISHED = {  # what a `.pt` file holds beside or in place of its arrays
  "positions without numbers": {POSITIONS: blank(1, 16_000_000, 0)},
  "more positions without numbers": {POSITIONS: blank(1, 10**10, 0)},
  "positions that are not the file's": {POSITIONS: blank(1, 2**40, 0)},
  "block 100": {"blocks.100.x": blank(1)},
  "block a million": {"blocks.1000000.x": blank(1)},
  "a block of 19 digits": {f"blocks.{10**18}.x": blank(1)},
  "a block of 5000 digits": {f"blocks.{'9' * 5000}.x": blank(1)},
  "a block that is no number": {"blocks.\u00b2.x": blank(1)},
  "many empty arrays and a block": {f"blocks.{i}.x": blank(0) for i in range(3000)},
  "no labels": {TABLE: blank(0, 4)},
  "labels without numbers": {TABLE: blank(2**40, 0)},
  "no patch": {PATCH: blank(4, 4, 0, 0)},
  "a patch without numbers": {PATCH: blank(0, 4, 2**30, 2)},
  "a width without numbers": {PATCH: blank(2**40, 0, 2, 2)},
}
OURS = {  # of the fields of a file of ours
  "a vast grid": dict(grid=[100_000, 100_000]),
  "a grid over its positions": dict(grid=[2**16, 2**16]),
  "half a grid": dict(grid=[8]),
  "a grid of text": dict(grid="ab"),
  "a grid of truth": dict(grid=[True, True]),
  "a deep model": dict(depth=10**9),
  "a model of 1000 blocks": dict(depth=1000),
  "a negative depth": dict(depth=-1),
  "a true depth": dict(depth=True),
  "no patch": dict(patch=0),
  "a patch of text": dict(patch="2"),
  "a wide model": dict(width=2**16, num_heads=1),
  "a model too wide to count": dict(width=2**62, num_heads=1),
  "heads that do not share the width": dict(num_heads=3),
  "no heads": dict(num_heads=0),
  "many channels": dict(z_channels=2**16),
  "many classes": dict(num_classes=2**24),
  "more classes": dict(num_classes=10**30),
  "minus one class": dict(num_classes=-1),
  "a class tree": dict(tiers=3),
  "settings of attention": dict(attention={"kind": "pro"}),
  "a dtype": dict(dtype="object"),
  "a fusion of numbers": dict(fusion=3, tiers=None),
  "an endless period": dict(max_period=float("inf")),
  "a period that is no number": dict(max_period=float("nan")),
  "a short period": dict(max_period=0.5),
  "a period past floats": dict(max_period=10**400),
  "a sigma of text": dict(learn_sigma="yes"),
  "nested lists": dict(grid=[[[]], {}]),
  "a field of a module": dict(parent=None),
  "a strange model": dict(model="unet"),
  "a list for a model": dict(model=[]),
}
OUR_VAES = {
  "40 levels": dict(block_out_channels=[8] * 40),
  "9 levels": dict(block_out_channels=[8] * 9),
  "no levels": dict(block_out_channels=[]),
  "levels of nothing": dict(block_out_channels=[0, 0]),
  "a negative level": dict(block_out_channels=[8, -8]),
  "a wide level": dict(block_out_channels=[8, 2**16]),
  "a level of infinite width": dict(block_out_channels=[8, float("inf")]),
  "a number for levels": dict(block_out_channels=8),
  "many blocks": dict(layers_per_block=10**9),
  "a thousand blocks": dict(layers_per_block=1000),
  "no blocks": dict(layers_per_block=0),
  "wide latents": dict(latent_channels=2**16),
  "infinite latents": dict(latent_channels=float("inf")),
  "a scale that is no number": dict(scaling_factor=float("nan")),
  "a scale of nothing": dict(scaling_factor=0),
  "a scale of text": dict(scaling_factor="x"),
  "a dtype": dict(dtype="object"),
}
CONFIGS = {  # of the config.json of diffusers
  "an infinite grid": dict(sample_size=float("inf")),
  "a grid past integers": dict(sample_size=1e308),
  "a vast grid": dict(sample_size=100_000),
  "a grid over the most": dict(sample_size=60_000),
  "infinite layers": dict(num_layers=float("inf")),
  "layers that are no number": dict(num_layers=float("nan")),
  "a billion layers": dict(num_layers=10**9),
  "a thousand layers": dict(num_layers=1000),
  "minus one layer": dict(num_layers=-1),
  "many heads": dict(num_attention_heads=2**40),
  "wide heads": dict(attention_head_dim=10**9),
  "heads past printing": dict(num_attention_heads=10**4000, attention_head_dim=10**4000),
  "no patch": dict(patch_size=0),
  "channels past floats": dict(out_channels=10**400),
  "no channels": dict(in_channels=0),
  "many classes": dict(num_embeds_ada_norm=10**30),
  "a negative number of classes": dict(num_embeds_ada_norm=-5),
  "a list for a number": dict(num_layers=[28]),
}
VAE_CONFIGS = {
  "infinite latents": dict(latent_channels=float("inf")),
  "infinite layers": dict(layers_per_block=float("inf")),
  "a billion layers": dict(layers_per_block=10**9),
  "100 levels": dict(block_out_channels=[8] * 100),
  "an infinite level": dict(block_out_channels=[float("inf")]),
  "a level of nothing": dict(block_out_channels=[0, 8], norm_num_groups=1),
  "a wide level": dict(block_out_channels=[2**40, 2**40], norm_num_groups=32),
  "a number for levels": dict(block_out_channels=8),
  "a scale past floats": dict(scaling_factor=10**400),
  "a scale that is no number": dict(scaling_factor=float("nan")),
  "infinite groups": dict(norm_num_groups=float("inf")),
}


def write_published(path, change: dict):
  torch_file.save(path / "w.pt", published() | change)
  return path / "w.pt"


def write_ours(path, change: dict, model="dit", fields=DIT):
  told = fields | change
  kind = told.pop("model", model)
  ours.save(path / "w.safetensors", kind, told, leaves(model, fields))
  return path / "w.safetensors"


def write_our_vae(path, change: dict):
  return write_ours(path, change, "sd-vae", VAE)


def write_folder(path, config: dict, arrays: dict):
  (path / "w").mkdir(exist_ok=True)
  (path / "w" / "config.json").write_text(json.dumps(config))
  files.save_safetensors(path / "w" / KEYS, arrays, {})
  return path / "w"


def write_diffusers(path, change: dict):
  whole = leaves("dit", DIT)
  arrays = rename.to_theirs(
    diffusers_dit.rows(DIT), whole, {"position/table": whole["position/table"]}
  )
  return write_folder(path, diffusers_dit.config(DIT) | change, arrays)


def write_diffusers_vae(path, change: dict):
  arrays = rename.to_theirs(sd_vae.rows(VAE), leaves("sd-vae", VAE))
  return write_folder(path, sd_vae.config(VAE, conv.num_groups) | change, arrays)


CORPORA = {  # format -> how it is written, its lies, what else the command needs
  "dit": ("dit", write_published, PUBLISHED, ("--num_heads=2",)),
  "ours, a DiT": ("ours", write_ours, OURS, ()),
  "ours, an autoencoder": ("ours", write_our_vae, OUR_VAES, ()),
  "diffusers-dit": ("diffusers-dit", write_diffusers, CONFIGS, ()),
  "sd-vae": ("sd-vae", write_diffusers_vae, VAE_CONFIGS, ()),
}


@pytest.mark.parametrize("name", CORPORA)
def test_files_that_lie_about_their_model_cost_a_line(name, tmp_path, capsys):
  """Each is refused within seconds, and all of them together take less memory than BYTES."""
  form, write, lies, more = CORPORA[name]
  run(form, "ours", write(tmp_path, {}), tmp_path / "honest", *more)
  capsys.readouterr()
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  for lie, change in lies.items():
    source, start = write(tmp_path, change), time.process_time()
    line = refusal(capsys, form, "ours", source, tmp_path / "made" / "x.safetensors", *more)
    assert time.process_time() - start < SECONDS, lie
    assert len(line) < 10_000 or "blocks." in line, lie
    assert not (tmp_path / "made").exists(), lie
  grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak)
  print(f"{name}: refused {len(lies)} of {len(lies)} that lie about their model")
  assert grown < BYTES


@pytest.mark.parametrize("text", ["[" * 200_000, '{"version": "1\\n2", "model": "dit"}', "7", "{"])
def test_a_file_of_ours_that_says_nothing_sound_is_refused(text, tmp_path, capsys):
  files.save_safetensors(tmp_path / "w.safetensors", leaves("dit", DIT), {ours.KEY: text})
  refusal(capsys, "ours", "ours", tmp_path / "w.safetensors", tmp_path / "x.safetensors")


def test_fields_are_refused_before_a_shape_is_made(tmp_path, capsys, monkeypatch):
  """`limits` makes nothing, and stands before all that does."""
  monkeypatch.setattr(convert, "shapes", lambda *_: pytest.fail("shapes were made"))
  for change in (dict(depth=300), dict(width=2**16), dict(grid=(2**16, 2**16))):
    with pytest.raises(convert.UserError, match="no model that can be made here"):
      convert._shapes_of("w", "dit", DIT | change, {})


def test_the_limits_leave_the_published_models():
  """By their own arrays: DiT-XL/2 at 512 px, and Stable Diffusion's autoencoder."""
  xl = dict(depth=28, width=1152, num_heads=16, patch=2, grid=(64, 64), num_classes=1000)
  big = dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4)
  for model, fields in (("dit", DIT | xl), ("sd-vae", VAE | big)):
    arrays = {
      name: np.broadcast_to(np.float32(0), x.shape)
      for name, x in convert.shapes(model, fields).items()
    }
    limits.check(model, fields, arrays)
