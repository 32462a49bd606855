"""The autoencoder against diffusers' own class, through converted folders in both directions."""

import jax
import numpy as np
import pytest
from einops import rearrange
from flax.traverse_util import unflatten_dict

from dit_jax import convert
from dit_jax.core import cli
from dit_jax.models import sd_vae
from dit_jax.weights import ours

pytestmark = pytest.mark.all
torch = pytest.importorskip("torch", reason="torch is not installed: parity")
diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: parity")

TOLERANCE = 1e-3  # float32 on both sides, up to 30 layers deep
SMALL = dict(block_out_channels=(32, 32, 32), layers_per_block=1, norm_num_groups=8)
FULL = dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2, norm_num_groups=32)


def theirs(block_out_channels, **config):
  """diffusers' model, no leaf of it zero or one, kernels scaled to keep the deviation."""
  levels = len(block_out_channels)
  net = diffusers.AutoencoderKL(
    block_out_channels=block_out_channels,
    down_block_types=("DownEncoderBlock2D",) * levels,
    up_block_types=("UpDecoderBlock2D",) * levels,
    **config,
  ).eval()
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, p in net.named_parameters():
      fan_in = p[0].numel()
      p.normal_(std=fan_in**-0.5 if p.ndim > 1 else 0.1, generator=generator)
      if "norm" in name and name.endswith("weight"):
        p.add_(1)
  return net


def run(source, target, src, dst) -> None:
  words = [f"--from={source}", f"--to={target}", f"--src={src}", f"--dst={dst}"]
  cli.run(convert.main, convert.FLAGS, ["convert", *words])


def imported(net, folder):
  """Our model and parameters, by way of a folder that diffusers wrote."""
  net.save_pretrained(folder / "theirs")
  run("sd-vae", "ours", folder / "theirs", folder / "ours.safetensors")
  model, fields, leaves = ours.load(folder / "ours.safetensors")
  assert model == "sd-vae"
  return sd_vae.AutoencoderKL(**fields), unflatten_dict(leaves, sep="/")


def inputs(height: int, width: int, factor: int, b: int):
  """Images, and latents that are not theirs."""
  r = np.random.default_rng(0)
  x = r.uniform(-1, 1, (b, height, width, 3)).astype(np.float32)
  return x, r.normal(size=(b, height // factor, width // factor, 4)).astype(np.float32)


def their_outputs(net, x, z) -> list[np.ndarray]:
  """Moments of the images, images of the latents."""
  first = lambda a: torch.from_numpy(rearrange(a, "b h w c -> b c h w").copy())
  with torch.no_grad():
    out = net.encode(first(x)).latent_dist.parameters, net.decode(first(z)).sample
  return [rearrange(a.numpy(), "b c h w -> b h w c") for a in out]


def our_outputs(model, params, x, z) -> list[np.ndarray]:
  apply = jax.jit(model.apply, static_argnames="method")
  pairs = (("encode", x), ("decode", z))
  return [np.asarray(apply({"params": params}, a, method=name)) for name, a in pairs]


def compare(name, got, want) -> None:
  for half, a, b in zip(("encode", "decode"), got, want, strict=True):
    error = np.abs(a - b).max()
    print(f"{name}, {half}: largest error {error:.2e}, sd of the output {b.std():.3f}")
    assert b.std() >= 0.1
    assert error <= TOLERANCE


@pytest.fixture(scope="module")
def small(tmp_path_factory):
  net = theirs(**SMALL)
  return net, *imported(net, tmp_path_factory.mktemp("small"))


def test_small_and_not_square(small):
  net, model, params = small
  data = inputs(16, 24, model.factor, 2)
  compare("small", our_outputs(model, params, *data), their_outputs(net, *data))


def test_no_leaf_is_idle(small):
  """Any leaf that moves breaks the parity of the half that it belongs to."""
  net, model, params = small
  data = inputs(16, 16, model.factor, 1)
  want = their_outputs(net, *data)
  apply = jax.jit(model.apply, static_argnames="method")
  paths, structure = jax.tree_util.tree_flatten_with_path(params)
  r = np.random.default_rng(1)
  for i, (path, leaf) in enumerate(paths):
    if path[-2].key == "k" and path[-1].key == "bias":
      continue  # the same number is added to all scores of a query: softmax takes it away
    moved = [leaf for _, leaf in paths]
    moved[i] = leaf + 0.3 * r.normal(size=leaf.shape).astype(np.float32)
    half = path[0].key in ("decoder", "post_quant_conv")
    method, x = ("decode", data[1]) if half else ("encode", data[0])
    got = apply({"params": jax.tree.unflatten(structure, moved)}, x, method=method)
    assert np.abs(got - want[half]).max() > 10 * TOLERANCE, path


def test_at_full_width(tmp_path):
  """The sizes of Stable Diffusion's, one image of 64 px; one moved leaf breaks parity."""
  net = theirs(**FULL)
  model, params = imported(net, tmp_path)
  assert model == sd_vae.AutoencoderKL()
  data = inputs(64, 64, 8, 1)
  want = their_outputs(net, *data)
  compare("full width", our_outputs(model, params, *data), want)
  for half in ("encoder", "decoder"):
    params[half]["mid"]["attn_1"]["v"]["bias"] += 0.1
  for got, wanted in zip(our_outputs(model, params, *data), want, strict=True):
    assert np.abs(got - wanted).max() > 10 * TOLERANCE


def test_a_folder_of_ours_loads_there(small, tmp_path):
  net, model, params = small
  net.save_pretrained(tmp_path / "a")
  run("sd-vae", "ours", tmp_path / "a", tmp_path / "b.safetensors")
  run("ours", "sd-vae", tmp_path / "b.safetensors", tmp_path / "c")
  back, report = diffusers.AutoencoderKL.from_pretrained(tmp_path / "c", output_loading_info=True)
  assert not any(report.values()), report
  theirs_by_name = dict(net.named_parameters())
  for name, p in back.named_parameters():
    assert torch.equal(p, theirs_by_name[name]), name
  assert back.config.scaling_factor == sd_vae.SCALING_FACTOR
  data = inputs(16, 16, model.factor, 2)
  compare("exported", our_outputs(model, params, *data), their_outputs(back, *data))
