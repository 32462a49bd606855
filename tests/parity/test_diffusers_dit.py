"""DiT against diffusers' own class, through converted folders in both directions.

diffusers spaces the 128 frequencies of its timestep embedding over 127 steps (downscale_freq_shift
= 1) and DiT, whose weights it carries, over 128. The two agree at t = 0; elsewhere the tests set
one spacing on both sides, each in turn.
"""

import functools

import jax
import numpy as np
import pytest
from einops import rearrange
from flax.traverse_util import unflatten_dict

from dit_jax import convert
from dit_jax.core import cli
from dit_jax.models import dit
from dit_jax.nn import embed
from dit_jax.weights import ours

pytestmark = pytest.mark.all
torch = pytest.importorskip("torch", reason="torch is not installed: parity")
diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: parity")

TOLERANCE = 1e-4  # float32 on both sides
SMALL = dict(num_attention_heads=3, attention_head_dim=16, num_layers=3, num_embeds_ada_norm=7)
XL = dict(num_attention_heads=16, attention_head_dim=72, num_embeds_ada_norm=1000)
SPACINGS = {"DiT's": (0, 10_000.0), "diffusers'": (1, 10_000.0 ** (128 / 127))}


def theirs(scale: float, **config):
  """diffusers' model, no leaf of it zero; the embedders of its blocks are copies of the first."""
  fields = dict(sample_size=16, patch_size=2, in_channels=4, out_channels=8)
  net = diffusers.DiTTransformer2DModel(**fields | config).eval()
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for p in net.parameters():
      p.normal_(std=scale, generator=generator)
    first = net.transformer_blocks[0].norm1.emb.state_dict()
    for block in net.transformer_blocks:
      block.norm1.emb.load_state_dict(first)
  return net


def space(net, shift: int) -> None:
  for block in net.transformer_blocks:
    block.norm1.emb.time_proj.downscale_freq_shift = shift


def run(source, target, src, dst) -> None:
  words = [f"--from={source}", f"--to={target}", f"--src={src}", f"--dst={dst}"]
  cli.run(convert.main, convert.FLAGS, ["convert", *words])


def imported(net, folder):
  """Our model and parameters, by way of a folder that diffusers wrote."""
  net.save_pretrained(folder / "theirs")
  run("diffusers-dit", "ours", folder / "theirs", folder / "ours.safetensors")
  return loaded(folder / "ours.safetensors")


def loaded(path):
  model, fields, leaves = ours.load(path)
  assert model == "dit"
  return dit.DiT(**fields), unflatten_dict(leaves, sep="/")


def inputs(side: int, classes: int, times, seed=0):
  """z, model time, label; one label is the null class."""
  r = np.random.default_rng(seed)
  z = r.normal(size=(len(times), side, side, 4)).astype(np.float32)
  label = r.integers(classes, size=len(times)).astype(np.int32)
  label[0] = classes
  return z, np.array(times, np.float32), label


def their_output(net, z, t, label) -> np.ndarray:
  with torch.no_grad():
    x = torch.from_numpy(rearrange(z, "b h w c -> b c h w").copy())
    out = net(x, torch.from_numpy(t), torch.from_numpy(label).long()).sample
  return rearrange(out.numpy(), "b c h w -> b h w c")


def our_output(model, params, z, t, label) -> np.ndarray:
  return np.asarray(jax.jit(model.apply)({"params": params}, z, t, label))


def compare(name, got, want) -> None:
  error = np.abs(got - want).max()
  print(f"{name}: largest error {error:.2e}, sd of the output {want.std():.3f}")
  assert want.std() >= 0.1
  assert error <= TOLERANCE


@pytest.fixture(scope="module")
def small(tmp_path_factory):
  net = theirs(0.1, **SMALL)
  return net, *imported(net, tmp_path_factory.mktemp("small"))


def test_without_time_the_class_as_it_comes(small):
  net, model, params = small
  space(net, 1)
  data = inputs(16, 7, [0, 0, 0])
  compare("t = 0", our_output(model, params, *data), their_output(net, *data))


