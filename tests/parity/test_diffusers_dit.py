"""DiT against diffusers' own class as it comes, through converted folders in both directions.

diffusers spaces the 128 frequencies of its timestep embedding over 127 steps (downscale_freq_shift
= 1) and DiT, whose weights it carries, over 128. Ours computes either, as max_period says.
"""

import jax
import numpy as np
import pytest
from einops import rearrange
from flax.traverse_util import unflatten_dict

from dit_jax import convert
from dit_jax.core import cli
from dit_jax.models import dit, sd_vae
from dit_jax.weights import diffusers_dit, ours

pytestmark = pytest.mark.all
torch = pytest.importorskip("torch", reason="torch is not installed: parity")
diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: parity")

TOLERANCE = 1e-4  # float32 on both sides
SMALL = dict(num_attention_heads=3, attention_head_dim=16, num_layers=3, num_embeds_ada_norm=7)
XL = dict(num_attention_heads=16, attention_head_dim=72, num_embeds_ada_norm=1000)
TIMES = [0, 1, 37, 500, 999]


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


def spaced_as_dit(net):
  """What docs/convert.md says to do with weights that were trained under DiT's frequencies."""
  for block in net.transformer_blocks:
    block.norm1.emb.time_proj.downscale_freq_shift = 0
  return net


def run(source, target, src, dst, *more) -> None:
  words = [f"--from={source}", f"--to={target}", f"--src={src}", f"--dst={dst}", *more]
  cli.run(convert.main, convert.FLAGS, ["convert", *words])


def imported(net, folder, *more):
  """Our model and parameters, by way of a folder that diffusers wrote."""
  net.save_pretrained(folder / "theirs")
  run("diffusers-dit", "ours", folder / "theirs", folder / "ours.safetensors", *more)
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


def test_at_all_times_the_class_as_it_comes(small):
  net, model, params = small
  data = inputs(16, 7, TIMES)
  compare("imported", our_output(model, params, *data), their_output(net, *data))
  assert model.max_period == diffusers_dit.MAX_PERIOD


def test_weights_of_dit_in_a_folder(small, tmp_path):
  """The folder that diffusers' authors converted: told its period, ours is DiT, not their class."""
  net, model, params = small
  told = imported(net, tmp_path, "--max_period=10000")
  data = inputs(16, 7, TIMES)
  got, as_it_comes = our_output(*told, *data), our_output(model, params, *data)
  compare("DiT's frequencies", got, their_output(spaced_as_dit(theirs(0.1, **SMALL)), *data))
  gap = np.abs(got - as_it_comes)
  print(f"DiT's frequencies against diffusers': {gap.max():.2e}")
  assert gap[0].max() <= TOLERANCE < 100 * TOLERANCE < gap.max()  # at t = 0 there is no difference


def test_no_leaf_is_idle(small):
  """Any leaf that moves breaks parity."""
  net, model, params = small
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
  model, params = imported(net, tmp_path)
  data = inputs(32, 1000, [0, 37, 700, 999])
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
  data = inputs(16, 7, TIMES)
  compare("exported", our_output(model, params, *data), their_output(back, *data))


def test_a_model_of_dits_period_is_told_what_changes_there(small, tmp_path, capsys):
  """The measured gap is that of their embedding; with their shift set, the output is ours."""
  net, _, _ = small
  model, params = imported(net, tmp_path, "--max_period=10000")
  capsys.readouterr()
  run("ours", "diffusers-dit", tmp_path / "ours.safetensors", tmp_path / "c")
  warning = capsys.readouterr().err.splitlines()[0]
  back = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "c")
  embedder, t = back.transformer_blocks[0].norm1.emb, torch.arange(1000)
  with torch.no_grad():
    stock = embedder.timestep_embedder(embedder.time_proj(t))
    spaced_as_dit(back)
    gap = (stock - embedder.timestep_embedder(embedder.time_proj(t))).abs().max()
  assert f"will differ by up to {gap:.2g} (" in warning
  data = inputs(16, 7, TIMES)
  compare("exported, their shift set", our_output(model, params, *data), their_output(back, *data))


def our_images(model, params, vae, z, label, steps: int, guidance: float) -> np.ndarray:
  """What DiTPipeline draws from the noise z by DDIM, [b, H, W, 3] in 0 .. 1."""
  chain = diffusers_dit.SCHEDULER
  beta = np.linspace(chain["beta_start"], chain["beta_end"], chain["num_train_timesteps"])
  kept = np.append(np.cumprod(1 - beta), 1.0).astype(np.float32)  # alpha^2; the last at t = -1
  null, stride = np.full_like(label, model.num_classes), len(beta) // steps
  for t in range((steps - 1) * stride, -1, -stride):
    now = np.full(len(z), t, np.float32)
    eps, plain = (our_output(model, params, z, now, y)[..., :4] for y in (label, null))
    eps = plain + guidance * (eps - plain)
    x0 = (z - np.sqrt(1 - kept[t]) * eps) / np.sqrt(kept[t])
    before = kept[max(t - stride, -1)]
    z = np.sqrt(before) * x0 + np.sqrt(1 - before) * eps
  net, vae_params = vae
  decode = jax.jit(lambda z: net.apply({"params": vae_params}, z, method="decode"))
  return np.clip(np.asarray(decode(z / net.scaling_factor)) / 2 + 0.5, 0, 1)


def test_a_folder_of_both_is_a_pipeline(tmp_path):
  """As it comes, guided too: its pictures are those that our two models give."""
  small = SMALL | dict(num_embeds_ada_norm=1000)  # the null class is written into the pipeline
  model, params = imported(theirs(0.1, **small), tmp_path)
  levels = dict(block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=8)
  kinds = dict(
    down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2
  )
  torch.manual_seed(0)
  diffusers.AutoencoderKL(**levels, **kinds).save_pretrained(tmp_path / "vae")
  run("sd-vae", "ours", tmp_path / "vae", tmp_path / "vae.safetensors")
  run("ours", "diffusers-dit", tmp_path / "ours.safetensors", tmp_path / "pipe" / "transformer")
  run("ours", "sd-vae", tmp_path / "vae.safetensors", tmp_path / "pipe" / "vae")
  pipe = diffusers.DiTPipeline.from_pretrained(tmp_path / "pipe")
  data = inputs(16, 1000, TIMES)
  compare("pipeline", our_output(model, params, *data), their_output(pipe.transformer, *data))
  pipe.set_progress_bar_config(disable=True)
  label = np.array([1, 207], np.int32)
  _, fields, leaves = ours.load(tmp_path / "vae.safetensors")
  vae = sd_vae.AutoencoderKL(**fields), unflatten_dict(leaves, sep="/")
  z = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1)).numpy()
  z = rearrange(z, "b c h w -> b h w c")
  pictures = []
  for guidance in (1.0, 2.0):
    told = dict(guidance_scale=guidance, num_inference_steps=5, output_type="np")
    want = pipe(label.tolist(), **told, generator=torch.Generator().manual_seed(1)).images
    pictures.append(our_images(model, params, vae, z, label, 5, guidance))
    compare(f"pictures, guidance {guidance}", pictures[-1], want)
  pictures.append(our_images(model.clone(max_period=10_000.0), params, vae, z, label, 5, 2.0))
  gaps = [np.abs(x - pictures[1]).max() for x in (pictures[0], pictures[2])]
  print(f"without guidance {gaps[0]:.2e}, under DiT's frequencies {gaps[1]:.2e} away")
  assert min(gaps) > 100 * TOLERANCE
