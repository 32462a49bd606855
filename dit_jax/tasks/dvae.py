"""The dynamic VAE's stage: reconstruct images from codes whose grain follows the image.

    L = L1 + LPIPS + 1e-6 KL + lambda L_G,   and for the critic the hinge loss L_D               (1)
    lambda = min(|d(L1 + LPIPS)/dw| / (|d L_G/dw| + 1e-4), disc_weight)                          (2)

with w the decoder's last kernel (VQGAN, eq. 7; the cap 0.75 is D2iT's). Both players learn from one
backward pass: stop_gradient cuts the critic's parameters out of L_G and the image out of L_D.
"""

import functools
import pathlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from dit_jax.core import rng
from dit_jax.core.errors import UserError
from dit_jax.data import grain_maps, sources
from dit_jax.models import discriminator as gan
from dit_jax.models import lpips
from dit_jax.models.dvae import dvae
from dit_jax.nn import grains as structure
from dit_jax.sampling import grids
from dit_jax.sampling.generate import to_float, to_uint8
from dit_jax.tasks.task import Task, reader


class DVAETask:
  """Parameters, loss and predictions of the stage.

  Args:
    config: the stage's block: model.{factors, z_channels, width, encoder_mults, decoder_mults,
      res_blocks, decoder_res_blocks, attention, stem, dtype}, loss.{l1, lpips, trunk, kl,
      disc_weight, disc_start, disc_filters}, flip, total_steps.
    image_size: pixels a side.

  Raises:
    UserError: sizes that do not fit together.
  """

  name = "dvae"

  def __init__(self, config, image_size: int):
    self.loss, self.flip, self.image_size = config.loss, config.flip, image_size
    self.model = make_model(config.model)
    self.factors = self.model.factors
    if image_size % self.factors[-1]:
      raise UserError(
        f"image_size={image_size} is not a multiple of {self.factors[-1]}, the pixels a side of a "
        "region; change data.image_size or dvae.model.factors."
      )
    self.lpips = None
    if self.loss.lpips and self.loss.trunk != "none":
      self.lpips = lpips.LPIPS(self.loss.trunk)
    self.disc = None
    if self.loss.disc_weight:
      self.disc = gan.PatchGAN(self.loss.disc_filters, dtype=self.model.dtype)
    self.disc_start = round(self.loss.disc_start * config.total_steps)

  def init(self, key) -> dict:
    """{"gen": the DVAE's parameters, "disc": the critic's}; no disc where its weight is 0."""
    gen_key, disc_key = jax.random.split(key)
    x = jnp.zeros((1, self.image_size, self.image_size, 3))
    regions = self.image_size // self.factors[-1]
    grains = jnp.zeros((1, regions, regions), jnp.int32)
    params = {"gen": self.model.init(gen_key, x, grains, gen_key[None])["params"]}
    if self.disc is not None:
      params["disc"] = self.disc.init(disc_key, x)["params"]
    return params

  @functools.cached_property
  def frozen(self) -> dict:
    """{"lpips": weights}, read on first use, or {}."""
    return {} if self.lpips is None else {"lpips": lpips.load_weights(self.loss.trunk)}

  def normalizers(self, batch: dict) -> dict:
    """Images and unique codes of the global batch: the denominators of every term."""
    grains = batch["grains"]
    return {
      "images": jnp.float32(grains.shape[0]),
      "codes": jnp.sum(dvae.num_codes(grains, self.factors)),
    }

  def loss_fn(self, params, frozen, batch: dict, keys, norm: dict, step):
    """Eq. (1), a sum over the batch over `norm`, and its terms as metrics.

    Everything but lambda adds up over micro-batches; lambda is each micro-batch's own.
    """
    x, grains = self.augment(batch, keys)
    gen = params["gen"]
    moments = self._apply(gen, x, grains, method="moments")
    z = dvae.posterior_sample(moments, grains, rng.stream(keys, "posterior"), self.factors)
    features = self._apply(gen, z, method="decode_features")
    x_hat = self._apply(gen, features, method="decode_head")

    shown = jax.lax.stop_gradient(x_hat)
    distance = functools.partial(self._distance, frozen, x, norm)
    (value, metrics), slope = jax.value_and_grad(distance, has_aux=True)(shown)
    weights = structure.unique_weights(grains, self.factors)
    metrics["kl"] = jnp.sum(dvae.kl(moments) * weights) / norm["codes"]
    loss = self.loss.kl * metrics["kl"]
    if self.disc is not None:
      fool = functools.partial(self._fool, params["disc"], norm)
      adv, adv_slope = jax.value_and_grad(fool)(shown)
      slopes = _kernel_gradients(self._head_of_kernel(gen, features), slope, adv_slope)
      on = step >= self.disc_start
      lam = jnp.where(on, adaptive_weight(*slopes, self.loss.disc_weight), 0.0)
      judged = jnp.where(on, self._judge(params["disc"], x, shown, norm), 0.0)
      value = value + jnp.where(on, lam * adv, 0.0)
      slope = slope + jnp.where(on, lam * adv_slope, 0.0)
      loss = loss + judged
      share = x.shape[0] / norm["images"]
      metrics |= {"adversarial": adv, "critic": judged, "lambda": lam * share}
    return loss + with_slope(x_hat, value, slope), metrics

  def augment(self, batch: dict, keys):
    """Images in [-1, 1] and their maps, flipped together by a coin of the image's key."""
    x, grains = to_float(batch["image"]), batch["grains"]
    if self.flip:
      coin = rng.uniform(rng.stream(keys, "flip")) < 0.5
      x = jnp.where(coin[:, None, None, None], x[:, :, ::-1], x)
      grains = jnp.where(coin[:, None, None], grains[:, :, ::-1], grains)
    return x, grains

  def encode_moments(self, params: dict, images, grains):
    """uint8 [b, H, W, 3] and maps -> dense moments [b, h, w, 2 n_z]; no flip."""
    return self._apply(params["gen"], to_float(images), grains, method="moments")

  def decode(self, params: dict, z):
    """Latents [b, h, w, n_z] -> images in [-1, 1], not clipped."""
    return self._apply(params["gen"], z, method="decode")

  def reconstruct(self, params: dict, images, grains):
    """uint8 [b, H, W, 3] and maps -> uint8 images decoded from the posterior means."""
    mean, _ = dvae.split_moments(self.encode_moments(params, images, grains))
    return to_uint8(self.decode(params, mean))

  def _apply(self, gen, *args, method: str):
    return self.model.apply({"params": gen}, *args, method=method)

  def _distance(self, frozen, x, norm, y):
    """L1 + LPIPS of images y to x, and both alone."""
    l1 = jnp.sum(jnp.mean(jnp.abs(x - y), axis=(1, 2, 3))) / norm["images"]
    metrics, value = {"l1": l1}, self.loss.l1 * l1
    if self.lpips is not None:
      far = self.lpips.apply({"params": frozen["lpips"]}, x, y)
      metrics["lpips"] = jnp.sum(far) / norm["images"]
      value = value + self.loss.lpips * metrics["lpips"]
    return value, metrics

  def _fool(self, disc, norm, y):
    """L_G of images y, for a critic that does not learn from it."""
    logits = self.disc.apply({"params": jax.lax.stop_gradient(disc)}, y)
    return jnp.sum(gan.generator_loss(logits)) / norm["images"]

  def _judge(self, disc, x, y, norm):
    """L_D for real images x and reconstructions y."""
    # Interleaved: put one behind the other, half of the images would change their device.
    both = rearrange([x, y], "two b h w c -> (b two) h w c")
    logits = self.disc.apply({"params": disc}, both)
    real, fake = rearrange(logits, "(b two) ... -> two b ...", two=2)
    return 0.5 * jnp.sum(gan.hinge_real(real) + gan.hinge_fake(fake)) / norm["images"]

  def _head_of_kernel(self, gen, features):
    """The decoder's last convolution as a function of its kernel alone, and that kernel."""
    gen, features = jax.lax.stop_gradient((gen["decoder"]["conv_out"], features))

    def head(kernel):
      last = {"decoder": {"conv_out": gen | {"kernel": kernel}}}
      return self._apply(last, features, method="decode_head")

    return head, gen["kernel"]


