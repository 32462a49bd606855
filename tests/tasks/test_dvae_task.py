"""The DVAE's loss: two players in one backward pass, sums that add up, draws by image."""

from types import SimpleNamespace as Block

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.core import rng
from dit_jax.core.errors import UserError
from dit_jax.models import discriminator as gan
from dit_jax.models import lpips
from dit_jax.models.dvae import dvae as model
from dit_jax.nn import grains as structure
from dit_jax.sampling.generate import to_uint8
from dit_jax.tasks import dvae

SIZE, START = 16, 2


def make(image_size=SIZE, flip=True, factors=(2, 4), dtype="float32", **loss) -> dvae.DVAETask:
  levels = 1 + len(factors)
  fields = dict(
    factors=factors,
    z_channels=2,
    width=8,
    encoder_mults=(1,) * levels,
    decoder_mults=(1, 1),
    res_blocks=1,
    decoder_res_blocks=1,
    attention=False,
    stem=2,
    dtype=dtype,
  )
  terms = dict(
    l1=1.0, lpips=1.0, trunk="none", kl=1e-2, disc_weight=0.75, disc_start=0.2, disc_filters=4
  )
  config = Block(model=Block(**fields), loss=Block(**{**terms, **loss}), flip=flip, total_steps=10)
  return dvae.DVAETask(config, image_size)


def fill(shapes, seed=0):
  r = np.random.default_rng(seed)

  def leaf(path, s):
    centre = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
    return jnp.asarray(centre + 0.15 * r.normal(size=s.shape), s.dtype)

  return jax.tree_util.tree_map_with_path(leaf, shapes)


def params_of(task):
  return fill(jax.eval_shape(task.init, jax.random.key(0)))


def batch_of(task, b=2, seed=0):
  r = np.random.default_rng(seed)
  k, side = len(task.factors), task.image_size // task.factors[-1]
  return {
    "image": jnp.asarray(r.integers(0, 256, (b, task.image_size, task.image_size, 3)), jnp.uint8),
    "grains": jnp.asarray(r.integers(0, k, (b, side, side)), jnp.int32),
    "label": jnp.zeros((b,), jnp.int32),
    "index": jnp.arange(b),
  }


def keys_of(batch):
  return rng.image_keys(0, 3, batch["index"])


def grad_fn(task):
  return jax.jit(jax.value_and_grad(task.loss_fn, has_aux=True))


def close(got, want, rtol=1e-4):
  """Trees equal up to rounding, relative to each leaf's largest entry."""
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=rtol * max(1e-6, np.abs(b).max())), got, want
  )


@pytest.fixture(scope="module")
def adversarial():
  """A task with a critic, its inputs, and its loss with gradient, compiled once."""
  task = make()
  batch = batch_of(task)
  return task, params_of(task), batch, grad_fn(task)


def two_players(task, params, batch):
  """The same losses written plainly: each player's own, differentiated on its own."""
  keys, norm = keys_of(batch), task.normalizers(batch)
  x, grains = task.augment(batch, keys)
  weights = structure.unique_weights(grains, task.factors)

  def forward(gen):
    moments = task.model.apply({"params": gen}, x, grains, method="moments")
    z = model.posterior_sample(moments, grains, rng.stream(keys, "posterior"), task.factors)
    kl = jnp.sum(model.kl(moments) * weights) / norm["codes"]
    return task.model.apply({"params": gen}, z, method="decode"), kl

  def judge(disc, images):
    return task.disc.apply({"params": disc}, images)

  def distance(gen):
    return jnp.mean(jnp.abs(x - forward(gen)[0]))

  def fool(gen):
    return -jnp.mean(judge(params["disc"], forward(gen)[0]))

  def divergence(gen):
    return task.loss.kl * forward(gen)[1]

  def disc_loss(disc):
    real, fake = judge(disc, x), judge(disc, forward(params["gen"])[0])
    return 0.5 * jnp.mean(jax.nn.relu(1 - real)) + 0.5 * jnp.mean(jax.nn.relu(1 + fake))

  values, slopes = zip(
    *(jax.value_and_grad(f)(params["gen"]) for f in (distance, divergence, fool)), strict=True
  )
  at_kernel = [jnp.linalg.norm(g["decoder"]["conv_out"]["kernel"].ravel()) for g in slopes]
  lam = jnp.minimum(at_kernel[0] / (at_kernel[2] + 1e-4), task.loss.disc_weight)
  gen_grad = jax.tree.map(lambda d, k, f: d + k + lam * f, *slopes)
  disc, disc_grad = jax.value_and_grad(disc_loss)(params["disc"])
  loss = values[0] + values[1] + lam * values[2] + disc
  return loss, {"gen": gen_grad, "disc": disc_grad}, lam


