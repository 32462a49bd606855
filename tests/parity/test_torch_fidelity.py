"""The metrics on given features against torch-fidelity's, and against a transcription in torch.

torch-fidelity asks for torchvision, which the test environment leaves out (it must match the build
of torch); its metrics need none of it. So it is compared with where it is installed, and the
transcription everywhere. Where definitions differ, what coincides is compared:
  FID   one definition (ours is exact where a covariance is singular, theirs to some 1e-7);
  IS    theirs shuffles and cuts into 10 parts, ADM's and ours takes 5,000 in order: parts of one
        length, unshuffled, are the same ones;
  KID   theirs draws its subsets from another generator: subsets of all rows are one set, and
        ours is eq. (2) of kid.py on it;
  P, R  one definition; theirs is in the features' own precision, so they are given float64.
"""

import importlib.util
import sys
import types

import numpy as np
import pytest

from dit_jax.evals import frechet, kid, neighbours
from dit_jax.evals.inception_score import inception_score

pytestmark = pytest.mark.all
torch = pytest.importorskip("torch", reason="torch is not installed: parity")

N, M, D = 220, 180, 40


def features(n, seed, shift=0.0):
  """Like a trunk's: never below 0, correlated."""
  rng = np.random.default_rng(seed)
  spread = np.random.default_rng(0).normal(size=(D, D)) / np.arange(1, D + 1) ** 0.6
  return np.maximum(rng.normal(size=(n, D)) @ spread + 0.3 + shift, 0)


def without_torchvision():
  """torch-fidelity's metrics, on bare modules in place of the torchvision that they do not use."""
  bare = {
    "torchvision": (),
    "torchvision.datasets": ("CIFAR10", "CIFAR100", "STL10"),
    "torchvision.transforms": (),
    "torchvision.transforms.functional": (),
  }
  before = {name: sys.modules.get(name) for name in bare}
  try:
    for name, classes in bare.items():
      module = types.ModuleType(name)
      for each in classes:
        setattr(module, each, type(each, (), {}))
      sys.modules[name] = module
      parent, _, child = name.rpartition(".")
      if parent:
        setattr(sys.modules[parent], child, module)
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    return metric_fid, metric_isc, metric_kid, metric_prc
  finally:  # others look whether torchvision is there
    for name, module in before.items():
      sys.modules.pop(name)
      if module is not None:
        sys.modules[name] = module


class TorchFidelity:
  """The package's own functions."""

  def __init__(self):
    self.on_fid, self.on_isc, self.on_kid, self.on_prc = without_torchvision()

  def fid(self, x, y):
    stats = [self.on_fid.fid_features_to_statistics(torch.from_numpy(a)) for a in (x, y)]
    return self.on_fid.fid_statistics_to_metric(*stats, False)["frechet_inception_distance"]

  def inception_score(self, logits, parts):
    got = self.on_isc.isc_features_to_metric(torch.from_numpy(logits), splits=parts, shuffle=False)
    return got["inception_score_mean"]

  def kid(self, x, y):
    got = self.on_kid.kid_features_to_metric(
      torch.from_numpy(x), torch.from_numpy(y), kid_subsets=2, kid_subset_size=len(x), verbose=False
    )
    assert got["kernel_inception_distance_std"] < 1e-9  # one set
    return got["kernel_inception_distance_mean"]

  def precision_recall(self, x, y):
    got = self.on_prc.prc_features_to_metric(torch.from_numpy(x), torch.from_numpy(y))
    return got["precision"], got["recall"]


class Transcription:
  """The definitions in torch's float64, each by the shortest way, whatever it costs."""

  def fid(self, x, y):
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    s_x, s_y = torch.cov(x.T), torch.cov(y.T)
    root = torch.linalg.eigvals(s_x @ s_y).sqrt().real.sum()
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + (s_x + s_y).trace() - 2 * root)

  def inception_score(self, logits, parts):
    found = []
    for part in torch.from_numpy(logits).double().chunk(parts):
      p = torch.distributions.Categorical(logits=part)
      of_all = torch.distributions.Categorical(probs=p.probs.mean(0))
      found.append(torch.distributions.kl_divergence(p, of_all).mean().exp())
    return float(torch.stack(found).mean())

  def kid(self, x, y):
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    z, n = torch.cat([x, y]), len(x)
    kernel = (z @ z.T / z.shape[1] + 1) ** 3
    kernel.fill_diagonal_(0)
    n, m = len(x), len(y)
    own = kernel[:n, :n].sum() / (n * (n - 1)) + kernel[n:, n:].sum() / (m * (m - 1))
    return float(own - 2 * kernel[:n, n:].mean())

  def precision_recall(self, x, y):
    x, y = torch.from_numpy(x), torch.from_numpy(y)

    def share(a, b):
      apart = lambda p, q: (p[:, None] - q[None]).norm(dim=-1)
      reach = apart(b, b).sort(1).values[:, 3]
      return float((apart(a, b) <= reach).any(1).double().mean())

    return share(x, y), share(y, x)


HAVE = [Transcription] + [TorchFidelity] * (importlib.util.find_spec("torch_fidelity") is not None)


@pytest.fixture(scope="module", params=HAVE, ids=lambda kind: kind.__name__)
def theirs(request):
  return request.param()


@pytest.mark.parametrize(("n", "m"), [(N, M), (D - 10, D - 5)])  # singular covariances too
def test_fid(theirs, n, m):
  x, y = features(n, 1), features(m, 2, shift=0.2)
  assert frechet.frechet_distance(x, y) == pytest.approx(theirs.fid(x, y), rel=1e-6)


def test_inception_score(theirs):
  logits = np.random.default_rng(3).normal(size=(N, 50)).astype(np.float32) * 3
  want = theirs.inception_score(logits, 4)
  assert inception_score(logits, N // 4) == pytest.approx(want, rel=1e-6)


def test_kid(theirs):
  x, y = features(N, 1), features(N, 2, shift=0.05)
  assert kid.mmd2(x, y) == pytest.approx(theirs.kid(x, y), rel=1e-6)


def test_precision_and_recall(theirs):
  x, y = features(N, 1), features(M, 2, shift=0.1)
  got = neighbours.precision_recall(x, y)
  assert got == pytest.approx(theirs.precision_recall(x, y), rel=1e-6)  # theirs means in float32
  assert 0 < min(got) < max(got) < 1
