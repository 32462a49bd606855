"""Identities of classifier-free guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.diffusion import guidance

NULL = 10
LABEL = jnp.asarray([1, 4, 7])
TIME = jnp.asarray([0.0, 5.0, 900.0])


def _z():
  return jax.random.normal(jax.random.key(0), (3, 2, 2, 4))


def _model(z, model_time, label):
  """Some function of every argument, row by row, with variance logits."""
  row = lambda a: a[:, None, None, None].astype(jnp.float32)
  pred = jnp.sin(z + row(label)) + 1e-3 * row(model_time)
  return jnp.concatenate([pred, jnp.cos(z * row(label))], axis=-1)


def test_scale_one_is_the_conditional_branch_and_zero_the_null_one():
  z = _z()
  one = guidance.guided(_model, LABEL, NULL, 1.0)(z, TIME)
  zero = guidance.guided(_model, LABEL, NULL, 0.0)(z, TIME)
  np.testing.assert_array_equal(one, _model(z, TIME, LABEL))
  np.testing.assert_array_equal(zero[..., :4], _model(z, TIME, jnp.full(3, NULL))[..., :4])


@pytest.mark.parametrize("scale", [1.5, 4.0])
def test_prediction_moves_along_the_line_and_logits_stay_conditional(scale):
  z = _z()
  cond, null = _model(z, TIME, LABEL), _model(z, TIME, jnp.full(3, NULL))
  got = guidance.guided(_model, LABEL, NULL, scale)(z, TIME)
  want = null + scale * (cond - null)
  np.testing.assert_allclose(got[..., :4], want[..., :4], atol=1e-5)
  np.testing.assert_array_equal(got[..., 4:], cond[..., 4:])


def test_without_logits_the_output_has_the_channels_of_z():
  fn = lambda z, t, y: _model(z, t, y)[..., :4]
  assert guidance.guided(fn, LABEL, NULL, 2.0)(_z(), TIME).shape == (3, 2, 2, 4)


def test_null_label_and_scale_may_be_per_row():
  z, scales = _z(), jnp.asarray([0.0, 1.0, 3.0])
  got = guidance.guided(_model, LABEL, jnp.full(3, NULL), scales)(z, TIME)
  for i in range(3):
    alone = guidance.guided(_model, LABEL, NULL, float(scales[i]))(z, TIME)
    np.testing.assert_allclose(got[i], alone[i], atol=1e-6)


def test_another_scale_does_not_recompile():
  calls = []

  @jax.jit
  def run(z, scale):
    calls.append(1)
    return guidance.guided(_model, LABEL, NULL, scale)(z, TIME)

  first, second = run(_z(), 1.5), run(_z(), 2.5)
  assert len(calls) == 1
  assert not np.array_equal(first, second)


def test_one_model_call_in_a_doubled_batch_with_doubled_closures():
  extra, shapes = {"grains": jnp.arange(3)}, []

  def model_fn(z, t, label):
    both = guidance.twice(extra)["grains"]
    np.testing.assert_array_equal(both, [0, 1, 2, 0, 1, 2])
    shapes.append((z.shape, t.shape, label.tolist()))
    return z

  guidance.guided(model_fn, LABEL, NULL, 2.0)(_z(), TIME)
  assert shapes == [((6, 2, 2, 4), (6,), [1, 4, 7, NULL, NULL, NULL])]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_only_the_first_channels_are_guided(channels):
  z = _z()
  got = guidance.guided(_model, LABEL, NULL, 3.0, channels=channels)(z, TIME)
  whole = guidance.guided(_model, LABEL, NULL, 3.0)(z, TIME)
  np.testing.assert_array_equal(got[..., :channels], whole[..., :channels])
  np.testing.assert_array_equal(got[..., channels:], _model(z, TIME, LABEL)[..., channels:])


@pytest.mark.parametrize(("t", "inside"), [(99, False), (100, True), (500, True), (801, False)])
def test_outside_the_interval_the_model_is_called_as_without_guidance(t, inside):
  z, time = _z(), jnp.full(3, float(t))
  got = guidance.guided(_model, LABEL, NULL, 3.0, interval=(100.0, 800.0))(z, time)
  want = guidance.guided(_model, LABEL, NULL, 3.0)(z, time) if inside else _model(z, time, LABEL)
  np.testing.assert_allclose(got, want, atol=1e-6)
  assert (np.abs(got - _model(z, time, LABEL)).max() > 0.1) == inside


@pytest.mark.parametrize("phi", [0.7, 1.0])
def test_rescale_mixes_in_the_contrast_of_the_conditional_branch(phi):
  """Lin et al.'s Eqs. 15 and 16, image by image, over the guided channels."""
  z, channels = _z(), 3
  how = dict(channels=channels, interval=(0.0, 950.0))
  plain = np.asarray(guidance.guided(_model, LABEL, NULL, 5.0, **how)(z, TIME))
  got = np.asarray(guidance.guided(_model, LABEL, NULL, 5.0, rescale=phi, **how)(z, TIME))
  cond = np.asarray(_model(z, TIME, LABEL))
  for i in range(3):
    cfg, pos = plain[i, ..., :channels], cond[i, ..., :channels]
    want = phi * cfg * pos.std() / cfg.std() + (1 - phi) * cfg
    np.testing.assert_allclose(got[i, ..., :channels], want, rtol=1e-5)
    if phi == 1:
      assert got[i, ..., :channels].std() == pytest.approx(pos.std(), rel=1e-5)
    assert cfg.std() > 1.1 * pos.std()
  np.testing.assert_array_equal(got[..., channels:], cond[..., channels:])


def test_rescale_leaves_scale_one_and_a_flat_prediction_alone():
  z = _z()
  one = guidance.guided(_model, LABEL, NULL, 1.0, rescale=1.0)(z, TIME)
  np.testing.assert_array_equal(one, _model(z, TIME, LABEL))
  zeros = guidance.guided(lambda z, t, y: jnp.zeros_like(z), LABEL, NULL, 3.0, rescale=0.5)
  np.testing.assert_array_equal(zeros(z, TIME), jnp.zeros_like(z))
