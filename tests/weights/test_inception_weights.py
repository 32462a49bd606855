"""Inception's weights: three kinds of files, exactly; and every file that does not fit is told."""

import jax
import numpy as np
import pytest

from dit_jax.core.errors import UserError
from dit_jax.weights import files, inception, torch_file

SHAPES = {  # of a network cut to two layers
  "Mixed_5b/branch1x1/kernel": (1, 3, 2, 4),
  **{f"Mixed_5b/branch1x1/{leaf}": (4,) for leaf in ("scale", "bias", "mean", "var")},
  "fc/kernel": (4, 5),
}
SHAPES = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in SHAPES.items()}


def arrays() -> dict[str, np.ndarray]:
  """What a file holds, with what is left out of it."""
  r = np.random.default_rng(0)
  norms = ("weight", "bias", "running_mean", "running_var")
  return {
    "Mixed_5b.branch1x1.conv.weight": r.normal(size=(4, 2, 1, 3)).astype(np.float32),
    **{f"Mixed_5b.branch1x1.bn.{k}": r.normal(size=4).astype(np.float32) for k in norms},
    "Mixed_5b.branch1x1.bn.num_batches_tracked": np.array(7, np.int64),
    "fc.weight": r.normal(size=(5, 4)).astype(np.float32),
    "fc.bias": r.normal(size=5).astype(np.float32),
    "AuxLogits.fc.weight": r.normal(size=(2, 2)).astype(np.float32),
  }


def write(path, content):
  match path.suffix:
    case ".npz":
      np.savez(path, **content)
    case ".safetensors":
      files.save_safetensors(path, content, {})
    case _:
      torch_file.save(path, content)
  return path


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors", ".npz"])
def test_every_kind_of_file_gives_the_same_leaves(tmp_path, suffix):
  theirs = arrays()
  got = inception.load(write(tmp_path / f"w{suffix}", theirs), SHAPES)
  assert list(got) == list(SHAPES)
  layer = {name.rpartition("/")[2]: x for name, x in got.items() if name != "fc/kernel"}
  there = lambda name: theirs[f"Mixed_5b.branch1x1.{name}"]
  for i in range(4):  # [out, in, row, column] there
    np.testing.assert_array_equal(layer["kernel"][0, :, :, i].T, there("conv.weight")[i, :, 0])
  pairs = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
  for ours, name in pairs.items():
    np.testing.assert_array_equal(layer[ours], there(f"bn.{name}"))
  np.testing.assert_array_equal(got["fc/kernel"], theirs["fc.weight"].T)


def test_other_floats_come_as_float32(tmp_path):
  wide = {k: x.astype(np.float64) if x.dtype == np.float32 else x for k, x in arrays().items()}
  got = inception.load(write(tmp_path / "w.npz", wide), SHAPES)
  want = inception.load(write(tmp_path / "w.pth", arrays()), SHAPES)
  for name, x in got.items():
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, want[name])


def test_another_network_is_told_key_by_key(tmp_path):
  wrong = arrays()
  del wrong["Mixed_5b.branch1x1.bn.bias"], wrong["fc.weight"]
  wrong |= {"layer1.weight": np.zeros((2, 2), np.float32), "x": np.zeros(3, np.float32)}
  wrong["Mixed_5b.branch1x1.bn.weight"] = np.zeros(5, np.float32)
  wrong["Mixed_5b.branch1x1.bn.running_var"] = np.zeros(4, np.int64)
  with pytest.raises(UserError) as e:
    inception.load(write(tmp_path / "w.pth", wrong), SHAPES)
  said = str(e.value)
  assert "\n" not in said
  for part in (
    "w.pth: ",
    "unused key layer1.weight (2,2)",
    "unused key x (3,)",
    "unfilled leaf Mixed_5b/branch1x1/bias (4,) (no Mixed_5b.branch1x1.bn.bias)",
    "unfilled leaf fc/kernel (4,5) (no fc.weight)",
    "Mixed_5b.branch1x1.bn.weight is (5,) and should be (4,)",
    "running_var is of dtype int64 and should be of floats",
    "pytorch-fid",
  ):
    assert part in said


@pytest.mark.parametrize(
  ("name", "content", "said"),
  [
    ("w.pickle", b"x", r"no \.pth, \.pt, \.safetensors or \.npz"),
    ("w.npz", b"x", "not a whole .npz"),
    ("w.pth", b"x", "not a whole PyTorch file"),
    ("w.safetensors", b"x", "not a whole safetensors file"),
    ("none.npz", None, "cannot be read"),
    ("none.pth", None, "cannot be read"),
  ],
)
def test_a_broken_or_missing_file_is_one_line(tmp_path, name, content, said):
  if content:
    (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError, match=said) as e:
    inception.load(tmp_path / name, SHAPES)
  assert "\n" not in str(e.value)


def test_an_npz_runs_nothing_and_does_not_swell(tmp_path, monkeypatch):
  np.savez(tmp_path / "o.npz", **arrays() | {"fc.weight": np.array([{}], object)})
  with pytest.raises(UserError, match=r"not a whole \.npz"):
    inception.load(tmp_path / "o.npz", SHAPES)
  monkeypatch.setattr(inception, "MOST_BYTES", 2**10)
  np.savez_compressed(tmp_path / "b.npz", x=np.zeros(2**9, np.float32))
  with pytest.raises(UserError, match="unpacks to 2,"):
    inception.load(tmp_path / "b.npz", SHAPES)
