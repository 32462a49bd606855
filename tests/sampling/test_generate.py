"""Picture i is a function of (seed, i): not of the batch, its neighbours or the devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_jax.core import buckets
from dit_jax.core.errors import UserError
from dit_jax.core.tiers import Tiers
from dit_jax.diffusion import process, schedules, solvers, spacing
from dit_jax.models import dct, dgt
from dit_jax.sampling import generate

FACTORS, REGIONS, CLASSES = (4, 8), (2, 3), 3
SIZES = dict(width=16, num_heads=2, num_classes=CLASSES)
MEAN = np.float32([[0.3, -0.2, 0.1, 0.0], [-0.3, 0.1, 0.2, 0.4]])
STD = np.float32([[0.2, 0.3, 0.4, 0.5], [0.5, 0.4, 0.3, 0.2]])
INDEX = np.arange(100, 111)
LABEL = (INDEX % CLASSES).astype(np.int32)
MAPS = np.random.default_rng(0).integers(0, 2, (len(INDEX), *REGIONS)).astype(np.int32)


def random_params(model, *args):
  """No zero-initialised layer stays zero: every input matters."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), *args)
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.2, s.shape), s.dtype), shapes)


def make_models(**changes) -> generate.Models:
  """What the tests sample: no stage at all, and the latents as the picture."""
  fields = dict(
    map_logits=None,
    content=lambda params, z, t, label, grains, tokens: jnp.zeros_like(z),
    decode=lambda params, z: z[..., :3],
    process=process.Process(schedules.RectifiedFlow(), prediction="flow"),
    factors=FACTORS,
    regions=REGIONS,
    channels=4,
    tiers=Tiers((CLASSES,)),
    mean=jnp.asarray(MEAN),
    std=jnp.asarray(STD),
  )
  return generate.Models(**{**fields, **changes})


@pytest.fixture(scope="module")
def trained():
  """(models, params) with a grain and a content transformer whose parameters are random."""
  grid = (REGIONS[0] * 2, REGIONS[1] * 2)
  content = dct.DCT(depth=1, refine_depth=1, factors=FACTORS, grid=grid, **SIZES)
  maps = dgt.DGT(grid=REGIONS, depth=1, **SIZES)
  tokens = buckets.token_index(MAPS[:1], FACTORS, buckets.capacity_for(24, 6, FACTORS))
  one, t = jnp.zeros(1, jnp.int32), jnp.zeros(1)
  params = {
    "content": random_params(
      content, jnp.zeros((1, *grid, 4)), t, one, MAPS[:1] * one, jax.tree.map(jnp.asarray, tokens)
    ),
    "dgt": random_params(maps, jnp.zeros((1, *REGIONS), jnp.int32), one),
  }
  models = make_models(
    map_logits=lambda params, *args: maps.apply(params["dgt"], *args),
    content=lambda params, *args: content.apply(params["content"], *args),
    decode=lambda params, z: jnp.sin(z[..., :3]),  # shows the least difference, and never clips
    process=process.Process(schedules.LinearBeta(), learn_sigma=True),
  )
  return models, params


@functools.cache
def settings(**changes) -> generate.Settings:
  return generate.Settings(**{"steps": 2, "guidance": 2.0, "map_steps": 4, **changes})


@pytest.fixture(scope="module")
def generator(trained):
  """On one device."""
  return generate.Generator(trained[0], settings(), devices=jax.devices()[:1])


def draw(generator, params, take=slice(None), seed=7, batch=0) -> np.ndarray:
  rows = (LABEL[take], INDEX[take], MAPS[take], seed, batch)
  return generator.images(params, *rows)


@pytest.fixture(scope="module")
def pictures(trained, generator):
  return draw(generator, trained[1])


def test_pictures_are_as_many_as_asked_and_differ(pictures):
  assert pictures.shape == (len(INDEX), 4, 6, 3)
  assert pictures.dtype == np.uint8
  assert len({p.tobytes() for p in pictures}) == len(INDEX)


@pytest.mark.parametrize("batch", [4, 8, 16, 1])
def test_the_batch_changes_no_picture(trained, generator, pictures, batch):
  np.testing.assert_array_equal(draw(generator, trained[1], batch=batch), pictures)


@pytest.mark.parametrize("take", [[0], [10, 3], [2, 9, 4, 4, 1], list(range(10, -1, -1))], ids=str)
def test_a_subset_in_any_order_has_the_same_pictures(trained, generator, pictures, take):
  np.testing.assert_array_equal(draw(generator, trained[1], np.asarray(take)), pictures[take])