def test_one_backward_equals_two_separate_ones(adversarial):
  task, params, batch, step = adversarial
  (loss, metrics), grads = step(params, {}, batch, keys_of(batch), task.normalizers(batch), START)
  want, want_grads, lam = jax.jit(lambda p, b: two_players(task, p, b))(params, batch)
  assert 0 < lam < task.loss.disc_weight  # not the cap
  np.testing.assert_allclose(loss, want, rtol=1e-5)
  np.testing.assert_allclose(metrics["lambda"], lam, rtol=1e-4)
  close(grads, want_grads)
  assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads["disc"]["conv_out"]))


def test_before_its_start_the_critic_is_absent(adversarial):
  task, params, batch, step = adversarial
  args = {}, batch, keys_of(batch), task.normalizers(batch)
  (loss, metrics), grads = step(params, *args, START - 1)
  assert metrics["lambda"] == metrics["critic"] == 0
  assert all((g == 0).all() for g in jax.tree.leaves(grads["disc"]))
  np.testing.assert_allclose(loss, metrics["l1"] + task.loss.kl * metrics["kl"], rtol=1e-6)
  broken = params | {"disc": jax.tree.map(lambda v: jnp.full_like(v, jnp.nan), params["disc"])}
  (again, _), gen = step(broken, *args, START - 1)
  assert again == loss
  jax.tree.map(np.testing.assert_array_equal, gen["gen"], grads["gen"])


def test_adaptive_weight_balances_up_to_its_cap():
  a, b = jnp.full((3, 3), 0.5), jnp.full((3, 3), 2.0)
  np.testing.assert_allclose(dvae.adaptive_weight(a, b, 0.75), 1.5 / 6.0001, rtol=1e-5)
  assert dvae.adaptive_weight(b, a, 0.75) == 0.75
  assert dvae.adaptive_weight(a, jnp.zeros((3, 3)), 0.75) == 0.75
  assert dvae.adaptive_weight(jnp.zeros((3, 3)), jnp.zeros((3, 3)), 0.75) == 0


def test_with_slope_has_that_value_and_that_slope():
  y = jnp.asarray([1.0, -2.0])
  f = lambda y: dvae.with_slope(y**2, 7.0, jnp.asarray([3.0, 5.0]))
  value, slope = jax.value_and_grad(f)(y)
  assert value == 7
  np.testing.assert_allclose(slope, [3 * 2 * 1, 5 * 2 * -2])


def test_micro_batches_add_up(adversarial):
  """Without the critic, any division over the global denominators gives the same sum.

  That the sum is the mean over the batch is in `test_one_backward_equals_two_separate_ones`.
  """
  task, params, _, step = adversarial
  batch = batch_of(task, b=4)
  batch["grains"] = batch["grains"].at[:2].set(0)  # halves with unequal numbers of codes
  keys, norm = keys_of(batch), task.normalizers(batch)

  def total(*divisions):
    rows = [({k: v[i] for k, v in batch.items()}, keys[i]) for i in map(jnp.asarray, divisions)]
    parts = [step(params, {}, micro, key, norm, START - 1) for micro, key in rows]
    return jax.tree.map(lambda *x: sum(x), *parts)

  close(total([0, 1], [2, 3]), total([3, 0], [1, 2]), rtol=1e-5)


def test_flips_image_and_map_together_by_the_image_s_own_coin():
  task = make()
  batch = batch_of(task, b=32)
  x, grains = task.augment(batch, keys_of(batch))
  plain, _ = make(flip=False).augment(batch, keys_of(batch))
  flipped = np.asarray([not np.array_equal(a, b) for a, b in zip(x, plain, strict=True)])
  assert 8 < flipped.sum() < 24
  np.testing.assert_array_equal(x[flipped], plain[flipped][:, :, ::-1])
  np.testing.assert_array_equal(grains[flipped], batch["grains"][flipped][:, :, ::-1])
  np.testing.assert_array_equal(grains[~flipped], batch["grains"][~flipped])
  some = {k: v[5:9] for k, v in batch.items()}
  for got, want in zip(task.augment(some, keys_of(some)), (x, grains), strict=True):
    np.testing.assert_array_equal(got, want[5:9])


