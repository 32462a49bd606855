"""`convert`: round trips are exact to the bit, and what does not fit is refused whole."""

import json
import pathlib
import shutil

import ml_dtypes
import numpy as np
import pytest

from dit_jax import convert
from dit_jax.core import cli
from dit_jax.nn import embed
from dit_jax.weights import files, ours, torch_file

DIT = dict(
  depth=2,
  width=24,
  num_heads=2,
  patch=2,
  grid=(8, 8),
  z_channels=4,
  num_classes=5,
  learn_sigma=True,
  max_period=10_000.0,
)
THEIR_PERIOD = 10_000.0 ** (128 / 127)  # diffusers'
VAE = dict(
  block_out_channels=(16, 32, 32), layers_per_block=1, latent_channels=4, scaling_factor=0.5
)
TIME = ("in/kernel", "in/bias", "out/kernel", "out/bias")
EVEN_VAE = VAE | dict(block_out_channels=(32, 32))  # diffusers has one number of groups
KEYS = "diffusion_pytorch_model.safetensors"


def run(source: str, target: str, src, dst, *more: str) -> None:
  words = [f"--from={source}", f"--to={target}", f"--src={src}", f"--dst={dst}", *more]
  cli.run(convert.main, convert.FLAGS, ["convert", *words])


def refusal(capsys, *words) -> str:
  """What the command says, once it has ended with exit code 2."""
  with pytest.raises(SystemExit) as e:
    run(*words)
  assert e.value.code == cli.USER_ERROR
  line = capsys.readouterr().err.strip().splitlines()[-1]
  assert line.startswith("error: ")
  return line


@pytest.fixture(scope="module")
def leaves():
  """Random leaves by model; DiT's positions are the fixed ones, which all its formats can say."""
  r, out = np.random.default_rng(0), {}
  for model, fields in (("dit", DIT), ("sd-vae", EVEN_VAE)):
    shapes = convert.shapes(model, fields)
    out[model] = {name: r.normal(size=x.shape).astype(np.float32) for name, x in shapes.items()}
  out["dit"]["position/table"] = embed.sincos_table(4, 4, DIT["width"])
  return out


@pytest.fixture
def made(leaves, tmp_path):
  """A file of ours for each model, by name."""
  for model, fields in (("dit", DIT), ("sd-vae", EVEN_VAE)):
    ours.save(tmp_path / f"{model}.safetensors", model, fields, leaves[model])
  return tmp_path


def content(path: pathlib.Path) -> dict[str, bytes]:
  """Every array of a file or folder with its dtype and shape, as bytes."""
  if path.is_dir():
    path = path / KEYS
  arrays = torch_file.load(path) if path.suffix == ".pt" else files.load_safetensors(path)[0]
  assert arrays
  return {k: f"{x.dtype}{x.shape}".encode() + x.tobytes() for k, x in arrays.items()}


@pytest.mark.parametrize(
  ("model", "form", "name"),
  [
    ("dit", "dit", "dit.pt"),
    ("dit", "dit", "named.safetensors"),
    ("dit", "diffusers-dit", "transformer"),
    ("sd-vae", "sd-vae", "vae"),
  ],
)
def test_round_trips_are_exact(made, model, form, name):
  told = {"dit": ["--num_heads=2"], "diffusers-dit": ["--max_period=10000"]}.get(form, [])
  run("ours", form, made / f"{model}.safetensors", made / "x" / name)
  run(form, "ours", made / "x" / name, made / "back.safetensors", *told)
  run("ours", form, made / "back.safetensors", made / "y" / name)
  assert content(made / "back.safetensors") == content(made / f"{model}.safetensors")
  assert content(made / "x" / name) == content(made / "y" / name)
  first, last = (ours.load(made / f"{n}.safetensors")[:2] for n in (model, "back"))
  assert first == last


def test_formats_of_one_model_reach_each_other(made):
  """Numbers that one format reads from its shapes, another says in its config."""
  run("ours", "dit", made / "dit.safetensors", made / "a.pt")
  run("dit", "diffusers-dit", made / "a.pt", made / "b", "--num_heads=2")
  run("diffusers-dit", "dit", made / "b", made / "c.pt")
  assert content(made / "a.pt") == content(made / "c.pt")


