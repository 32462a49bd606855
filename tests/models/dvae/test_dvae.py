"""Laws of the dynamic VAE: what the grain map chooses, what a code shares, what is counted once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import repeat

from dit_jax.core import rng, tree
from dit_jax.core.errors import UserError
from dit_jax.models.dvae import dvae
from dit_jax.nn import grains as structure

FACTORS = {1: (2,), 2: (2, 4), 3: (2, 4, 8)}


def keys(n: int):
  return rng.image_keys(0, 0, jnp.arange(n))


def make(k: int) -> dvae.DVAE:
  levels = 1 + k
  return dvae.DVAE(
    factors=FACTORS[k],
    z_channels=2,
    width=8,
    encoder_mults=(1,) * levels,
    decoder_mults=(1, 1),
    res_blocks=1,
    decoder_res_blocks=1,
    attention=False,
    stem=2,
  )


def maps(k: int, b: int = 2, seed=0):
  n = 16 // FACTORS[k][-1]
  return jnp.asarray(np.random.default_rng(seed).integers(0, k, (b, n, n)), jnp.int32)


@pytest.fixture(scope="module", params=[1, 2, 3])
def encoded(request):
  """k, images and the pyramid of moments of a random model, and its dense form for a map."""
  k = request.param
  model = make(k)
  r = np.random.default_rng(k)
  fill = lambda s: jnp.asarray(0.2 * r.normal(size=s.shape), s.dtype)
  params = {"params": jax.tree.map(fill, dvae.abstract_params(model, 16))}
  x = jnp.asarray(r.uniform(-1, 1, (2, 16, 16, 3)), jnp.float32)
  pyramid = jax.jit(lambda x: model.apply(params, x, method="encode"))(x)
  dense = jax.jit(lambda x, g: model.apply(params, x, g, method="moments"))
  return k, model, params, x, pyramid, dense


def test_full_width_is_about_45_million_parameters():
  params = dvae.abstract_params(dvae.DVAE(factors=(8, 16)), 256)
  sizes = {name: tree.count(part) for name, part in params.items()}
  print(f"DVAE k = 2: {sum(sizes.values()):,} parameters, {sizes}")
  assert abs(sum(sizes.values()) / 45.13e6 - 1) < 0.01  # the paper says about 45 M
  assert "decoder/conv_out/kernel" in tree.flatten(params)


def test_a_map_of_one_grain_gives_that_head_alone(encoded):
  k, _, _, x, pyramid, dense = encoded
  for g, (codes, s) in enumerate(zip(pyramid, structure.spans(FACTORS[k]), strict=True)):
    want = repeat(codes, "b h w c -> b (h s) (w t) c", s=s, t=s)
    np.testing.assert_array_equal(dense(x, jnp.full_like(maps(k), g)), want)


def test_moments_and_samples_are_constant_inside_a_code(encoded):
  k, _, _, x, _, dense = encoded
  g = maps(k)
  moments = dense(x, g)
  z = dvae.posterior_sample(moments, g, keys(2), FACTORS[k])
  assert z.shape == (2, 8, 8, 2)
  for field in (moments, z):
    np.testing.assert_allclose(structure.project(field, g, FACTORS[k]), field, atol=1e-6)
  if k > 1:  # and codes differ from one another
    assert len(np.unique(np.asarray(z))) == 2 * int(dvae.num_codes(g, FACTORS[k]).sum())


@pytest.mark.parametrize("encoded", [2], indirect=True)
def test_a_call_is_encode_sample_decode(encoded):
  k, model, params, x, _, dense = encoded
  g = maps(k)
  x_hat, moments = jax.jit(lambda: model.apply(params, x, g, keys(2)))()
  z = dvae.posterior_sample(dense(x, g), g, keys(2), FACTORS[k])
  parts = jax.jit(lambda z: model.apply(params, z, method="decode"))(z)
  np.testing.assert_allclose(moments, dense(x, g), atol=1e-5)
  np.testing.assert_allclose(x_hat, parts, atol=1e-4)
  features = model.apply(params, z, method="decode_features")
  last = {"params": {"decoder": {"conv_out": params["params"]["decoder"]["conv_out"]}}}
  head = model.apply(last, features, method="decode_head")
  np.testing.assert_allclose(head, parts, atol=1e-4)


def test_posterior_has_the_mean_and_deviation_of_its_code():
  moments = jnp.broadcast_to(jnp.asarray([2.0, -1.0, 0.0, np.log(0.25)]), (500, 4, 4, 4))
  g = jnp.zeros((500, 2, 2), jnp.int32)
  z = np.asarray(dvae.posterior_sample(moments, g, keys(500), (2, 4)))[:, ::2, ::2]
  np.testing.assert_allclose(z.mean((0, 1, 2)), [2, -1], atol=5 / np.sqrt(z.size / 2))
  np.testing.assert_allclose(z.std((0, 1, 2)), [1, 0.5], rtol=5 / np.sqrt(z.size))


def test_a_sample_belongs_to_its_image_not_to_its_row():
  moments = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 4, 4)), jnp.float32)
  g, k = maps(2, b=3)[:, :2, :2], keys(3)
  z = dvae.posterior_sample(moments, g, k, (2, 4))
  turned = jnp.asarray([2, 0, 1])
  again = dvae.posterior_sample(moments[turned], g[turned], k[turned], (2, 4))
  np.testing.assert_array_equal(again, z[turned])


def test_kl_is_that_of_gaussians():
  r = np.random.default_rng(0)
  moments = r.normal(size=(1, 2, 2, 6)).astype(np.float32)
  got = np.asarray(dvae.kl(jnp.asarray(moments)))
  mean, logvar = np.split(moments.astype(np.float64), 2, axis=-1)
  # E_q[log q - log p] by quadrature of each channel
  u = np.linspace(-12, 12, 20001)[:, None, None, None, None]
  x = mean + np.exp(logvar / 2) * u
  q = np.exp(-0.5 * u**2) / np.sqrt(2 * np.pi)
  log_ratio = -0.5 * u**2 - 0.5 * logvar + 0.5 * x**2
  want = (q * log_ratio).sum(0).mean(-1) * (u[1] - u[0]).item()
  np.testing.assert_allclose(got, want, rtol=1e-5)
  np.testing.assert_array_equal(dvae.kl(jnp.zeros((1, 2, 2, 6))), 0)


def test_kl_and_sample_are_finite_at_wild_log_variances():
  moments = jnp.asarray([[[[0.0, 1e4], [0.0, -1e4]]]])
  assert np.isfinite(dvae.kl(moments)).all()
  g = jnp.zeros((1, 1, 2), jnp.int32)
  assert np.isfinite(dvae.posterior_sample(moments, g, keys(1), (2,))).all()


def test_unique_codes_are_counted_once():
  for k, factors in FACTORS.items():
    g = maps(k, seed=3)
    per_grain = [(factors[-1] // f) ** 2 for f in reversed(factors)]  # m_g
    want = [sum(per_grain[i] for i in row.ravel()) for row in np.asarray(g)]
    np.testing.assert_allclose(dvae.num_codes(g, factors), want)


@pytest.mark.parametrize(
  ("fields", "match"),
  [
    (dict(factors=(8, 4)), "ascending"),
    (dict(factors=()), "ascending"),
    (dict(factors=(6, 12)), "powers of two"),
    (dict(factors=(2, 4), stem=4), "stem"),
    (dict(factors=(2, 4), encoder_mults=(1, 1)), "encoder_mults"),
    (dict(factors=(2, 4), decoder_mults=(1, 1, 1)), "decoder_mults"),
  ],
)
def test_impossible_sizes_are_refused_in_one_line(fields, match):
  with pytest.raises(UserError, match=match) as e:
    dvae.DVAE(**fields)
  assert "\n" not in str(e.value)


def test_default_multipliers_are_the_papers():
  bound = dvae.DVAE(factors=(8, 16)).bind({})
  assert bound.encoder.mults == (1, 1, 2, 2, 4)
  assert bound.decoder.mults == (1, 1, 2, 2)
  assert dvae.DVAE(factors=(8, 16, 32)).bind({}).encoder.mults == (1, 1, 2, 2, 4, 4)
