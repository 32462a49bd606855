"""label -> grain map -> content -> image, in microbatches of one fixed size on every device.

Picture i is a function of (seed, i) alone: its keys come from i, parameters are replicated, and
every program runs the same number of rows whatever the batch or the number of devices. More images
in flight or more devices only change how many of those programs run at once.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.core import buckets, rng
from dit_jax.core.errors import UserError
from dit_jax.core.tiers import Tiers
from dit_jax.diffusion import guidance as guidance_
from dit_jax.diffusion import sampler, solvers
from dit_jax.diffusion import spacing as spacings
from dit_jax.diffusion.process import Process
from dit_jax.diffusion.schedules import Schedule
from dit_jax.nn import grains as structure
from dit_jax.sampling import grain_maps, parallel


@dataclasses.dataclass(frozen=True)
class Models:
  """What sampling needs to know of the trained stages, by value.

  Attributes:
    map_logits: (params, cells, label) -> logits of grains; None where there is one grain only.
    content: (params, z, model_time, label, grains, tokens) -> raw output.
    decode: (params, z) -> images in [-1, 1].
    process: of the content model.
    factors: f_1 < ... < f_k.
    regions: (rows, cols) of a grain map.
    channels: of a latent.
    tiers: the tree whose nodes the labels are; without superclasses, the classes and "no class".
    mean, std: latent statistics, [k, c].
    correct_x0: (params, x0, z, t, grains) -> x0, see sampler.sample; None corrects nothing.
  """

  map_logits: Callable[..., Any] | None
  content: Callable[..., Any]
  decode: Callable[..., Any]
  process: Process
  factors: tuple[int, ...]
  regions: tuple[int, int]
  channels: int
  tiers: Tiers
  mean: jax.Array
  std: jax.Array
  correct_x0: Callable[..., Any] | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
  """How to sample; the defaults are the papers'.

  Attributes:
    stepper: one of diffusion.solvers.NAMES.
    spacing: of the times of its steps, one of diffusion.spacing.SPACINGS, or "auto": "trailing" of
      multistep solvers, whose last steps before 0 may not be long ones, else "linspace".
    guidance, map_guidance: scales of the guidance of pictures and of grain maps; 1: none.
    guidance_level: both are away from the label's ancestor at this level, 1 its superclass; the
      last level is "no class", the only one of a model without tiers.
    guidance_interval, guidance_channels, guidance_rescale: of pictures; see diffusion.guidance.
  """

  steps: int = 250
  stepper: str = "ddpm"
  spacing: str = "auto"
  guidance: float = 1.0
  guidance_level: int = 1
  guidance_interval: tuple[float, float] = guidance_.ALWAYS
  guidance_channels: int = 0
  guidance_rescale: float = 0.0
  microbatch: int = 4
  map_steps: int = 64
  map_temperature: float = 1.0
  map_guidance: float = 1.0
  map_order: str = "random"

  def __post_init__(self):
    for name, known in (
      ("stepper", solvers.NAMES),
      ("spacing", ("auto", *spacings.SPACINGS)),
      ("map_order", grain_maps.ORDERS),
    ):
      if getattr(self, name) not in known:
        raise UserError(f"{name}={getattr(self, name)!r} is unknown; choose one of {known}.")
    for name in ("steps", "map_steps"):
      if getattr(self, name) < 1:
        raise UserError(f"{name}={getattr(self, name)} must be at least 1.")
    for name in ("guidance", "map_guidance"):
      if not math.isfinite(getattr(self, name)):
        raise UserError(f"{name}={getattr(self, name)} must be a number; 1 means no guidance.")
    object.__setattr__(self, "guidance_interval", tuple(map(float, self.guidance_interval)))
    ends = self.guidance_interval
    if len(ends) != 2 or not -math.inf < ends[0] <= ends[1] < math.inf:
      raise UserError(
        f"guidance_interval={self.guidance_interval} must be two model times, first the lower; "
        f"{guidance_.ALWAYS} is always."
      )
    if not 0 <= self.guidance_rescale <= 1:
      raise UserError(f"guidance_rescale={self.guidance_rescale} must be 0 (off) to 1.")
    if not 0 < self.map_temperature < math.inf:
      raise UserError(f"map_temperature={self.map_temperature} must be above 0; the default is 1.")
    if self.microbatch < 2:
      raise UserError(
        f"microbatch={self.microbatch} must be at least 2: the one-row path rounds differently."
      )

  @property
  def nfe(self) -> int:
    """Times that the model is called for a picture; a guided call, of two rows, is one."""
    return solvers.num_calls(self.stepper, self.steps)

  def times(self, schedule: Schedule) -> jax.Array:
    """Between which steps are made; UserError where the schedule has no such ones."""
    own = "trailing" if self.stepper in solvers.MULTISTEP else "linspace"
    return spacings.times(schedule, self.steps, own if self.spacing == "auto" else self.spacing)


class Generator:
  """Compiled programs of a set of models; call `grain_maps`, then `images`.

  Raises:
    UserError: steps or a spacing that the schedule has not, a level or channels that the models
      have not.
  """

  def __init__(self, models: Models, settings: Settings, devices=None):
    self.models, self.settings = models, settings
    if not 0 <= settings.guidance_channels <= models.channels:
      raise UserError(
        f"guidance_channels={settings.guidance_channels} must be 0 (all) to {models.channels}."
      )
    self._base = models.tiers.ancestors(settings.guidance_level)
    jax.eval_shape(self._times)  # so that what does not fit is refused before any compile
    self.rows = parallel.Rows(settings.microbatch, devices)
    self._maps = self.rows.jit(self._sample_maps, num_scalars=1)
    self._images = self.rows.jit(self._sample_images, num_scalars=2)

  def grain_maps(self, params, label: np.ndarray, index: np.ndarray, seed: int) -> np.ndarray:
    """Maps drawn by the grain transformer, int [n, rows, cols]; zeros where k = 1."""
    if self.models.map_logits is None:
      return np.zeros((len(label), *self.models.regions), np.int32)
    rows = {"label": label, "index": index}
    return self.rows.run(self._maps, params, rows, np.uint32(seed))

  def images(
    self,
    params,
    label: np.ndarray,
    index: np.ndarray,
    grains: np.ndarray,
    seed: int,
    batch: int = 0,
    guidance: float | None = None,
  ) -> np.ndarray:
    """The images, uint8 [n, H, W, 3]; those of one capacity are made together.

    Args:
      params: dict of the trees that `Models.content` and `Models.decode` take.
      label: classes, int [n].
      index: sample numbers, int [n]; with the seed they decide the noise.
      grains: maps, int [n, rows, cols].
      seed: root of the noise, 0 to 2^32 - 1.
      batch: images in flight at once; 0 means one microbatch a device. Changes no picture.
      guidance: another scale than the settings', where those guide; compiles nothing.
    """
    rows = {"label": label, "index": index, "grains": np.asarray(grains, np.int32)}
    params, scale = self.rows.everywhere(params), np.float32(self._scale(guidance))
    out, in_flight = None, []

    def collect(out):
      for places, pictures in in_flight:
        pictures = np.asarray(pictures)
        out = np.empty((len(label), *pictures.shape[1:]), np.uint8) if out is None else out
        out[places] = pictures[: len(places)]
      in_flight.clear()
      return out

    for capacity, members in self._by_capacity(rows["grains"]):
      for places, chunk in self.rows.chunks(rows, members):
        chunk |= self._tokens(chunk["grains"], capacity)
        in_flight.append((places, self._images(params, chunk, np.uint32(seed), scale)))
        if len(in_flight) * self.rows.total >= batch:
          out = collect(out)
    return collect(out)

  def compile_maps(self, params):
    """The executable that draws maps, for params of these shapes."""
    rows = self._rows_of(np.zeros((self.rows.total, *self.models.regions), np.int32))
    del rows["grains"]
    return self._maps.lower(*self.rows.shapes(params, rows), np.uint32(0)).compile()

  def compile_images(self, params):
    """The executable that draws images of the most tokens, for params of these shapes."""
    finest = len(self.models.factors) - 1
    grains = np.full((self.rows.total, *self.models.regions), finest, np.int32)
    rows = self._rows_of(grains)
    for capacity, _ in self._by_capacity(grains):
      rows |= self._tokens(grains, capacity)
    shapes = self.rows.shapes(params, rows)
    return self._images.lower(*shapes, np.uint32(0), np.float32(1)).compile()

  def _scale(self, wanted: float | None) -> float:
    default = self.settings.guidance
    if wanted is None or wanted == default:
      return default
    if default == 1 or not math.isfinite(wanted):
      raise UserError(
        f"guidance={wanted} of a generator whose settings have {default}: wanted a number, and "
        "settings that guide (not 1); make another generator."
      )
    return wanted

  def _rows_of(self, grains: np.ndarray) -> dict:
    number = np.zeros(len(grains), np.int32)
    return {"label": number, "index": number, "grains": grains}

  def _times(self) -> jax.Array:
    return self.settings.times(self.models.process.schedule)

  def _by_capacity(self, grains: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Every capacity that the maps need, and the rows that need it."""
    factors = self.models.factors
    if len(factors) == 1:
      yield 0, np.arange(len(grains))
      return
    regions = grains.shape[1] * grains.shape[2]
    capacities = buckets.capacity_for(buckets.num_tokens(grains, factors), regions, factors)
    for capacity in np.unique(capacities):
      yield int(capacity), np.flatnonzero(capacities == capacity)

  def _tokens(self, grains: np.ndarray, capacity: int) -> dict:
    if not capacity:
      return {}
    return buckets.token_index(grains, self.models.factors, capacity)._asdict()

  def _sample_maps(self, params, rows, seed):
    m, s = self.models, self.settings
    return grain_maps.sample_maps(
      lambda cells, label: m.map_logits(params, cells, label),
      rows["label"],
      rng.stream(rng.sample_keys(seed, rows["index"]), "map"),
      shape=m.regions,
      num_grains=len(m.factors),
      steps=s.map_steps,
      temperature=s.map_temperature,
      order=s.map_order,
      guidance=s.map_guidance,
      null_label=jnp.asarray(self._base)[rows["label"]],
    )

  def _sample_images(self, params, rows, seed, scale):
    m, s = self.models, self.settings
    keys = rng.sample_keys(seed, rows["index"])
    grains = rows["grains"]
    noise_fn = lambda keys: structure.structured_noise(keys, grains, m.factors, m.channels)

    def model_fn(z, t, label=rows["label"]):
      doubled = guidance_.twice(rows) if z.shape[0] > grains.shape[0] else rows
      return m.content(params, z, t, label, doubled["grains"], _tokens(doubled))

    if s.guidance != 1:
      base = jnp.asarray(self._base)[rows["label"]]
      how = s.guidance_channels, s.guidance_interval, s.guidance_rescale
      model_fn = guidance_.guided(model_fn, rows["label"], base, scale, *how)
    correct = None
    if m.correct_x0 is not None:
      correct = lambda x0, z, t: m.correct_x0(params, x0, z, t, grains)
    z = sampler.sample(
      m.process.denoiser(model_fn),
      solvers.make(s.stepper, m.process, noise_fn),
      self._times(),
      noise_fn(rng.stream(keys, "start")),
      rng.stream(keys, "steps"),
      correct,
    )
    z = structure.unstandardize(z, grains, m.factors, m.mean, m.std)
    return to_uint8(m.decode(params, z))


def _tokens(rows: dict) -> buckets.TokenIndex | None:
  if "slot" not in rows:
    return None
  return buckets.TokenIndex(*(rows[field] for field in buckets.TokenIndex._fields))


def to_uint8(x):
  """Images in [-1, 1] as bytes: clamp(127.5 x + 128), truncated, as every DiT does.

  Of NumPy or of JAX, and so is the result.
  """
  return (127.5 * x + 128).clip(0, 255).astype(np.uint8)


def to_float(images) -> jax.Array:
  """uint8 to f32 in [-1, 1]; `to_uint8` takes it back exactly."""
  return images.astype(jnp.float32) / 127.5 - 1