def test_no_array_changes_its_dtype(leaves, made):
  kinds = (np.float16, ml_dtypes.bfloat16, np.float32)
  mixed = {k: x.astype(kinds[i % 3]) for i, (k, x) in enumerate(leaves["sd-vae"].items())}
  ours.save(made / "mixed.safetensors", "sd-vae", EVEN_VAE, mixed)
  run("ours", "sd-vae", made / "mixed.safetensors", made / "vae")
  run("sd-vae", "ours", made / "vae", made / "back.safetensors")
  assert content(made / "back.safetensors") == content(made / "mixed.safetensors")


def test_the_null_class_is_the_last_row(made):
  """Row num_classes of the table, in every format."""
  last = content(made / "dit.safetensors")["label/table/embedding"][-4 * DIT["width"] :]
  run("ours", "dit", made / "dit.safetensors", made / "a.pt")
  run("ours", "diffusers-dit", made / "dit.safetensors", made / "b")
  assert torch_file.load(made / "a.pt")["y_embedder.embedding_table.weight"].shape[0] == 5 + 1
  tables = [x for name, x in content(made / "a.pt").items() if "embedding_table" in name]
  tables += [x for name, x in content(made / "b").items() if "embedding_table" in name]
  assert len(tables) == 1 + DIT["depth"]
  assert all(x.endswith(last) for x in tables)


def test_a_format_has_the_period_that_its_own_code_computes_with(made):
  """Unless one is told, which a chain of conversions keeps."""
  run("ours", "dit", made / "dit.safetensors", made / "a.pt")
  run("dit", "diffusers-dit", made / "a.pt", made / "b", "--num_heads=2")
  for form, path, told, want in (
    ("dit", "a.pt", ("--num_heads=2",), 10_000.0),
    ("dit", "a.pt", ("--num_heads=2", f"--max_period={THEIR_PERIOD!r}"), THEIR_PERIOD),
    ("diffusers-dit", "b", (), THEIR_PERIOD),
    ("diffusers-dit", "b", ("--max_period=10000",), 10_000.0),
  ):
    run(form, "ours", made / path, made / "c.safetensors", *told)
    assert ours.load(made / "c.safetensors")[1]["max_period"] == want
    (made / "c.safetensors").unlink()


def test_a_format_that_computes_with_another_period_is_told_and_by_how_much(leaves, made, capsys):
  run("ours", "diffusers-dit", made / "dit.safetensors", made / "a")
  warning, said = capsys.readouterr().err.splitlines()
  assert f"max_period=10000.0 and this format's own code computes with {THEIR_PERIOD}" in warning
  p = {name: leaves["dit"][f"time/{name}"].astype(float) for name in TIME}
  powers, t = np.arange(128) / 128, np.arange(1000)[:, None]
  both = []
  for period in (10_000.0, THEIR_PERIOD):
    angles = t * period**-powers
    h = np.concatenate([np.cos(angles), np.sin(angles)], 1) @ p["in/kernel"] + p["in/bias"]
    both.append(h / (1 + np.exp(-h)) @ p["out/kernel"] + p["out/bias"])
  gap, deviation = np.abs(both[0] - both[1]).max(), both[0].std()
  assert f"up to {gap:.2g} (its deviation is {deviation:.2g})" in warning
  run("ours", "dit", made / "dit.safetensors", made / "a.pt")
  run("diffusers-dit", "diffusers-dit", made / "a", made / "same")
  run("diffusers-dit", "dit", made / "a", made / "told.pt", "--max_period=10000")
  run("ours", "sd-vae", made / "sd-vae.safetensors", made / "vae")
  assert "warning" not in said + capsys.readouterr().err
  run("diffusers-dit", "dit", made / "a", made / "b.pt")
  assert f"max_period={THEIR_PERIOD} and" in capsys.readouterr().err


def test_a_file_from_before_there_was_a_period_has_that_of_dit(leaves, made, capsys):
  fields = {name: x for name, x in DIT.items() if name != "max_period"}
  ours.save(made / "old.safetensors", "dit", fields, leaves["dit"])
  run("ours", "dit", made / "old.safetensors", made / "a.pt")
  assert "warning" not in capsys.readouterr().err
  run("ours", "diffusers-dit", made / "old.safetensors", made / "b")
  assert "warning: " in capsys.readouterr().err


