"""References: statistics however a set comes, files of ours and of ADM's, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest

from dit_jax.core.errors import UserError
from dit_jax.evals import features, reference
from dit_jax.evals.reference import Reference


class Means:
  """Features that can be told by hand, of whatever trunk they say: means of an image's corners."""

  def __init__(self, trunk="inception"):
    self.trunk, self.weights, self.calls = trunk, "0123", 0

  def __call__(self, images):
    self.calls += 1
    x = images.astype(np.float32)
    corners = [x[:, :4, :4], x[:, 4:, 4:], x[:, :4, 4:]]
    more = {} if self.trunk != "inception" else dict(spatial=x[:, 0, :5, 0], logits=x[:, 1, :4, 1])
    return features.Features(
      np.concatenate([c.mean((1, 2)) for c in corners], 1),
      self.trunk, self.weights, x.shape[1], 299, **more,
    )  # fmt: skip


def images(n=30, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), np.uint8)


def agree(got: Reference, want: Reference) -> None:
  for field in dataclasses.fields(Reference):
    a, b = getattr(got, field.name), getattr(want, field.name)
    if isinstance(b, np.ndarray):
      np.testing.assert_array_equal(a, b)
    else:
      assert a == b, field.name


def test_is_made_of_the_features_statistics():
  f = Means()(images())
  got = Reference.of(f, "made")
  for x, mu, sigma in ((f.values, got.mu, got.sigma), (f.spatial, got.mu_s, got.sigma_s)):
    np.testing.assert_allclose(mu, x.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(sigma, np.cov(x, rowvar=False), rtol=1e-9, atol=1e-9)
  np.testing.assert_array_equal(got.features, f.values)
  assert (got.n, got.image_size, got.eval_size, got.described) == (30, 8, 299, "made")


def test_parts_change_nothing():
  x, extract = images(), Means()
  whole = Reference.of(extract(x), "made")
  for cuts in ((7, 20), range(1, 30)):
    got = Reference.of_parts(map(extract, np.split(x, cuts)), "made")
    np.testing.assert_allclose(got.sigma, whole.sigma, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(got.mu_s, whole.mu_s, rtol=1e-10)
    np.testing.assert_array_equal(got.features, whole.features)
    few = Reference.of_parts(map(extract, np.split(x, cuts)), "made", keep=12)
    np.testing.assert_array_equal(
      few.features, Reference.of_parts([extract(x)], "made", keep=12).features
    )
    assert (few.n, len(np.unique(few.features, axis=0))) == (30, 12)
    np.testing.assert_allclose(few.sigma, whole.sigma, rtol=1e-10, atol=1e-10)
  assert Reference.of_parts([extract(x)], "made", keep=0).features is None
  rows = (few.features[:, None] == whole.features).all(-1).argmax(1)
  assert np.all(np.diff(rows) > 0)  # of the set
  assert rows.max() - rows.min() > 12  # and from all over it


def test_a_file_gives_back_the_reference(tmp_path):
  whole = Reference.of(Means()(images()), 'birds, "held out"')
  plain = Reference.of(Means("vgg16")(images()), "made")
  for want in (whole, plain, dataclasses.replace(whole, features=None)):
    want.save(tmp_path / "new" / "r.npz")
    agree(reference.load(tmp_path / "new" / "r.npz", Means()), want)
  got = reference.load(tmp_path / "new" / "r.npz", Means(), described="mine")
  assert got.described == "mine"


def test_adms_evaluator_finds_its_keys(tmp_path):
  """As its code reads a reference: mu and sigma, mu_s and sigma_s, and images one by one."""
  want = Reference.of(Means()(images()), "made")
  want.save(tmp_path / "r.npz", images())
  file = np.load(tmp_path / "r.npz")
  assert "mu" in list(file.keys())
  for name in ("mu", "sigma", "mu_s", "sigma_s"):
    np.testing.assert_array_equal(file[name], getattr(want, name))
  np.testing.assert_array_equal(file["arr_0"], images())
  agree(reference.load(tmp_path / "r.npz", Means()), want)


def adm(path, *names, **other):
  """A file as ADM publishes them: statistics of one set, images of a part of it."""
  made = Reference.of(Means()(images(50, 1)), "")
  arrays = {name: getattr(made, name) for name in names} | other
  np.savez(path, **{k: v.astype(np.float32) if v.dtype == float else v for k, v in arrays.items()})
  return made


STATISTICS = ("mu", "sigma", "mu_s", "sigma_s")


def test_adms_statistics_alone(tmp_path):
  made = adm(tmp_path / "VIRTUAL.npz", *STATISTICS)
  extract = Means()
  got = reference.load(tmp_path / "VIRTUAL.npz", extract)
  for name in STATISTICS:
    array = getattr(got, name)
    assert array.dtype == np.float64
    np.testing.assert_allclose(array, getattr(made, name), rtol=1e-6)
  assert (got.n, got.image_size, got.eval_size, got.features) == (0, 0, 299, None)
  assert (got.trunk, got.weights, extract.calls) == ("inception", "0123", 0)
  assert got.described.startswith("VIRTUAL.npz, ")
  again = reference.load(tmp_path / "VIRTUAL.npz", extract)
  assert got.described == again.described
  adm(tmp_path / "VIRTUAL.npz", "mu", "sigma")
  fewer = reference.load(tmp_path / "VIRTUAL.npz", extract)
  assert (fewer.mu_s, fewer.sigma_s) == (None, None)
  assert fewer.described != got.described  # the hash tells them apart


def test_adms_statistics_with_images(tmp_path):
  made = adm(tmp_path / "r.npz", *STATISTICS, arr_0=images())
  got = reference.load(tmp_path / "r.npz", Means())
  np.testing.assert_allclose(got.mu, made.mu, rtol=1e-6)
  np.testing.assert_array_equal(got.features, Means()(images()).values)
  assert (got.n, got.image_size) == (0, 8)


def test_images_make_the_reference_where_the_statistics_are_of_another_trunk(tmp_path):
  adm(tmp_path / "r.npz", *STATISTICS, arr_0=images())
  want = Reference.of(Means("vgg16")(images()), "images of r.npz")
  agree(reference.load(tmp_path / "r.npz", Means("vgg16")), want)
  adm(tmp_path / "r.npz", arr_0=images())  # a batch of samples
  agree(reference.load(tmp_path / "r.npz", Means("vgg16")), want)
  adm(tmp_path / "r.npz", *STATISTICS)
  with pytest.raises(UserError, match=r"statistics of inception alone .* are of vgg16"):
    reference.load(tmp_path / "r.npz", Means("vgg16"))


NAN = np.full((9, 9), np.nan)


@pytest.mark.parametrize(
  ("arrays", "said"),
  [
    (dict(features=np.ones((4, 9))), "neither mu and sigma nor images arr_0"),
    (dict(mu=np.ones(9)), "neither mu and sigma"),
    (dict(mu=np.ones(9), sigma=np.eye(8)), r"\[9\] and \[8, 8\]"),
    (dict(mu=np.ones((9, 1)), sigma=np.eye(9)), r"\[9, 1\] and \[9, 9\]"),
    (dict(mu=np.ones(9), sigma=NAN), "sigma of .* is not finite"),
    (dict(mu=np.array(["a"] * 9), sigma=np.eye(9)), "mu of .* is not finite"),
    (dict(mu=np.ones(9), sigma=np.eye(9), mu_s=np.ones(2), sigma_s=np.eye(3)), "mu_s and sigma_s"),
    (dict(meta=np.asarray("{"), mu=np.ones(9), sigma=np.eye(9)), "no reference of ours: meta"),
    (dict(meta=np.asarray("{}"), mu=np.ones(9), sigma=np.eye(9)), "no reference of ours: meta"),
    (dict(meta=np.ones(3), mu=np.ones(9), sigma=np.eye(9)), "no reference of ours: meta"),
  ],
  ids=range(10),
)
def test_foreign_files_are_told(tmp_path, arrays, said):
  np.savez(tmp_path / "r.npz", **arrays)
  with pytest.raises(UserError, match=said) as error:
    reference.load(tmp_path / "r.npz", Means())
  assert "\n" not in str(error.value)


def test_a_file_of_ours_that_was_tampered_with_is_told(tmp_path):
  path, want = tmp_path / "r.npz", Reference.of(Means()(images()), "made")
  want.save(path)
  arrays = dict(np.load(path))
  for change, said in (
    (dict(features=want.features[:, :4]), r"features of .* are \[30, 4\]"),
    (dict(meta=np.asarray(json.dumps(json.loads(str(arrays["meta"])) | {"n": "many"}))), "n is"),
    (dict(sigma=want.sigma[:3]), "mu and sigma"),
  ):
    np.savez(path, **arrays | change)
    with pytest.raises(UserError, match=said):
      reference.load(path, Means())


def test_one_image_is_no_reference():
  with pytest.raises(UserError, match="two images or more"):
    Reference.of(Means()(images(1)), "made")
  with pytest.raises(UserError, match="two images or more"):
    Reference.of_parts([], "made")
