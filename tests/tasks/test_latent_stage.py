"""The latent cache of a run: made once from its DVAE, refused where anything behind it moved."""

import pathlib
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import numpy_dit as ref
import optax
import pytest
from PIL import Image

from dit_jax import train
from dit_jax.core import buckets, slots
from dit_jax.core import config as configs
from dit_jax.core.errors import UserError
from dit_jax.data import grain_maps, latent_shards, latents, pipeline, sources
from dit_jax.diffusion.process import Process
from dit_jax.diffusion.schedules import RectifiedFlow
from dit_jax.models import dit
from dit_jax.nn import grains as structure
from dit_jax.nn.attention import AttentionSettings
from dit_jax.tasks import autoencoder, dvae, latent_stage
from dit_jax.tasks import dit as dit_task
from dit_jax.training import sharding, state
from dit_jax.training.checkpoint import Checkpoints

RECIPE = pathlib.Path(__file__).resolve().parents[2] / "configs" / "demo.py"
FACTORS, SIZE, PER_CLASS = (4, 8), 32, 3
KEY = ("vae", "data", "taus", "image_size", "flip", "maps")
CLASSES = ("bird/owl", "bird/tit", "fish/eel")


def make_images(root, seed=0):
  """Flat pictures with one noisy quarter: regions of both grains, none like its mirror image."""
  draw = np.random.default_rng(seed)
  for name in CLASSES:
    (root / name).mkdir(parents=True)
    for i in range(PER_CLASS):
      image = np.full((SIZE, SIZE, 3), draw.integers(40, 220, 3), np.uint8)
      top, left = draw.integers(0, SIZE // 2, 2)
      image[top : top + 20, left : left + 20] = draw.integers(0, 256, (20, 20, 3))[
        : SIZE - top, : SIZE - left
      ]
      Image.fromarray(image).save(root / name / f"{i}.png")


def recipe(images):
  config = configs.load(RECIPE, "tiny")
  config.data.update(
    source="folder", path=str(images), image_size=SIZE, only=(), holdout=0, workers=0
  )
  config.latents.update(flip=True, batch_size=4)
  levels = dict(stem=4, encoder_mults=(1, 1, 1, 1), decoder_mults=(1, 1, 1))
  config.dvae.model.update(factors=FACTORS, z_channels=4, width=8, **levels)
  config.dvae.optim.update(schedule="constant", warmup_steps=0)
  config.dvae.update(total_steps=1, every=dict(log=1, save=1, preview=0))
  return config


@pytest.fixture(scope="module", autouse=True)
def small_shards():
  """Nine images make three shards."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(latent_shards, "LEAST", 4)
    yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A workdir with a DVAE of one step, its cache and its config."""
  root = tmp_path_factory.mktemp("latent_stage")
  make_images(root / "images")
  config = recipe(root / "images")
  one = sharding.make_mesh({}, jax.devices()[:1])
  with pytest.MonkeyPatch.context() as patch:  # eight devices take longer to compile for
    patch.setattr(sharding, "make_mesh", lambda *_: one)
    train.train_and_evaluate(config, root / "run", "dvae")
  latent_stage.ensure(config, root / "run", None)
  return root / "run", config


@pytest.fixture
def run(trained, tmp_path):
  """A copy of it that a test may break."""
  shutil.copytree(trained[0], tmp_path / "run")
  return tmp_path / "run", trained[1].copy_and_resolve_references()


def stamps(folder):
  return {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in sorted(folder.iterdir())}


def test_the_cache_holds_every_image_and_its_mirror_image(trained):
  workdir, config = trained
  cache = latent_stage.ensure(config, workdir, None)
  n = len(CLASSES) * PER_CLASS
  assert len(cache) == 2 * n
  assert cache.moments_shape == (8, 8, 8)
  np.testing.assert_array_equal(np.sort(cache.indices), np.repeat(np.arange(n), 2))
  for flipped in (False, True):
    chosen = cache.flipped == flipped
    np.testing.assert_array_equal(np.sort(cache.indices[chosen]), np.arange(n))
    order = np.argsort(cache.indices[chosen])
    np.testing.assert_array_equal(cache.labels[chosen][order], np.repeat([0, 1, 2], PER_CLASS))
  assert list(cache.classes.children) == ["owl", "tit", "eel"]
  assert set(np.unique(cache.grains)) == {0, 1}
  assert cache.meta["image_size"] == SIZE
  assert (cache.meta["regions"], cache.meta["grid"]) == ([4, 4], [8, 8])


def test_records_are_the_encodings_of_images_and_of_mirrored_images(trained):
  """Against the images themselves, encoded one batch at a time; not the mirrored encodings."""
  workdir, config = trained
  cache = latent_stage.ensure(config, workdir, None)
  source = sources.open_source(config.data)
  maps = grain_maps.GrainMaps.from_record(cache.meta["thresholds"])
  stage = dvae.DVAETask(config.dvae, SIZE)
  encode = jax.jit(stage.encode_moments)
  params = {"gen": autoencoder.load(config, workdir)[0]}
  n, place = len(source), {}
  for position in range(len(cache)):
    place[int(cache.indices[position]), bool(cache.flipped[position])] = position
  images = np.stack([source[i]["image"] for i in range(n)])
  for flipped in (False, True):
    seen = images[:, :, ::-1] if flipped else images
    grains = np.stack([maps.of(x) for x in images]).astype(np.int32)
    grains = grains[:, :, ::-1] if flipped else grains
    rows = cache.read([place[i, flipped] for i in range(n)])
    np.testing.assert_array_equal(rows["grains"], grains)
    np.testing.assert_array_equal(rows["grains"], [maps.of(x) for x in seen])
    np.testing.assert_allclose(rows["moments"], encode(params, seen, grains), atol=1e-4)
  plain = cache.read([place[i, False] for i in range(n)])["moments"]
  assert np.abs(rows["moments"] - plain[:, :, ::-1]).max() > 1e-3


def test_records_have_the_structure_of_their_map(trained):
  rows = latent_stage.ensure(trained[1], trained[0], None).read(range(18))
  coarse = rows["grains"].repeat(2, 1).repeat(2, 2)[..., None] == 0
  corner = rows["moments"][:, ::2, ::2].repeat(2, 1).repeat(2, 2)
  assert np.where(coarse, rows["moments"] == corner, True).all()
  assert not np.where(~coarse, rows["moments"] == corner, True).all()


def test_a_second_call_writes_nothing(trained, monkeypatch):
  workdir, config = trained
  before = stamps(workdir / "latents")
  monkeypatch.setattr(dvae.DVAETask, "encode_moments", None)
  cache = latent_stage.ensure(config, workdir, None)
  assert len(cache) == 18
  assert stamps(workdir / "latents") == before


@pytest.mark.parametrize("field", ["flip", "image_size"])
def test_a_cache_of_another_config_is_refused(run, field):
  workdir, config = run
  if field == "flip":
    config.latents.flip, message = False, "flip: True -> False"
  else:
    config.data.image_size, message = 16, "data: .*; image_size: 32 -> 16"
  before = stamps(workdir / "latents")
  with pytest.raises(UserError, match=f"stale .{message}.*delete it"):
    latent_stage.ensure(config, workdir, None)
  assert stamps(workdir / "latents") == before


def test_a_cache_of_other_images_is_refused(run, tmp_path):
  workdir, config = run
  make_images(tmp_path / "images", seed=1)
  Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "images" / CLASSES[0] / "more.png")
  config.data.path = str(tmp_path / "images")
  with pytest.raises(UserError, match=r"stale .data: "):
    latent_stage.ensure(config, workdir, None)