def test_a_trained_position_table_fits_its_authors_format_alone(leaves, made, capsys):
  moved = leaves["dit"] | {"position/table": leaves["dit"]["position/table"] + 0.01}
  ours.save(made / "moved.safetensors", "dit", DIT, moved)
  run("ours", "dit", made / "moved.safetensors", made / "a.pt")
  run("dit", "ours", made / "a.pt", made / "back.safetensors", "--num_heads=2")
  assert content(made / "back.safetensors") == content(made / "moved.safetensors")
  line = refusal(capsys, "ours", "diffusers-dit", made / "moved.safetensors", made / "b")
  assert "position/table is fixed" in line
  assert "1.0e-02" in line


def test_every_misfit_is_listed_and_nothing_is_written(made, capsys):
  run("ours", "dit", made / "dit.safetensors", made / "a.pt")
  arrays = torch_file.load(made / "a.pt")
  arrays["stranger.one"] = arrays["stranger.two"] = np.zeros((2, 3), np.float32)
  del arrays["blocks.1.attn.qkv.bias"], arrays["t_embedder.mlp.0.weight"]
  arrays["blocks.0.mlp.fc1.weight"] = np.zeros((96, 25), np.float32)
  arrays["blocks.0.mlp.fc2.bias"] = np.zeros(24, np.int8)
  torch_file.save(made / "bad.pt", arrays)
  before = sorted(made.iterdir())
  line = refusal(capsys, "dit", "ours", made / "bad.pt", made / "b.safetensors", "--num_heads=2")
  for words in (
    "unused key stranger.one (2,3)",
    "unused key stranger.two",
    "unfilled leaf blocks/block_01/attn/qkv/bias (72,) (no blocks.1.attn.qkv.bias)",
    "unfilled leaf time/in/kernel (256,24)",
    "blocks.0.mlp.fc1.weight is (96,25) and should be (96,24)",
    "blocks.0.mlp.fc2.bias is of dtype int8",
  ):
    assert words in line
  assert line.count(";") == 5
  assert sorted(made.iterdir()) == before


@pytest.fixture
def folder(made):
  """A diffusers folder, its config and its arrays."""
  run("ours", "diffusers-dit", made / "dit.safetensors", made / "b")
  config = json.loads((made / "b" / "config.json").read_text())
  return made / "b", config, files.load_safetensors(made / "b" / KEYS)[0]


def rewrite(folder: pathlib.Path, config: dict, arrays: dict) -> None:
  (folder / "config.json").write_text(json.dumps(config))
  files.save_safetensors(folder / KEYS, arrays, {"format": "pt"})


def test_shards_are_not_read_and_that_is_said(folder, made, capsys):
  path, _, _ = folder
  (path / f"{KEYS}.index.json").write_text("{}")
  (path / KEYS).rename(path / KEYS.replace(".safe", "-00001-of-00002.safe"))
  line = refusal(capsys, "diffusers-dit", "ours", path, made / "c.safetensors")
  assert "several files (shards), which are not read; save them in one" in line


def test_a_refused_source_leaves_no_folder(made, capsys):
  before = sorted(made.iterdir())
  refusal(capsys, "dit", "ours", made / "absent.pt", made / "new" / "deep" / "c.safetensors")
  assert sorted(made.iterdir()) == before