def test_kl_is_the_mean_over_unique_codes_and_channels(adversarial):
  task, params, batch, step = adversarial
  x, grains = task.augment(batch, keys_of(batch))
  encode = jax.jit(lambda x: task.model.apply({"params": params["gen"]}, x, method="encode"))
  coarse, fine = (np.asarray(m, np.float64) for m in encode(x))
  terms = []
  for image, row, col in np.ndindex(grains.shape):
    if grains[image, row, col]:
      codes = fine[image, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2].reshape(4, -1)
    else:
      codes = coarse[image, row, col][None]
    mean, logvar = np.split(codes, 2, axis=-1)
    terms += list(0.5 * (mean**2 + np.exp(logvar) - 1 - logvar).mean(-1))
  norm = task.normalizers(batch)
  assert norm["codes"] == len(terms)
  (_, metrics), _ = step(params, {}, batch, keys_of(batch), norm, 0)
  np.testing.assert_allclose(metrics["kl"], np.mean(terms), rtol=1e-4)


def test_lpips_runs_once_on_each_image_and_backward_once():
  """Counted in multiply-adds of the traced program, before any compiler removes repetitions."""
  size = 64

  def flops(**loss):
    task = make(size, **loss)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    frozen = {}
    if task.lpips is not None:
      x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
      frozen = {"lpips": jax.eval_shape(task.lpips.init, jax.random.key(0), x, x)["params"]}
    batch = batch_of(task)
    args = frozen, batch, keys_of(batch), task.normalizers(batch), START
    return grad_fn(task).lower(shapes, *args).cost_analysis()["flops"]

  trunk = lpips.LPIPS("alexnet")
  x = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
  weights = jax.eval_shape(trunk.init, jax.random.key(0), x, x)
  blocks = jax.jit(lambda p, x: trunk.apply(p, x, method="blocks"))
  once = blocks.lower(weights, x).cost_analysis()["flops"]
  passes = (flops(trunk="alexnet") - flops()) / once
  assert 2.5 < passes < 3.6  # forward on both images, backward to one of them


def test_predictions_follow_the_posterior_mean():
  task = make()
  params, batch = params_of(task), batch_of(task)
  images, grains = batch["image"], batch["grains"]
  moments = jax.jit(task.encode_moments)(params, images, grains)
  assert moments.shape == (2, 8, 8, 4)
  np.testing.assert_allclose(structure.project(moments, grains, task.factors), moments, atol=1e-6)
  got = jax.jit(task.reconstruct)(params, images, grains)
  assert (got.dtype, got.shape) == (jnp.uint8, images.shape)
  want = to_uint8(jax.jit(task.decode)(params, moments[..., :2]))
  assert np.abs(np.asarray(got, int) - np.asarray(want, int)).max() <= 1
  mirrored = jax.jit(task.reconstruct)(params, images, 1 - grains)
  assert (np.asarray(mirrored) != np.asarray(got)).any()


def test_bytes_survive_the_way_to_floats_and_back():
  every = jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16, 1)
  x = dvae.to_float(every)
  assert (x.min(), x.max()) == (-1, 1)
  np.testing.assert_array_equal(to_uint8(x), every)


@pytest.mark.parametrize(
  ("factors", "dtype"), [((2,), "float32"), ((2, 4, 8), "float32"), ((2, 4), "bfloat16")]
)
def test_other_grains_and_arithmetic_trace(factors, dtype):
  task = make(factors=factors, dtype=dtype)
  shapes, batch = jax.eval_shape(task.init, jax.random.key(0)), batch_of(task)
  args = {}, batch, keys_of(batch), task.normalizers(batch), 0
  (loss, _), grads = jax.eval_shape(grad_fn(task), shapes, *args)
  assert (loss.shape, loss.dtype) == ((), jnp.float32)
  assert jax.tree.structure(grads) == jax.tree.structure(shapes)


def test_sizes_that_do_not_fit_are_refused():
  with pytest.raises(UserError, match="not a multiple of 4"):
    make(image_size=18)
  with pytest.raises(UserError, match="resnet"):
    make(trunk="resnet")


def test_terms_of_weight_zero_cost_nothing():
  task = make(lpips=0.0, trunk="vgg16", disc_weight=0.0)
  assert task.frozen == {}
  assert task.disc is None
  assert isinstance(make().disc, gan.PatchGAN)