def save_dvae(workdir, step, change=lambda x: x):
  """A later checkpoint of the DVAE with changed weights."""
  checkpoints = Checkpoints(workdir / "dvae")
  ema, meta, _ = checkpoints.restore_ema()
  params = jax.tree.map(change, ema)
  made = state.create(params, optax.sgd(0.1))
  checkpoints.save(step, made, data={"step": step}, meta=meta)
  checkpoints.close()


def test_a_cache_of_other_weights_is_refused(run):
  workdir, config = run
  config.dvae.total_steps = 2
  save_dvae(workdir, 2, lambda x: x + 1e-3)
  with pytest.raises(UserError, match=r"stale .vae: \w{16} -> \w{16}\)") as e:
    latent_stage.ensure(config, workdir, None)
  assert "\n" not in str(e.value)


def test_the_same_weights_at_a_later_step_make_the_same_cache(run):
  workdir, config = run
  config.dvae.total_steps = 2
  save_dvae(workdir, 2)
  before = stamps(workdir / "latents")
  assert len(latent_stage.ensure(config, workdir, None)) == 18
  assert stamps(workdir / "latents") == before


def test_a_dvae_that_is_not_finished_makes_no_cache(run):
  """--stage=dct on a run whose DVAE was interrupted: the cache would be of half-trained weights."""
  workdir, config = run
  shutil.rmtree(workdir / "latents")
  config.dvae.total_steps = 5
  with pytest.raises(UserError, match=r"dvae.* step 1 of 5"):
    latent_stage.ensure(config, workdir, None)
  assert not (workdir / "latents").exists()