def test_copies_that_differ_are_refused(folder, made, capsys):
  path, config, arrays = folder
  for name in ("timestep_embedder.linear_2.bias", "class_embedder.embedding_table.weight"):
    key = f"transformer_blocks.1.norm1.emb.{name}"
    changed = arrays[key].copy()
    changed.flat[-1] += 1e-6
    rewrite(path, config, arrays | {key: changed})
    line = refusal(capsys, "diffusers-dit", "ours", path, made / "c.safetensors")
    assert f"{key} differs from transformer_blocks.0.norm1.emb.{name}" in line


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (dict(num_layers=3), "unfilled leaf blocks/block_02/adaln/proj/kernel"),
    (dict(num_layers=1), "unused key transformer_blocks.1.attn1.to_q.bias"),
    (dict(num_attention_heads=4), "pos_embed.proj.weight is (24,4,2,2) and should be (48,4,2,2)"),
    (dict(num_embeds_ada_norm=9), "is (6,24) and should be (10,24)"),
    (dict(out_channels=4), "proj_out_2.weight is (32,24) and should be (16,24)"),
    (dict(out_channels=5), "out_channels=5"),
    (dict(norm_type="ada_norm"), "norm_type='ada_norm'"),
    (dict(activation_fn="geglu"), "activation_fn='geglu'"),
    (dict(sample_size=9), "multiple of patch=2"),
    (dict(num_attention_heads=0), "num_heads=0"),
    (dict(patch_size="x"), "wrong one"),
    (dict(_class_name="UNet2DModel"), "is of a UNet2DModel"),
  ],
)
def test_a_folder_that_contradicts_its_config_is_refused(folder, made, capsys, change, words):
  path, config, arrays = folder
  rewrite(path, config | change, arrays)
  assert words in refusal(capsys, "diffusers-dit", "ours", path, made / "c.safetensors")
  assert not (made / "c.safetensors").exists()


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (dict(norm_num_groups=4), "norm_num_groups=4"),
    (dict(latent_channels=16), "quant_conv.weight is (8,8,1,1) and should be (32,32,1,1)"),
    (dict(block_out_channels=[32, 32, 32]), "unfilled leaf encoder/level_2_res_0/norm1/scale"),
    (dict(use_quant_conv=False), "use_quant_conv=False"),
    (dict(latents_mean=[0.0]), "latents_mean"),
    (dict(_class_name="VQModel"), "is of a VQModel"),
  ],
)
def test_an_autoencoder_that_ours_is_not_is_refused(made, capsys, change, words):
  run("ours", "sd-vae", made / "sd-vae.safetensors", made / "vae")
  config = json.loads((made / "vae" / "config.json").read_text())
  (made / "vae" / "config.json").write_text(json.dumps(config | change))
  assert words in refusal(capsys, "sd-vae", "ours", made / "vae", made / "c.safetensors")


def test_old_names_of_the_autoencoders_attention_are_read(made):
  """The hub's sd-vae-ft-mse has them."""
  run("ours", "sd-vae", made / "sd-vae.safetensors", made / "vae")
  arrays = files.load_safetensors(made / "vae" / KEYS)[0]
  old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
  renamed = {}
  for name, x in arrays.items():
    for new, before in old.items():
      name = name.replace(f".{new}.", f".{before}.")
    renamed[name] = x
  assert len(set(renamed) - set(arrays)) == 16  # 4 layers, kernel and bias, twice
  files.save_safetensors(made / "vae" / KEYS, renamed, {"format": "pt"})
  run("sd-vae", "ours", made / "vae", made / "back.safetensors")
  assert content(made / "back.safetensors") == content(made / "sd-vae.safetensors")


def test_an_autoencoder_of_mixed_groups_stays_ours(made, capsys):
  r, shapes = np.random.default_rng(0), convert.shapes("sd-vae", VAE)
  leaves = {name: r.normal(size=x.shape).astype(np.float32) for name, x in shapes.items()}
  ours.save(made / "mixed.safetensors", "sd-vae", VAE, leaves)
  line = refusal(capsys, "ours", "sd-vae", made / "mixed.safetensors", made / "vae")
  assert "one number of groups" in line
  assert not (made / "vae").exists()


def test_a_file_of_ours_that_is_not_its_model_is_refused(leaves, made, capsys):
  def says(model, fields, arrays=leaves["dit"]) -> str:
    path = made / "x.safetensors"
    ours.save(path, model, fields, arrays)
    line = refusal(capsys, "ours", "dit", path, made / "y.pt")
    path.unlink()
    return line

  assert "label/table/embedding is (6,24) and should be (8,24)" in says(
    "dit", DIT | {"num_classes": 7}
  )
  assert "is (24,72) and should be (48,144)" in says("dit", DIT | {"width": 48})
  assert "no model" in says("dit", DIT | {"strange": 1})
  assert "no model" in says("unet", DIT)
  assert "cannot hold" in says("sd-vae", EVEN_VAE, leaves["sd-vae"])
  files.save_safetensors(made / "x.safetensors", leaves["dit"], {})
  line = refusal(capsys, "ours", "dit", made / "x.safetensors", made / "y.pt")
  assert "does not say what model" in line
  assert not (made / "y.pt").exists()