@pytest.mark.parametrize("count", [2, 4, 8])
def test_the_number_of_devices_changes_no_picture_and_no_map(trained, generator, pictures, count):
  models, params = trained
  params = jax.device_put(params, jax.devices()[0])  # where a checkpoint's weights are read to
  many = generate.Generator(models, settings(), devices=jax.devices()[:count])
  np.testing.assert_array_equal(draw(many, params, batch=16), pictures)
  args = (params, LABEL, INDEX, 7)
  np.testing.assert_array_equal(many.grain_maps(*args), generator.grain_maps(*args))


def test_another_seed_draws_other_pictures(trained, generator, pictures):
  other = draw(generator, trained[1], seed=8)
  assert (other != pictures).any((1, 2, 3)).all()
  assert (draw(generator, trained[1], seed=2**32 - 1) != pictures).any()


def test_guidance_and_label_matter(trained, generator, pictures):
  models, params = trained
  plain = generate.Generator(models, settings(guidance=1.0), devices=jax.devices()[:1])
  assert (draw(plain, params) != pictures).any((1, 2, 3)).all()
  other = generator.images(params, (LABEL[:4] + 1) % CLASSES, INDEX[:4], MAPS[:4], 7)
  assert (other != pictures[:4]).any((1, 2, 3)).all()


def test_latents_keep_the_structure_of_their_map(pictures):
  """The cells of a coarse region are copies of one code, those of a fine one are not."""
  regions = pictures.reshape(len(INDEX), 2, 2, 3, 2, 3).transpose(0, 1, 3, 2, 4, 5)
  copies = (regions == regions[:, :, :, :1, :1]).all((3, 4, 5))
  np.testing.assert_array_equal(copies, MAPS == 0)


def test_maps_are_drawn_by_index(trained, generator):
  params = trained[1]
  maps = generator.grain_maps(params, LABEL, INDEX, 7)
  assert maps.shape == MAPS.shape
  assert set(np.unique(maps)) == {0, 1}
  take = np.array([8, 2, 5])
  some = generator.grain_maps(params, LABEL[take], INDEX[take], 7)
  np.testing.assert_array_equal(some, maps[take])
  assert (generator.grain_maps(params, LABEL, INDEX, 8) != maps).any()


@pytest.mark.parametrize(("guidance", "steps"), [(1.0, 3), (2.5, 1), (0.0, 2)])
def test_a_perfect_model_gives_its_own_data(guidance, steps):
  """Every class is one colour: what comes out is null + s (class - null), unstandardised."""
  colours = np.float32([[0.5, 0, 0, 0], [0, 0.5, 0, 0], [0, 0, 0.5, 0], [-0.25, 0.25, 0, 0]])

  def content(params, z, t, label, grains, tokens):
    return (z - params["colours"][label][:, None, None]) / (t[:, None, None, None] / 1000)

  wanted = settings(guidance=guidance, steps=steps, stepper="ddim")
  generator = generate.Generator(make_models(content=content), wanted)
  drawn = generator.images({"colours": colours}, LABEL, INDEX, MAPS, 0)
  mixed = colours[-1] + guidance * (colours[LABEL] - colours[-1])
  cells = MAPS.repeat(2, 1).repeat(2, 2)
  latents = mixed[:, None, None] * STD[cells] + MEAN[cells]
  want = np.clip(127.5 * latents[..., :3] + 128, 0, 255)
  assert np.abs(drawn - want).max() <= 1 + 1e-3  # truncated, and floats round near a whole number


def test_one_grain_needs_no_tokens():
  seen = []

  def content(params, z, t, label, grains, tokens):
    seen.append(tokens)
    return z

  models = make_models(
    content=content, factors=(8,), mean=jnp.asarray(MEAN[:1]), std=jnp.asarray(STD[:1])
  )
  generator = generate.Generator(models, settings(guidance=1.0), devices=jax.devices()[:1])
  maps = generator.grain_maps({}, LABEL, INDEX, 0)
  np.testing.assert_array_equal(maps, np.zeros_like(MAPS))
  assert generator.images({}, LABEL, INDEX, maps, 0).shape == (len(INDEX), *REGIONS, 3)
  assert seen
  assert all(tokens is None for tokens in seen)


def test_bytes_are_truncated_and_clipped():
  x = jnp.float32([-2, -1, -0.5, 0, 0.5, 1, 2])
  np.testing.assert_array_equal(generate.to_uint8(x), [0, 0, 64, 128, 191, 255, 255])