def test_without_a_dvae_there_is_nothing_to_encode_with(trained, tmp_path):
  with pytest.raises(UserError, match="no checkpoint in"):
    latent_stage.ensure(trained[1], tmp_path, None)


def files(folder):
  """Bytes of the cache itself, without what is measured on it."""
  names = ("key.json", "meta.json", "shard_00000.bin", "shard_00001.bin", "shard_00002.bin")
  return {name: (folder / name).read_bytes() for name in names}


def test_a_kill_costs_the_shards_that_are_not_finished(run, monkeypatch, capsys):
  workdir, config = run
  folder = workdir / "latents"
  want = files(folder)
  shutil.rmtree(folder)
  in_order = pipeline.in_order

  def killed(*args, **kwargs):
    yield next(in_order(*args, **kwargs))
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(pipeline, "in_order", killed)
    with pytest.raises(KeyboardInterrupt):
      latent_stage.ensure(config, workdir, None)
  before = stamps(folder)
  assert list(before) == ["key.json", "shard_00000.bin", "shard_00001.bin"]
  devices = jax.local_devices()
  with monkeypatch.context() as patch:  # another machine goes on
    patch.setattr(jax, "local_devices", lambda: devices[:1])
    latent_stage.ensure(config, workdir, None)
  assert files(folder) == want
  assert stamps(folder).items() >= before.items()
  told = capsys.readouterr().out
  assert "[latents] encoding 9 images into" in told
  assert "[latents] encoding 1 images into" in told
  assert "(8 are there)" in told


def test_two_processes_of_two_devices_write_the_same_bytes(run, monkeypatch, tmp_path, capsys):
  """Threads stand for processes; one process of eight devices wrote the other cache."""
  workdir, config = run
  devices = jax.local_devices()
  monkeypatch.setattr(jax, "local_devices", lambda: devices[:2])
  key = {name: latents.LatentSource(workdir / "latents").meta[name] for name in KEY}
  params, thresholds = autoencoder.load(config, workdir)
  gate, source = threading.Barrier(2, timeout=120), sources.open_source(config.data)
  args = config, tmp_path / "latents", key, params, thresholds, source
  other = threading.Thread(target=latent_stage.write, args=(*args, 1, 2, lambda name: gate.wait()))
  other.start()
  latent_stage.write(*args, 0, 2, lambda name: gate.wait())
  other.join()
  assert files(tmp_path / "latents") == files(workdir / "latents")
  told = capsys.readouterr().out
  assert "[latents] encoding 5 images into" in told
  assert "[latents] encoding 4 images into" in told


def test_broken_images_are_told_when_the_cache_is_written(run, tmp_path, capsys):
  workdir, config = run
  shutil.rmtree(workdir / "latents")
  config.data.path = str(shutil.copytree(config.data.path, tmp_path / "images"))
  for name in CLASSES[:2]:
    (tmp_path / "images" / name / "1.png").write_bytes(b"no image")
  for told in (["[latents] skipped 2 unreadable images: bird/owl/1.png, bird/tit/1.png"], []):
    cache = latent_stage.ensure(config, workdir, None)
    assert sorted(set(cache.indices.tolist())) == [0, 2, 3, 5, 6, 7, 8]
    assert [x for x in capsys.readouterr().out.splitlines() if "skipped" in x] == told


def test_the_transformers_see_the_superclasses_that_the_config_names(run):
  workdir, config = run
  shutil.rmtree(workdir / "latents")
  config.data.only = ("fish",)
  config.latents.flip = False
  cache = latent_stage.ensure(config, workdir, None)
  assert (len(cache), list(cache.classes.children)) == (PER_CLASS, ["eel"])
  assert not cache.flipped.any()
  assert cache.meta["thresholds"] == Checkpoints(workdir / "dvae").read_meta()["thresholds"]