def test_torn_files_are_one_line_errors(made, capsys):
  run("ours", "dit", made / "dit.safetensors", made / "a.pt")
  run("ours", "diffusers-dit", made / "dit.safetensors", made / "b")
  for form, path in (("ours", "dit.safetensors"), ("dit", "a.pt"), ("diffusers-dit", f"b/{KEYS}")):
    data = (made / path).read_bytes()
    for torn in (data[:-1], data[: len(data) // 2], data[:7], b""):
      (made / path).write_bytes(torn)
      src = made / path if form != "diffusers-dit" else made / "b"
      assert "download it again" in refusal(capsys, form, "ours", src, made / "c.safetensors")
  (made / "b" / "config.json").write_text("{")
  assert "not JSON" in refusal(capsys, "diffusers-dit", "ours", made / "b", made / "c.safetensors")
  assert not list(made.glob(".tmp*"))


def test_what_is_there_is_never_overwritten(made, capsys):
  run("ours", "dit", made / "dit.safetensors", made / "a.pt")
  run("ours", "diffusers-dit", made / "dit.safetensors", made / "b")
  before = content(made / "a.pt")
  for form, path in (("dit", "a.pt"), ("diffusers-dit", "b"), ("ours", "dit.safetensors")):
    assert "exists already" in refusal(capsys, "ours", form, made / "dit.safetensors", made / path)
  assert content(made / "a.pt") == before


def test_folders_called_as_in_a_pipeline_become_one(made):
  """transformer/ and vae/ beside each other, whichever comes first, and what says so."""
  run("ours", "sd-vae", made / "sd-vae.safetensors", made / "pipe" / "vae")
  assert sorted(p.name for p in (made / "pipe").iterdir()) == ["vae"]
  run("ours", "diffusers-dit", made / "dit.safetensors", made / "pipe" / "transformer")
  index = json.loads((made / "pipe" / "model_index.json").read_text())
  parts = [name for name in index if not name.startswith("_")]
  assert sorted(parts) == sorted(p.name for p in (made / "pipe").iterdir() if p.is_dir())
  shutil.rmtree(made / "pipe" / "transformer")
  (made / "pipe" / "model_index.json").write_text("mine")
  run("ours", "diffusers-dit", made / "dit.safetensors", made / "pipe" / "transformer")
  assert (made / "pipe" / "model_index.json").read_text() == "mine"


def test_the_line_is_checked_first(made, capsys):
  src, dst = made / "dit.safetensors", made / "c.safetensors"
  for words, message in (
    (("dit", "sd-vae", src, dst), "cannot hold"),
    (("ours", "sd-vae", src, dst), "cannot hold"),
    (("ours", "dit", src, made / "c.ckpt"), "must end with .pt"),
    (("ours", "dit", made / "absent", dst), "cannot be read"),
    (("diffusers-dit", "ours", made / "absent", dst), "folder of one model"),
    (("dit", "ours", "", dst), "--src is needed"),
    (("ours", "dit", src, dst, "--num_heads=2"), "--num_heads goes with --from=dit"),
    (("nonsense", "ours", src, dst), "nonsense"),
    (("ours", "dit", src, dst, "--max_period=9"), "--max_period goes with --from=dit or diffusers"),
  ):
    assert message in refusal(capsys, *words)
  run("ours", "dit", src, made / "a.pt")
  assert "give --num_heads" in refusal(capsys, "dit", "ours", made / "a.pt", dst)
  told = ("--num_heads=2", "--max_period=1")
  assert "max_period=1.0 must be above 1" in refusal(
    capsys, "dit", "ours", made / "a.pt", dst, *told
  )
  assert "num_heads=5" in refusal(capsys, "dit", "ours", made / "a.pt", dst, "--num_heads=5")
  assert "not the weights of a DiT" in refusal(capsys, "dit", "ours", src, dst)
  assert not dst.exists()


def test_published_widths_have_published_heads():
  assert convert.HEADS == {384: 6, 768: 12, 1024: 16, 1152: 16}  # DiT, table 1
