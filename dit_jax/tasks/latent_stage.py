"""What the stages on latents share: the cache that the DVAE leaves them, and their assembly."""

import contextlib
import functools
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from dit_jax.core import buckets, clock, files
from dit_jax.core import tree as trees
from dit_jax.data import grain_maps, latent_shards, latents, pipeline, sources
from dit_jax.diffusion.process import spread
from dit_jax.models.dvae import dvae as dvae_model
from dit_jax.nn.attention import AttentionSettings
from dit_jax.sampling import generate, grids, parallel
from dit_jax.tasks import autoencoder, labels
from dit_jax.tasks.task import Task, reader

SHOWN = 16  # pictures of a preview


def ensure(config, workdir, mesh) -> latents.LatentSource:
  """The latent cache of a workdir: what is missing of it is written, a stale one is refused.

  Raises:
    UserError: the cache is stale or damaged, or the autoencoder cannot be had.
  """
  del mesh
  vae_params, thresholds = autoencoder.load(config, workdir)
  source = sources.open_source(config.data, "train")
  key = {
    "vae": trees.content_hash(vae_params),
    "data": source.fingerprint,
    "taus": thresholds["taus"],
    "image_size": config.data.image_size,
    "flip": config.latents.flip,
    "maps": _kind_of_maps(config),
  }
  folder = pathlib.Path(workdir) / "latents"
  own = jax.process_index(), jax.process_count()
  write(config, folder, key, vae_params, thresholds, source, *own, _barrier)
  if jax.process_index() == 0:
    statistics(latents.LatentSource(folder))
  _barrier("latent statistics")
  return latents.LatentSource(folder)


