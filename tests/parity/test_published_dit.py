"""DiT from a file that torch.save wrote under its authors' names, against those weights in torch.

Written from the paper (arXiv 2212.09748, section 3 and figure 3) and the names of the public files.
"""

import argparse
import math

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

DEPTH, WIDTH, HEADS, PATCH, SIDE, CLASSES = 2, 48, 3, 2, 8, 7
TOLERANCE = 1e-4  # float32 on both sides


@pytest.fixture(scope="module")
def weights():
  """A state dict under the public names; positions are not sine and cosine, to show their way."""
  d, r = WIDTH, torch.Generator().manual_seed(0)
  shapes = {"pos_embed": (1, (SIDE // PATCH) ** 2, d), "x_embedder.proj": (d, 4, PATCH, PATCH)}
  shapes |= {"t_embedder.mlp.0": (d, 256), "t_embedder.mlp.2": (d, d)}
  shapes |= {"y_embedder.embedding_table.weight": (CLASSES + 1, d)}
  for i in range(DEPTH):
    layers = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (4 * d, d)}
    layers |= {"mlp.fc2": (d, 4 * d), "adaLN_modulation.1": (6 * d, d)}
    shapes |= {f"blocks.{i}.{name}": shape for name, shape in layers.items()}
  shapes |= {"final_layer.linear": (PATCH * PATCH * 8, d)}
  shapes |= {"final_layer.adaLN_modulation.1": (2 * d, d)}
  out = {}
  for name, shape in shapes.items():
    alone = name == "pos_embed" or name.endswith(".weight")
    for key, size in (
      [(name, shape)]
      if alone
      else [
        (f"{name}.weight", shape),
        (f"{name}.bias", shape[:1]),
      ]
    ):
      out[key] = 0.1 * torch.randn(size, generator=r)
  return out


def forward(w: dict, z, t, label):
  """The model of figure 3 on those weights: z [b, 4, h, w] -> [b, 8, h, w]."""
  F = torch.nn.functional
  linear = lambda x, name: F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])
  normed = lambda x, shift, scale: (
    F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
  )
  x = F.conv2d(z, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=PATCH)
  x = rearrange(x, "b d h w -> b (h w) d") + w["pos_embed"]
  freqs = torch.exp(-math.log(10_000) * torch.arange(128) / 128)  # float32: t = 999 shows it
  angles = t[:, None] * freqs
  c = linear(torch.cat([angles.cos(), angles.sin()], 1), "t_embedder.mlp.0")
  c = linear(F.silu(c), "t_embedder.mlp.2") + w["y_embedder.embedding_table.weight"][label]
  c = F.silu(c)
  for i in range(DEPTH):
    b = f"blocks.{i}"
    s1, g1, a1, s2, g2, a2 = linear(c, f"{b}.adaLN_modulation.1").chunk(6, 1)
    qkv = linear(normed(x, s1, g1), f"{b}.attn.qkv")
    q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=HEADS)
    weights = (q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS)).softmax(-1)
    out = rearrange(weights @ v, "b h n d -> b n (h d)")
    x = x + a1[:, None] * linear(out, f"{b}.attn.proj")
    h = F.gelu(linear(normed(x, s2, g2), f"{b}.mlp.fc1"), approximate="tanh")
    x = x + a2[:, None] * linear(h, f"{b}.mlp.fc2")
  shift, scale = linear(c, "final_layer.adaLN_modulation.1").chunk(2, 1)
  x = linear(normed(x, shift, scale), "final_layer.linear")
  rows = SIDE // PATCH
  return rearrange(x, "b (h w) (p q c) -> b c (h p) (w q)", h=rows, p=PATCH, q=PATCH)


def converted(path, dst):
  words = ["--from=dit", "--to=ours", f"--src={path}", f"--dst={dst}", f"--num_heads={HEADS}"]
  cli.run(convert.main, convert.FLAGS, ["convert", *words])
  return ours.load(dst)


def outputs(weights, fields, leaves):
  """Ours and torch's, [b, h, w, 8]."""
  r = np.random.default_rng(0)
  z = r.normal(size=(4, SIDE, SIDE, 4)).astype(np.float32)
  t, label = np.array([0, 1, 300, 999], np.float32), np.array([0, CLASSES, 3, 6], np.int32)
  params = {"params": unflatten_dict(leaves, sep="/")}
  got = jax.jit(dit.DiT(**fields).apply)(params, z, t, label)
  arrays = (rearrange(z, "b h w c -> b c h w").copy(), t, label.astype(np.int64))
  want = forward(weights, *map(torch.from_numpy, arrays))
  return np.asarray(got), rearrange(want.numpy(), "b c h w -> b h w c")


@pytest.mark.parametrize("kind", ["plain", "checkpoint", "parameters"])
def test_a_file_of_torch_gives_torchs_output(weights, kind, tmp_path):
  content = weights
  if kind == "checkpoint":  # what training writes: the average is what counts
    other = {name: x + 1 for name, x in weights.items()}
    content = {"model": other, "ema": weights, "opt": {"state": {0: {"step": torch.tensor(3.0)}}}}
    content["args"] = argparse.Namespace(lr=1e-4, model="DiT-XL/2", resume=None)
  if kind == "parameters":
    content = {name: torch.nn.Parameter(x) for name, x in weights.items()}
  torch.save(content, tmp_path / "w.pt")
  _, fields, leaves = converted(tmp_path / "w.pt", tmp_path / "w.safetensors")
  assert fields["grid"] == (SIDE, SIDE)
  assert (fields["num_classes"], fields["learn_sigma"]) == (CLASSES, True)
  got, want = outputs(weights, fields, leaves)
  print(f"largest error {np.abs(got - want).max():.2e}, sd of the output {want.std():.3f}")
  assert want.std() >= 0.1
  np.testing.assert_allclose(got, want, atol=TOLERANCE)


def test_no_key_is_idle(weights, tmp_path):
  torch.save(weights, tmp_path / "w.pt")
  _, fields, leaves = converted(tmp_path / "w.pt", tmp_path / "w.safetensors")
  generator = torch.Generator().manual_seed(1)
  for name, x in weights.items():
    moved = weights | {name: x + 0.05 * torch.randn(x.shape, generator=generator)}
    got, want = outputs(moved, fields, leaves)
    assert np.abs(got - want).max() > 10 * TOLERANCE, name


def test_a_file_of_ours_loads_there(weights, tmp_path):
  """Under the strict loader, equal to the bit; the position table goes along."""
  torch.save(weights, tmp_path / "w.pt")
  converted(tmp_path / "w.pt", tmp_path / "w.safetensors")
  words = [
    "--from=ours",
    "--to=dit",
    f"--src={tmp_path / 'w.safetensors'}",
    f"--dst={tmp_path / 'v.pt'}",
  ]
  cli.run(convert.main, convert.FLAGS, ["convert", *words])
  back = torch.load(tmp_path / "v.pt", weights_only=True)
  assert set(back) == set(weights)
  assert all(torch.equal(back[name], x) for name, x in weights.items())
  table = embed.sincos_table(SIDE // PATCH, SIDE // PATCH, WIDTH)
  assert np.abs(back["pos_embed"][0].numpy() - table).max() > 0.1


def test_the_format_before_1_6_is_refused(weights, tmp_path, capsys):
  torch.save(weights, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
  with pytest.raises(SystemExit) as e:
    converted(tmp_path / "w.pt", tmp_path / "w.safetensors")
  assert e.value.code == cli.USER_ERROR
  assert "before 1.6" in capsys.readouterr().err
