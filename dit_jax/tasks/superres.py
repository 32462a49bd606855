"""The stage of pixel-space super-resolution: degraded small pictures back to the large ones.

    L = mean |E(y) - x| over the pixels inside a margin, x a patch, y the same one degraded     (1)

The margin is not counted because a patch is no period of its picture: E is (models.superres).
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.core import config as configs
from dit_jax.core.errors import UserError
from dit_jax.data import degrade, sources
from dit_jax.models.superres import FACTOR, PictureEnhancer
from dit_jax.sampling import generate, grids, superres
from dit_jax.tasks import dvae
from dit_jax.tasks.task import Task, reader
from dit_jax.training.checkpoint import Checkpoints

SHOWN = 6  # pictures of a preview
LOOKED_AT = 256  # images whose size is read before training


class SuperresTask:
  """Parameters and loss of the stage.

  Args:
    config: the stage's block: model.{depth, width, dtype}, crop (pixels a side of a large patch),
      margin (pixels of the small patch that Eq. (1) leaves out on each side), degradation.{clean,
      blur, scale, noise, jpeg}.
    image_size: pixels a side of the pictures that patches are cut from.

  Raises:
    UserError: sizes that do not fit together, or a degradation that is none.
  """

  def __init__(self, config, image_size: int):
    self.crop, self.margin = config.crop, config.margin
    if self.crop % FACTOR or not 0 < self.crop <= image_size:
      raise UserError(
        f"superres.crop={self.crop} must be even and at most data.image_size={image_size}."
      )
    if not 0 <= 2 * self.margin < self.crop // FACTOR:
      raise UserError(
        f"superres.margin={self.margin} must leave something of a small patch of "
        f"{self.crop // FACTOR} pixels; the default is 8."
      )
    self.model = make_model(config.model)
    ranges = {name: tuple(config.degradation[name]) for name in ("blur", "scale", "noise", "jpeg")}
    clean = config.degradation.clean
    self.degradation = degrade.Degradation(factor=FACTOR, clean=clean, **ranges)

  def init(self, key) -> dict:
    """The network's parameters."""
    return self.model.init(key, jnp.zeros((1, 8, 8, 3)))

  def enhance(self, params, low) -> jax.Array:
    """E of uint8 pictures [b, h, w, 3]: [b, 2 h, 2 w, 3], 1 and -1 being white and black."""
    return self.model.apply(params, generate.to_float(low))

  def normalizers(self, batch: dict) -> dict:
    """The images of the global batch."""
    return {"images": jnp.float32(batch["index"].shape[0])}

  def loss_fn(self, params, frozen, batch: dict, keys, norm: dict, step):
    """Eq. (1), a sum over the batch over `norm`."""
    del frozen, keys, step
    error = jnp.abs(self.enhance(params, batch["low"]) - generate.to_float(batch["high"]))
    inside = slice(FACTOR * self.margin, self.crop - FACTOR * self.margin)
    l1 = jnp.sum(jnp.mean(error[:, inside, inside], axis=(1, 2, 3))) / norm["images"]
    return l1, {"l1": l1}


def make_model(fields) -> PictureEnhancer:
  """The model of a config's `superres.model`."""
  return PictureEnhancer(fields.depth, fields.width, jnp.dtype(fields.dtype))


def build(config, workdir, mesh) -> Task:
  """The stage on the images of `config.data`; those held out are left out."""
  del workdir, mesh
  stage = SuperresTask(config.superres, config.data.image_size)
  source = sources.open_source(dvae.every_superclass(config.data), "train")
  if told := scaled_up(source):
    print(told, flush=True)
  pairs = degrade.Pairs(stage.degradation, stage.crop, config.seed)
  shown = pairs(0, dvae.collate(_shown(config.data, source)))
  doubler = superres.Doubler(stage.enhance)

  def preview(params, frozen):
    """Small pictures enlarged by bicubic, by the network, and the large ones."""
    del frozen
    large = np.stack([degrade.bicubic(low) for low in shown["low"]])
    ours = doubler(params, shown["low"])
    return grids.blocks([("bicubic", large), ("superres", ours), ("real", shown["high"])])

  return Task(
    name="superres",
    init=stage.init,
    frozen={},
    phases=((0, stage.loss_fn),),
    normalizers=stage.normalizers,
    batches=reader(config, "superres", source, draw=pairs),
    num_images=len(source),
    fingerprint=source.fingerprint,
    meta={"classes": source.classes.to_json()},
    preview=preview,
    skipped=lambda: source.skipped,
  )


def scaled_up(source: sources.ImageSource) -> str:
  """A line about images that are smaller than they are trained at; "" where none of some is."""
  places = np.unique(np.linspace(0, len(source) - 1, LOOKED_AT).round().astype(int))
  sides = np.asarray([side for i in places if (side := source.short_side(int(i)))])
  small = int(np.sum(sides < source.image_size))
  if not small:
    return ""
  return (
    f"[superres] {small} of {len(sides)} images looked at are scaled up to data.image_size="
    f"{source.image_size}, which teaches soft pictures; half have a short side of at most "
    f"{int(np.median(sides))} pixels: set data.image_size to what most of them have."
  )


def _shown(data, source: sources.ImageSource) -> list[dict]:
  """The pictures of a preview: held-out ones where there are any."""
  whole = sources.open_source(dvae.every_superclass(data), "all")
  held = np.setdiff1d(whole.indices, source.indices)  # every n-th, or the set's own split
  if len(held):
    return [whole[int(i)] for i in held[:SHOWN]]
  return [source[i] for i in range(min(SHOWN, len(source)))]


def alone(workdir) -> bool:
  """Whether a workdir is of a recipe of this stage and no other, so that it can draw nothing."""
  record = pathlib.Path(workdir) / "config.json"
  if not record.exists():
    return False
  stages = configs.from_json(record.read_text(encoding="utf-8")).get("stages", ())
  return tuple(stages) == ("superres",)


def restore(workdir):
  """(stage, averaged weights) of a workdir in which the stage is trained.

  Raises:
    UserError: it is not.
  """
  ema, meta, _ = Checkpoints(pathlib.Path(workdir) / "superres").restore_ema()
  config = configs.from_json(meta["config"])
  return SuperresTask(config.superres, config.data.image_size), ema