@pytest.mark.parametrize(
  ("wrong", "told"),
  [
    (dict(stepper="heum"), "stepper='heum' is unknown; choose one of .*'unipc'"),
    (dict(spacing="cubic"), "spacing='cubic' is unknown; choose one of .'auto'"),
    (dict(guidance_rescale=1.5), "guidance_rescale=1.5 must be 0 .off. to 1"),
    (dict(steps=0), "steps=0 must be at least 1"),
    (dict(map_steps=-1), "map_steps=-1 must be at least 1"),
    (dict(microbatch=1), "microbatch=1 must be at least 2"),
    (dict(guidance=float("nan")), "guidance=nan must be a number"),
    (dict(map_guidance=float("inf")), "map_guidance=inf must be a number"),
    (dict(guidance_interval=(800.0, 100.0)), "two model times, first the lower"),
    (dict(guidance_interval=(1.0,)), "two model times"),
    (dict(map_order="sorted"), "map_order='sorted' is unknown"),
    (dict(map_temperature=0.0), "map_temperature=0.0 must be above 0"),
  ],
  ids=str,
)
def test_wrong_settings_are_refused(wrong, told):
  with pytest.raises(UserError, match=told):
    generate.Settings(**wrong)


@functools.cache
def light(schedule, stepper: str, devices: int, **changes) -> generate.Generator:
  """Of a model that compiles at once, and knows time, label and cells."""

  def content(params, z, t, label, grains, tokens):
    row = lambda a: a[:, None, None, None].astype(jnp.float32)
    return jnp.tanh(z @ params["mix"] + row(label)) * (1 + row(t) / 1000)

  models = make_models(
    content=content,
    decode=lambda params, z: jnp.sin(z[..., :3]),
    process=process.Process(schedule, "v"),
  )
  wanted = settings(**{"steps": 4, "stepper": stepper, **changes})
  return generate.Generator(models, wanted, devices=jax.devices()[:devices])


LIGHT = {"mix": jnp.asarray(np.random.default_rng(1).normal(0, 0.5, (4, 4)), jnp.float32)}


HALF = np.stack([np.random.default_rng(i).permutation([0, 0, 0, 1, 1, 1]) for i in INDEX])
HALF = HALF.reshape(-1, *REGIONS).astype(np.int32)  # maps of one capacity: one program


# "ddpm" is above, and "euler" is "ddim".
@pytest.mark.parametrize("stepper", ["ddim", "dpmpp_2m", "unipc", "heun"])
def test_no_sampler_sees_batch_or_devices(stepper):
  """Bytes; the cells of a coarse code stay equal."""
  how = dict(guidance_interval=(100.0, 800.0), guidance_rescale=0.5)
  one, many = (light(schedules.LinearBeta(), stepper, count, **how) for count in (1, 4))

  def drawn(generator, batch, take=slice(None)):
    return generator.images(LIGHT, LABEL[take], INDEX[take], HALF[take], 7, batch)

  pictures = drawn(one, 0)
  np.testing.assert_array_equal(drawn(one, 8), pictures)
  np.testing.assert_array_equal(drawn(many, 16), pictures)
  np.testing.assert_array_equal(drawn(many, 0, np.array([9, 2])), pictures[[9, 2]])
  assert len({p.tobytes() for p in pictures}) == len(INDEX)
  regions = pictures.reshape(len(INDEX), 2, 2, 3, 2, 3).transpose(0, 1, 3, 2, 4, 5)
  copies = (regions == regions[:, :, :, :1, :1]).all((3, 4, 5))
  np.testing.assert_array_equal(copies, HALF == 0)


def test_another_scale_seed_or_class_compiles_nothing():
  generator = light(schedules.RectifiedFlow(), "dpmpp_2m", 1)
  rows = lambda label, seed: (LIGHT, label, INDEX[:4], HALF[:4], seed)
  first = generator.images(*rows(LABEL[:4], 7))
  compiled = generator._images._cache_size()
  others = [
    generator.images(*rows(LABEL[:4], 8)),
    generator.images(*rows((LABEL[:4] + 1) % CLASSES, 7)),
    *(generator.images(*rows(LABEL[:4], 7), guidance=scale) for scale in (1.0, 1.5, 7)),
  ]
  assert generator._images._cache_size() == compiled
  assert all((other != first).any() for other in others)
  same = generator.images(*rows(LABEL[:4], 7), guidance=settings().guidance)
  np.testing.assert_array_equal(same, first)
  other = light(schedules.RectifiedFlow(), "dpmpp_2m", 1, guidance=1.5)
  np.testing.assert_array_equal(other.images(*rows(LABEL[:4], 7)), others[3])


def test_a_generator_without_guidance_takes_no_scale():
  generator = light(schedules.RectifiedFlow(), "ddim", 1, guidance=1.0)
  with pytest.raises(UserError, match=r"guidance=2.0 of a generator whose settings have 1.0"):
    generator.images(LIGHT, LABEL, INDEX, MAPS, 0, guidance=2.0)