def make_model(fields) -> dvae.DVAE:
  """The model of a config's `dvae.model`."""
  return dvae.DVAE(
    factors=tuple(fields.factors),
    z_channels=fields.z_channels,
    width=fields.width,
    encoder_mults=tuple(fields.encoder_mults),
    decoder_mults=tuple(fields.decoder_mults),
    res_blocks=fields.res_blocks,
    decoder_res_blocks=fields.decoder_res_blocks,
    attention=fields.attention,
    stem=fields.stem,
    dtype=jnp.dtype(fields.dtype),
  )


def adaptive_weight(distance, adversarial, most: float):
  """Eq. (2) from the two gradients with respect to the kernel; no gradient flows through it."""
  ratio = jnp.linalg.norm(distance.ravel()) / (jnp.linalg.norm(adversarial.ravel()) + 1e-4)
  return jax.lax.stop_gradient(jnp.minimum(ratio, most))


def with_slope(y, value, slope):
  """A scalar that equals `value` and whose gradient with respect to y is `slope`.

  The terms of the loss are differentiated once, at y; eq. (2) and the backward pass through the
  decoder both use that slope, so LPIPS runs backward once and not three times.
  """
  value, slope = jax.lax.stop_gradient((value, slope))
  return value + jnp.sum(slope * (y - jax.lax.stop_gradient(y)))


