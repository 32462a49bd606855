"""The FID's Inception against PyTorch: our own transcription, and torch-fidelity's class.

The transcription reads a state dict by its keys, as the published file has them, and computes in
float32 from uint8 images on. Our side reads a `.pth` that torch.save wrote as before PyTorch 1.6.
"""

import importlib
import importlib.util
import sys
import types

import jax
import numpy as np
import pytest
from einops import rearrange

from dit_jax.core import tree as trees
from dit_jax.evals import features
from dit_jax.models import inception

pytestmark = pytest.mark.all
torch = pytest.importorskip("torch", reason="torch is not installed: parity")
F = torch.nn.functional
TOLERANCE = 1e-4
KINDS = ("values", "spatial", "logits")


class Network:
  """Forward of a state dict; every key that was read is in `read`."""

  def __init__(self, state):
    self.state, self.read = state, set()

  def get(self, name):
    self.read.add(name)
    return self.state[name]

  def layer(self, x, name, stride=1, padding=0):
    norm = [self.get(f"{name}.bn.{k}") for k in ("running_mean", "running_var", "weight", "bias")]
    y = F.conv2d(x, self.get(f"{name}.conv.weight"), stride=stride, padding=padding)
    return F.relu(F.batch_norm(y, *norm, training=False, eps=1e-3))

  def same(self, x, *names):
    """Layers behind each other that keep the size."""
    for name in names:
      kernel = self.state[f"{name}.conv.weight"].shape[2:]
      x = self.layer(x, name, padding=tuple(k // 2 for k in kernel))
    return x

  def mean_branch(self, x, block):
    total = F.avg_pool2d(x, 3, 1, 1, divisor_override=1)
    there = F.avg_pool2d(torch.ones_like(x), 3, 1, 1, divisor_override=1)
    return self.same(total / there, f"{block}.branch_pool")

  def block_a(self, x, b):
    return torch.cat([
      self.same(x, f"{b}.branch1x1"),
      self.same(x, f"{b}.branch5x5_1", f"{b}.branch5x5_2"),
      self.same(x, *(f"{b}.branch3x3dbl_{i}" for i in (1, 2, 3))),
      self.mean_branch(x, b),
    ], 1)  # fmt: skip

  def block_b(self, x, b):
    twice = self.same(x, f"{b}.branch3x3dbl_1", f"{b}.branch3x3dbl_2")
    return torch.cat([
      self.layer(x, f"{b}.branch3x3", 2),
      self.layer(twice, f"{b}.branch3x3dbl_3", 2),
      F.max_pool2d(x, 3, 2),
    ], 1)  # fmt: skip

  def block_c(self, x, b):
    return torch.cat([
      self.same(x, f"{b}.branch1x1"),
      self.same(x, *(f"{b}.branch7x7_{i}" for i in (1, 2, 3))),
      self.same(x, *(f"{b}.branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5))),
      self.mean_branch(x, b),
    ], 1)  # fmt: skip

  def block_d(self, x, b):
    seven = self.same(x, *(f"{b}.branch7x7x3_{i}" for i in (1, 2, 3)))
    return torch.cat([
      self.layer(self.same(x, f"{b}.branch3x3_1"), f"{b}.branch3x3_2", 2),
      self.layer(seven, f"{b}.branch7x7x3_4", 2),
      F.max_pool2d(x, 3, 2),
    ], 1)  # fmt: skip

  def block_e(self, x, b, maximum):
    three = self.same(x, f"{b}.branch3x3_1")
    twice = self.same(x, f"{b}.branch3x3dbl_1", f"{b}.branch3x3dbl_2")
    largest = lambda: self.same(F.max_pool2d(x, 3, 1, 1), f"{b}.branch_pool")
    return torch.cat([
      self.same(x, f"{b}.branch1x1"),
      *(self.same(three, f"{b}.branch3x3_2{end}") for end in "ab"),
      *(self.same(twice, f"{b}.branch3x3dbl_3{end}") for end in "ab"),
      largest() if maximum else self.mean_branch(x, b),
    ], 1)  # fmt: skip

  def forward(self, x):
    """Pool, spatial features, logits of pictures in [-1, 1), [b, 3, 299, 299]."""
    x = self.layer(x, "Conv2d_1a_3x3", 2)
    x = self.same(self.layer(x, "Conv2d_2a_3x3"), "Conv2d_2b_3x3")
    x = self.layer(F.max_pool2d(x, 3, 2), "Conv2d_3b_1x1")
    x = F.max_pool2d(self.layer(x, "Conv2d_4a_3x3"), 3, 2)
    for end in "bcd":
      x = self.block_a(x, f"Mixed_5{end}")
    x = self.block_b(x, "Mixed_6a")
    for end in "bcde":
      before, x = x, self.block_c(x, f"Mixed_6{end}")
      if end == "d":
        spatial = self.same(before, "Mixed_6d.branch1x1")[:, :7]
    x = self.block_d(x, "Mixed_7a")
    x = self.block_e(x, "Mixed_7b", maximum=False)
    x = self.block_e(x, "Mixed_7c", maximum=True)
    pool = x.mean((2, 3))
    spatial = rearrange(spatial, "b c h w -> b (h w c)")
    return pool, spatial, pool @ self.get("fc.weight").T


def resized(images):
  """TensorFlow 1's bilinear kernel at 299 px, by weights of whole rows and columns, in float64."""
  x = rearrange(torch.from_numpy(images).double(), "b h w c -> b c h w")
  sides = []
  for size in x.shape[2:]:
    at = np.arange(299, dtype=np.float32) * np.float32(size / 299)
    low, weights = np.floor(at).astype(int), np.zeros((299, size))
    for i in range(299):
      weights[i, low[i]] += 1 - (at[i] - low[i])
      weights[i, min(low[i] + 1, size - 1)] += at[i] - low[i]
    sides.append(torch.from_numpy(weights))
  x = torch.einsum("ih,bchw,jw->bcij", sides[0], x, sides[1])
  return ((x - 128) / 128).float()


def state_dict():
  """No leaf zero or one; kernels keep the deviation, running statistics are those of no data."""
  blank = jax.ShapeDtypeStruct((1, 299, 299, 3), np.float32)
  shapes = jax.eval_shape(inception.InceptionV3().init, jax.random.key(0), blank)["params"]
  generator, state = torch.Generator().manual_seed(0), {}
  normal = lambda *shape: torch.randn(shape, generator=generator)
  paths = {tuple(k.key for k in path): x for path, x in jax.tree.leaves_with_path(shapes)}
  for (*place, leaf), x in paths.items():
    name = ".".join(place)
    if leaf != "kernel" or name == "fc":
      continue
    *sides, inputs, outputs = x.shape
    fan = inputs * np.prod(sides)
    state[f"{name}.conv.weight"] = normal(outputs, inputs, *sides) * (2 / fan) ** 0.5
    state[f"{name}.bn.weight"] = 0.8 + 0.1 * normal(outputs)
    state[f"{name}.bn.bias"] = 0.2 * normal(outputs)
    state[f"{name}.bn.running_mean"] = 0.2 * normal(outputs)
    state[f"{name}.bn.running_var"] = (0.8 + 0.1 * normal(outputs)).abs()
  state["fc.weight"] = 0.05 * normal(1008, 2048)
  state["fc.bias"] = normal(1008)
  return state


@pytest.fixture(scope="module")
def both(tmp_path_factory):
  """(state dict, file, images, what PyTorch makes of them, our features of them)."""
  state = state_dict()
  path = tmp_path_factory.mktemp("inception") / "w.pth"
  torch.save(state, path, _use_new_zipfile_serialization=False)
  images = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), np.uint8)
  images[0] = images[0] // 64 * 20 + np.arange(40, dtype=np.uint8)[:, None, None]
  network = Network(state)
  with torch.no_grad():
    want = [x.numpy() for x in network.forward(resized(images))]
  assert network.read == set(state) - {"fc.bias"}
  extract = features.Extractor("inception", batch=1, weights_file=str(path))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, "local_devices", lambda: jax.devices()[:1])  # a device more costs as much
    return state, path, images, want, extract, extract(images)


def test_features_are_those_of_the_transcription(both):
  *_, want, _, got = both
  assert (got.trunk, got.image_size, got.eval_size) == ("inception", 40, 299)
  for kind, theirs in zip(KINDS, want, strict=True):
    ours = getattr(got, kind)
    error = np.abs(ours - theirs).max()
    print(f"{kind}: largest error {error:.1e}, sd {theirs.std():.3f}, mean {theirs.mean():.3f}")
    assert theirs.std() > 0.1
    assert error <= TOLERANCE


@pytest.fixture
def fidelity(monkeypatch):
  """The module of torch-fidelity's network alone: the package's start needs torchvision."""
  found = importlib.util.find_spec("torch_fidelity")
  if found is None:
    pytest.skip("torch_fidelity is not installed: parity")
  package = types.ModuleType("torch_fidelity")
  package.__path__ = list(found.submodule_search_locations)
  before = set(sys.modules)
  monkeypatch.setitem(sys.modules, "torch_fidelity", package)
  yield importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
  for name in set(sys.modules) - before:
    if name.startswith("torch_fidelity."):
      del sys.modules[name]


def test_features_are_those_of_torch_fidelity(both, fidelity):
  """Its own class loads the same file by the same keys, none left over, and resizes itself."""
  _, path, images, *_, got = both
  names = ["2048", "logits_unbiased"]
  net = fidelity.FeatureExtractorInceptionV3(
    "inception-v3-compat", names, feature_extractor_weights_path=str(path)
  )
  with torch.no_grad():
    pool, logits = net(rearrange(torch.from_numpy(images), "b h w c -> b c h w"))
  for kind, x in (("values", pool), ("logits", logits)):
    error = np.abs(getattr(got, kind) - x.numpy()).max()
    print(f"{kind}: largest error {error:.1e} against torch-fidelity, sd {x.std():.3f}")
    assert error <= TOLERANCE


def test_todays_format_holds_the_same_leaves(both, tmp_path):
  state, path, *_ = both
  torch.save(state, tmp_path / "w.pth")
  old, new = (trees.flatten(inception.load_weights(p)) for p in (path, tmp_path / "w.pth"))
  assert old.keys() == new.keys()
  assert len(old) == len(state) - 1  # the bias
  for name, x in old.items():
    np.testing.assert_array_equal(x, new[name])


def test_a_moved_leaf_breaks_parity(both):
  """One of every kind, in every part of the network."""
  _, _, images, want, extract, _ = both
  params, forward = extract._params, jax.jit(extract._forward)
  paths = [
    ("Conv2d_1a_3x3", "kernel"), ("Conv2d_4a_3x3", "var"), ("Mixed_5b", "branch_pool", "mean"),
    ("Mixed_5d", "branch5x5_2", "scale"), ("Mixed_6a", "branch3x3dbl_3", "bias"),
    ("Mixed_6d", "branch7x7dbl_4", "kernel"), ("Mixed_7a", "branch7x7x3_2", "mean"),
    ("Mixed_7b", "branch_pool", "var"), ("Mixed_7c", "branch3x3dbl_3b", "bias"), ("fc", "kernel"),
  ]  # fmt: skip
  r = np.random.default_rng(1)
  for *place, leaf in paths:
    moved = jax.tree.map(lambda x: x, params)
    layer = moved
    for name in place:
      layer = layer[name]
    layer[leaf] = layer[leaf] + 0.3 * np.abs(r.normal(size=layer[leaf].shape)).astype(np.float32)
    made = forward(moved, images[:1])
    assert np.abs(np.asarray(made["logits"])[0] - want[2][0]).max() > 10 * TOLERANCE, (place, leaf)