def _barrier(name: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def _kind_of_maps(config) -> str:
  """By the data's thresholds, or every image its equal share."""
  budget = "dct" in config.stages and config.dct.buckets == "budget"
  return "budget" if budget else "thresholds"


def with_grains(config, maps: grain_maps.GrainMaps, batch: dict) -> dict:
  """A batch of images with their maps, int32 [b, rows, cols]; none is kept, each is met once."""
  of = maps.budget_of if _kind_of_maps(config) == "budget" else maps.of
  return {**batch, "grains": np.stack([of(x) for x in batch["image"]]).astype(np.int32)}


def write(
  config,
  folder: pathlib.Path,
  key: dict,
  params,
  thresholds: dict,
  source,
  process_index: int = 0,
  process_count: int = 1,
  barrier=lambda name: None,
) -> None:
  """Encodes what is missing of a cache: images, and their mirror images if latents.flip.

  Args:
    config: of the run.
    folder: of the cache.
    key: what it is made from.
    params: of the autoencoder.
    thresholds: the record of the grain maps.
    source: the images.
    process_index, process_count, barrier: see latent_shards.write.
  """
  vae = autoencoder.of(config)
  facts = {"classes": source.classes.to_json(), "thresholds": thresholds}
  facts |= vae.layout(config.data.image_size)
  if vae.statistics:
    facts["statistics"] = vae.statistics

  latent_shards.write(
    folder,
    key,
    facts,
    len(source),
    functools.partial(_encoded, config, folder, params, thresholds, source),
    process_index=process_index,
    process_count=process_count,
    barrier=barrier,
  )
  if skipped := source.skipped:
    names = ", ".join(skipped[:5])
    print(f"[latents] skipped {len(skipped)} unreadable images: {names}", flush=True)


def _encoded(config, folder, params, thresholds, source, positions: np.ndarray, done: int):
  """Pairs of a position and a record of an image, its mirror image behind it; tells how it goes."""
  maps = grain_maps.GrainMaps.from_record(thresholds)
  places, encode = encoder(config)
  params, rows = places.everywhere(params), places.total
  there = f" ({done:,} are there)" if done else ""
  print(f"[latents] encoding {len(positions):,} images into {folder}{there}", flush=True)
  progress = clock.Progress(
    done + len(positions), 1, done, label="latents", stream=sys.stdout, unit="image"
  )
  total = -(-len(positions) // rows)
  threads = config.data.workers or pipeline.THREADS
  map_them = functools.partial(with_grains, config, maps)  # entropies take longer than decoding
  batches = pipeline.in_order(source, rows, threads, positions, map_them)
  with contextlib.closing(progress):
    for now, batch in enumerate(batches, 1):
      valid = batch.pop("valid")
      image, grains = batch["image"], batch["grains"]
      copies = [(image, grains)]
      if config.latents.flip:
        copies.append((image[:, :, ::-1], grains[:, :, ::-1]))
      encoded = [np.asarray(encode(params, {"image": x, "grains": g})) for x, g in copies]
      step = done + int(np.searchsorted(positions, batch["position"][valid][-1])) + 1
      progress.tick(step)
      if clock.due(now, max(1, total // 10), total):
        progress.report(step, {})
      # Image by image: the order may not depend on how many rows are encoded at once.
      for i in np.flatnonzero(valid):
        for flipped, (_, grains) in enumerate(copies):
          yield (
            int(batch["position"][i]),
            {
              "moments": encoded[flipped][i],
              "grains": grains[i],
              "label": batch["label"][i],
              "index": batch["index"][i],
              "flipped": flipped,
            },
          )


def encoder(config, devices=None):
  """The rows that encode at once, latents.batch_size on each device, and what encodes them."""
  moments = autoencoder.of(config).moments
  places = parallel.Rows(config.latents.batch_size, devices)
  return places, places.jit(lambda params, rows: moments(params, rows["image"], rows["grains"]))


def num_tokens(cache) -> np.ndarray:
  """Refined tokens of every image of the cache."""
  return buckets.num_tokens(cache.grains, tuple(cache.meta["factors"]))


def quantum(cache) -> int:
  """Tokens from one possible capacity to the next."""
  rows, cols = cache.meta["regions"]
  return buckets.quantum(rows * cols, tuple(cache.meta["factors"]))


def statistics(cache) -> dict:
  """Mean and deviation of the codes by grain and channel: the autoencoder's, or measured once."""
  if "statistics" in cache.meta:
    return cache.meta["statistics"]
  path = pathlib.Path(cache.directory) / "statistics.json"
  if not path.exists():
    mean, std = latents.latent_stats(cache, tuple(cache.meta["factors"]))
    files.write_text(path, json.dumps({"mean": mean.tolist(), "std": std.tolist()}))
  return json.loads(path.read_text())


def shown_rows(cache) -> dict:
  """The cache's rows that previews show, evenly spaced."""
  return cache.read(np.linspace(0, len(cache) - 1, min(SHOWN, len(cache))).round().astype(int))


def task(
  config,
  cache,
  *,
  name,
  init,
  phases,
  normalizers,
  preview,
  measured=None,
  frozen=None,
  transform=None,
  positions=None,
) -> Task:
  """A stage on a latent cache; see pipeline.batches for transform and positions."""

  facts = ("vae", "factors", "regions", "grid", "z_channels", "image_size", "classes", "thresholds")
  return Task(
    name=name,
    init=init,
    frozen={} if frozen is None else frozen,
    phases=phases,
    normalizers=normalizers,
    batches=reader(config, name, cache, transform=transform, positions=positions),
    num_images=len(cache),
    fingerprint=cache.fingerprint,
    meta={k: cache.meta[k] for k in facts} | {"latent_stats": statistics(cache)},
    preview=preview,
    measured=measured,
  )


def sampling_models(
  config, meta: dict, process, content, map_logits=None, correct_x0=None
) -> generate.Models:
  """A content stage and its autoencoder as sampling takes them, on {"content", "dvae", ...}.

  Args:
    config: of the run.
    meta: facts of the latents and `latent_stats`, as a checkpoint's meta holds them.
    process: of the content model.
    content: (params of the content model, z, model_time, label, grains, tokens) -> raw output.
    map_logits: see generate.Models; None where grain maps are given.
    correct_x0: see generate.Models.
  """
  decode = autoencoder.of(config).decode
  return generate.Models(
    map_logits=map_logits,
    content=lambda params, *args: content(params["content"], *args),
    decode=lambda params, z: decode(params["dvae"], z),
    process=process,
    factors=tuple(meta["factors"]),
    regions=tuple(meta["regions"]),
    channels=meta["z_channels"],
    tiers=labels.tree(labels.content_block(config), meta),
    mean=jnp.asarray(meta["latent_stats"]["mean"], jnp.float32),
    std=jnp.asarray(meta["latent_stats"]["std"], jnp.float32),
    correct_x0=correct_x0,
  )


def gated_content(content_fn, model, process, own_times: bool = False):
  """content_fn(model), dense at the steps that the model's attention.dense_snr asks for.

  Args:
    content_fn: of the stage.
    model: of the stage.
    process: whose noise levels decide.
    own_times: every row has a time of its own, and the work is done twice; else all rows share one,
      as those of a sampling step do.
  """
  content, settings = content_fn(model), model.attention
  if settings.kind == "full" or not settings.dense_snr:
    return content
  dense = content_fn(model.clone(attention=AttentionSettings()))
  t = jnp.linspace(0.0, 1.0, 10_001)
  clear = process.schedule.alpha(t) >= settings.dense_snr**0.5 * process.schedule.sigma(t)
  edge = float(jnp.where(clear, process.schedule.model_time(t), -1.0).max())

  def gated(params, z, model_time, *rest):
    args = params, z, model_time, *rest
    if own_times:
      return jnp.where(spread(model_time <= edge, z), dense(*args), content(*args))
    return jax.lax.cond(model_time[0] <= edge, dense, content, *args)

  return gated


def picture_preview(config, cache, loss, content):
  """(params, frozen) -> decoded latents above samples with the same maps and labels."""
  shown = shown_rows(cache)
  meta = cache.meta | {"latent_stats": statistics(cache)}
  settings = dict(config.sampling) | {"steps": min(config.sampling.steps, 50), "stepper": "ddim"}
  models = sampling_models(config, meta, loss.process, content)
  generator = generate.Generator(models, generate.Settings(**settings))

  @jax.jit
  def decoded(params, moments):
    return generate.to_uint8(models.decode(params, dvae_model.split_moments(moments)[0]))

  def preview(params, frozen):
    params = {"content": params, "dvae": frozen["dvae"]}
    label, index = shown["label"], shown["index"]
    drawn = generator.images(params, label, index, shown["grains"], config.seed, SHOWN)
    real = np.asarray(decoded(params, jnp.asarray(shown["moments"])))
    return grids.blocks([("decoded", real), ("samples, same maps and labels", drawn)])

  return preview