def test_statistics_are_measured_once_and_are_those_of_the_cache(run):
  workdir, config = run
  (workdir / "latents" / "statistics.json").unlink(missing_ok=True)
  cache = latent_stage.ensure(config, workdir, None)
  got = latent_stage.statistics(cache)
  mean, std = latents.latent_stats(cache, FACTORS)
  assert got == {"mean": mean.tolist(), "std": std.tolist()}
  before = stamps(workdir / "latents")
  assert latent_stage.statistics(latents.LatentSource(workdir / "latents")) == got
  assert stamps(workdir / "latents") == before
  assert not [name for name in before if "tmp" in name]


@pytest.mark.parametrize("mode", slots.MODES)
def test_slots_hold_every_map(trained, mode):
  cache = latent_stage.ensure(trained[1], trained[0], None)
  cells = np.asarray(structure.cell_grains(jax.numpy.asarray(cache.grains, int), FACTORS))
  tokens = (cells == 1).sum((1, 2))  # a fine cell is a token
  np.testing.assert_array_equal(latent_stage.num_tokens(cache), tokens)
  shapes = slots.of_mode(mode, tokens, 6, latent_stage.quantum(cache), 2)
  assert (sum(shapes.counts), shapes.groups) == (6, 2)
  most, quantum = int(tokens.max()), buckets.quantum(16, FACTORS)
  assert most <= max(shapes.capacities) < most + quantum
  assert (len(shapes.capacities) > 1) == (mode == "mixed")


def test_a_budget_gives_every_image_its_share(trained, tmp_path):
  run = tmp_path / "run"
  shutil.copytree(trained[0], run, ignore=shutil.ignore_patterns("latents"))
  config = trained[1].copy_and_resolve_references()
  config.dct.buckets = "budget"
  budget = latent_stage.ensure(config, run, None)
  assert set(latent_stage.num_tokens(budget)) == {32}  # half of 16 regions, 4 codes each
  by_threshold = latent_stage.ensure(trained[1], trained[0], None)
  assert len(set(latent_stage.num_tokens(by_threshold))) > 1
  with pytest.raises(UserError, match="maps"):
    latent_stage.ensure(trained[1], run, None)  # a cache of other maps


def test_shown_rows_are_spread_over_the_cache(trained):
  cache = latent_stage.ensure(trained[1], trained[0], None)
  shown = latent_stage.shown_rows(cache)
  assert len(shown["index"]) == min(latent_stage.SHOWN, len(cache))
  assert set(shown["label"]) == {0, 1, 2}
  np.testing.assert_array_equal(shown["index"][[0, -1]], cache.indices[[0, -1]])


@pytest.mark.parametrize(("snr", "edge"), [(1.0, 0.5), (4.0, 1 / 3), (0.0, -1.0)])
def test_sampling_is_dense_where_the_signal_is_clear(snr, edge):
  """On rectified flow alpha^2 / sigma^2 = ((1 - t) / t)^2; the model's time is 1000 t."""
  attention = AttentionSettings(kind="pro", c=1, pro_min_tokens=1, dense_snr=snr)
  shape = dict(depth=1, width=16, num_heads=2, patch=1, grid=(8, 8), num_classes=3)
  model = dit.DiT(**shape, attention=attention)
  z = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
  label = jnp.array([0, 2])
  params = ref.random_params(model.init(jax.random.key(1), z, jnp.zeros(2), label))
  process = Process(RectifiedFlow(), prediction="flow")
  gated = jax.jit(latent_stage.gated_content(dit_task.content_fn, model, process))
  content = {
    kind: jax.jit(dit_task.content_fn(model.clone(attention=settings)))
    for kind, settings in (("pro", attention), ("full", AttentionSettings()))
  }
  for t in (0.01, 0.3, 0.36, 0.49, 0.51, 1.0):
    args = params, z, jnp.full(2, 1000 * t), label, None, None
    of = {kind: np.asarray(fn(*args)) for kind, fn in content.items()}
    assert np.abs(of["pro"] - of["full"]).max() > 1e-3
    np.testing.assert_allclose(gated(*args), of["full" if t <= edge else "pro"], atol=1e-6)