def test_settings_know_calls_and_times():
  assert [generate.Settings(steps=9, stepper=name).nfe for name in solvers.NAMES] == [9] * 5 + [17]
  chain = schedules.LinearBeta()
  times = lambda **how: np.asarray(generate.Settings(steps=4, **how).times(chain))
  for stepper in solvers.NAMES:
    own = "trailing" if stepper in ("dpmpp_2m", "unipc") else "linspace"
    np.testing.assert_array_equal(times(stepper=stepper), spacing.times(chain, 4, own))
  np.testing.assert_array_equal(times(spacing="logsnr"), spacing.times(chain, 4, "logsnr"))
  with pytest.raises(UserError, match="log-SNR is infinite"):
    light(schedules.RectifiedFlow(), "unipc", 1, spacing="karras")


def test_more_steps_than_the_schedule_has_are_refused_at_construction(trained):
  with pytest.raises(UserError, match="1000"):
    generate.Generator(trained[0], settings(steps=1001))


TREE = Tiers((3, 2), ((0, 0, 1),), null=False)  # nodes: three children, two superclasses


@pytest.fixture(scope="module")
def tiered():
  """(settings -> generator, params) of DGT and DCT on the nodes of a tree."""
  tiers = dict(SIZES, tiers=TREE, fusion="sum")
  grid = (REGIONS[0] * 2, REGIONS[1] * 2)
  fields = dict(depth=1, refine_depth=0, learn_sigma=False, factors=FACTORS, grid=grid)
  content = dct.DCT(**fields, **tiers)
  maps = dgt.DGT(grid=REGIONS, depth=1, **tiers)
  one, t, cells = jnp.zeros(1, jnp.int32), jnp.zeros(1), jnp.zeros((1, *REGIONS), jnp.int32)
  params = {
    "content": random_params(content, jnp.zeros((1, *grid, 4)), t, one, cells, ()),
    "dgt": random_params(maps, cells, one),
  }
  models = make_models(
    map_logits=lambda params, *args: maps.apply(params["dgt"], *args),
    content=lambda params, *args: content.apply(params["content"], *args),
    decode=lambda params, z: jnp.sin(z[..., :3]),
    # A learned variance stays the child's under guidance; without one, scale 0 is the superclass.
    process=process.Process(schedules.LinearBeta()),
    tiers=TREE,
  )
  device = jax.devices()[:1]
  make = lambda **changes: generate.Generator(models, settings(**changes), devices=device)
  return functools.cache(make), params


def test_scale_zero_draws_the_superclass_and_a_superclass_guides_nowhere(tiered):
  make, params = tiered
  children, supers = np.array([0, 1, 2, 2], np.int32), np.array([3, 3, 4, 4], np.int32)
  run = lambda label, **how: make(**how).images(params, label, INDEX[:4], MAPS[:4], 7)
  # Within a byte: the guided batch is twice as long, and rounds differently.
  near = lambda a, b: np.abs(a.astype(int) - b).max() <= 1
  assert near(run(children, guidance=0.0), run(supers, guidance=1.0))
  assert near(run(supers, guidance=3.0), run(supers, guidance=1.0))
  plain = run(children, guidance=1.0)
  assert (plain != run(supers, guidance=1.0)).any((1, 2, 3)).all()
  assert (plain != run(children, guidance=3.0)).any((1, 2, 3)).all()
  assert (run(children, guidance=3.0) != run(children, guidance=3.0, guidance_channels=1)).any()
  assert near(run(children, guidance=3.0, guidance_interval=(2000.0, 3000.0)), plain)


def test_grain_maps_are_guided_away_from_the_same_nodes(tiered):
  make, params = tiered
  run = lambda label, scale: make(map_guidance=scale).grain_maps(params, label, INDEX, 7)
  supers = TREE.ancestors(1)[LABEL]
  np.testing.assert_array_equal(run(LABEL, 0.0), run(supers, 1.0))
  assert (run(LABEL, 1.0) != run(supers, 1.0)).any()


@pytest.mark.parametrize(
  ("wrong", "told"),
  [
    (dict(guidance_level=2), "guidance_level=2: .* 1 to 1, its coarsest"),
    (dict(guidance_level=0), "guidance_level=0"),
    (dict(guidance_channels=5), "guidance_channels=5 must be 0 \\(all\\) to 4"),
  ],
  ids=str,
)
def test_guidance_that_the_models_do_not_have_is_refused(wrong, told):
  with pytest.raises(UserError, match=told):
    generate.Generator(make_models(tiers=TREE), settings(**wrong))