def _kernel_gradients(head_and_kernel, *slopes):
  """Slopes at the head's output pulled back to its kernel."""
  _, pull = jax.vjp(*head_and_kernel)
  return [pull(slope)[0] for slope in slopes]


def build(config, workdir, mesh) -> Task:
  """The stage on the images of `config.data`: all superclasses, the held-out images left out."""
  del mesh
  stage = DVAETask(config.dvae, config.data.image_size)
  frozen = stage.frozen  # missing weights are refused before the entropies are measured
  source = sources.open_source(every_superclass(config.data), "train")
  maps = measure_grains(config, source, workdir)
  print(maps.describe(), flush=True)
  shown = maps.add_to(collate([source[i] for i in range(min(8, len(source)))]))
  reconstruct = jax.jit(stage.reconstruct)

  def preview(params, frozen):
    """Images, the same with their fine regions tinted, and their reconstructions."""
    del frozen
    again = np.asarray(reconstruct(params, shown["image"], shown["grains"]))
    tinted = grids.overlay(shown["image"], shown["grains"], len(stage.factors))
    named = [("real", shown["image"]), ("fine regions", tinted), ("reconstruction", again)]
    return grids.blocks(named)

  return Task(
    name="dvae",
    init=stage.init,
    frozen=frozen,
    phases=((0, stage.loss_fn),),
    normalizers=stage.normalizers,
    batches=reader(config, "dvae", source, transform=maps.add_to),
    num_images=len(source),
    fingerprint=source.fingerprint,
    meta={"classes": source.classes.to_json(), "thresholds": maps.record},
    preview=preview,
    skipped=lambda: source.skipped,
  )


def every_superclass(data) -> SimpleNamespace:
  """The data block without `only`, which narrows what the transformers see."""
  return SimpleNamespace(**{**data, "only": ()})


def measure_grains(config, source, workdir) -> grain_maps.GrainMaps:
  """The maps of a recipe on its training images, kept in the workdir."""
  block = config.dvae
  path = pathlib.Path(workdir) / "entropies.npz"
  return grain_maps.measure(source, block.model.factors[-1], tuple(block.ratios), path)


def collate(items: list[dict]) -> dict:
  """Items of a source as one batch."""
  return {name: np.stack([item[name] for item in items]) for name in items[0]}