@pytest.mark.parametrize("whose", SPACINGS)
def test_at_all_times(small, whose, monkeypatch):
  net, model, params = small
  shift, period = SPACINGS[whose]
  space(net, shift)
  monkeypatch.setattr(embed, "sinusoids", functools.partial(embed.sinusoids, max_period=period))
  data = inputs(16, 7, [0, 1, 37, 500, 999])
  compare(f"{whose} spacing", our_output(model, params, *data), their_output(net, *data))


def test_the_two_spacings_differ(small):
  """Why the test above sets one: this is no rounding."""
  net, model, params = small
  space(net, 1)
  data = inputs(16, 7, [500, 999])
  gap = np.abs(our_output(model, params, *data) - their_output(net, *data)).max()
  print(f"DiT's spacing against diffusers': {gap:.2e}")
  assert gap > 100 * TOLERANCE


def test_no_leaf_is_idle(small):
  """Any leaf that moves breaks parity."""
  net, model, params = small
  space(net, 0)
  data, r = inputs(16, 7, [1, 37, 999]), np.random.default_rng(1)
  want = their_output(net, *data)
  apply = jax.jit(model.apply)
  leaves, structure = jax.tree.flatten(params)
  for i, leaf in enumerate(leaves):
    moved = [*leaves]
    moved[i] = leaf + 0.05 * r.normal(size=leaf.shape).astype(np.float32)
    got = apply({"params": jax.tree.unflatten(structure, moved)}, *data)
    assert np.abs(got - want).max() > 10 * TOLERANCE, i


@pytest.mark.parametrize("depth", [2, 28])
def test_at_the_width_of_xl(depth, tmp_path):
  """XL/2 as published, all of it in the end; one moved leaf breaks parity."""
  net = theirs(0.02, **XL, num_layers=depth, sample_size=32)
  space(net, 0)
  model, params = imported(net, tmp_path)
  data = inputs(32, 1000, [3, 700])
  want = their_output(net, *data)
  compare(f"XL/2, {depth} blocks", our_output(model, params, *data), want)
  params["blocks"]["block_01"]["attn"]["qkv"]["bias"] += 0.1
  assert np.abs(our_output(model, params, *data) - want).max() > 10 * TOLERANCE


def test_a_folder_of_ours_loads_there(small, tmp_path):
  """Exported, loaded by from_pretrained: every weight equal to the bit, and the same output."""
  net, model, params = small
  net.save_pretrained(tmp_path / "a")
  run("diffusers-dit", "ours", tmp_path / "a", tmp_path / "b.safetensors")
  run("ours", "diffusers-dit", tmp_path / "b.safetensors", tmp_path / "c")
  back, report = diffusers.DiTTransformer2DModel.from_pretrained(
    tmp_path / "c", output_loading_info=True
  )
  assert not any(report.values()), report
  for (name, p), q in zip(net.named_parameters(), back.parameters(), strict=True):
    assert torch.equal(p, q), name
  space(back, 0)
  data = inputs(16, 7, [1, 37, 999])
  compare("exported", our_output(model, params, *data), their_output(back, *data))


def test_a_folder_of_both_is_a_pipeline(small, tmp_path):
  net, model, params = small
  net.save_pretrained(tmp_path / "dit")
  run("diffusers-dit", "ours", tmp_path / "dit", tmp_path / "dit.safetensors")
  levels = dict(block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=8)
  kinds = dict(
    down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2
  )
  diffusers.AutoencoderKL(**levels, **kinds).save_pretrained(tmp_path / "vae")
  run("sd-vae", "ours", tmp_path / "vae", tmp_path / "vae.safetensors")
  run("ours", "diffusers-dit", tmp_path / "dit.safetensors", tmp_path / "pipe" / "transformer")
  run("ours", "sd-vae", tmp_path / "vae.safetensors", tmp_path / "pipe" / "vae")
  pipe = diffusers.DiTPipeline.from_pretrained(tmp_path / "pipe")
  space(pipe.transformer, 0)
  data = inputs(16, 7, [1, 37, 999])
  compare("pipeline", our_output(model, params, *data), their_output(pipe.transformer, *data))
  pipe.set_progress_bar_config(disable=True)
  images = pipe([1, 2], guidance_scale=1.0, num_inference_steps=2, output_type="np").images
  assert images.shape == (2, 32, 32, 3)
  assert np.isfinite(images).all()
