"""Pooled features of pictures: what the distances between sets are measured in."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dit_jax.core import tree as trees
from dit_jax.core.errors import UserError
from dit_jax.models import inception, lpips
from dit_jax.sampling import generate, parallel

TRUNKS = (*lpips.TRUNKS, "inception")


@dataclasses.dataclass(frozen=True)
class Features:
  """Pooled features of a set, and what made them.

  Attributes:
    values: float32 [n, d].
    trunk: the network's name.
    weights: hash of the trunk's parameters.
    image_size: pixels a side of the images.
    eval_size: pixels a side that the trunk saw.
    spatial: float32 [n, 2023] of sFID, by "inception" alone.
    logits: float32 [n, 1008] without bias, of the Inception Score; by "inception" alone.
  """

  values: np.ndarray
  trunk: str
  weights: str
  image_size: int
  eval_size: int
  spatial: np.ndarray | None = None
  logits: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.values)

  def take(self, rows: np.ndarray) -> "Features":
    """The features of some of the images."""
    names = [name for name in ("values", "spatial", "logits") if getattr(self, name) is not None]
    return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in names})


class Extractor:
  """Features of uint8 images, in float32 on as many devices of this process as they fill.

  Each device runs one program of `batch` images, so the features of an image do not depend on how
  many devices there are. In a run of several processes each has the features of the images that it
  was given: the caller gives each its part, and gathers (`Features.concat` joins them).

  Args:
    trunk: "vgg16" (512 features) or "alexnet" (256), those of LPIPS; or "inception" (2048), the
      FID's, which resizes to 299 px itself.
    eval_size: pixels a side to resize to first (bicubic, antialiased); 0 takes images as they are.
    batch: images a device and call; features change with it by rounding alone.
    weights_file: of "inception", see `weights.inception`.
  """

  def __init__(
    self, trunk: str = "vgg16", eval_size: int = 0, batch: int = 32, weights_file: str = ""
  ):
    if trunk not in TRUNKS:
      raise UserError(f"trunk={trunk!r} is unknown; choose one of {', '.join(TRUNKS)}.")
    self.trunk, self.eval_size, self.batch = trunk, eval_size, batch
    if trunk == "inception":
      params, forward = _inception(weights_file, eval_size)
    elif weights_file:
      raise UserError(f"a file of weights is for trunk='inception', and trunk is {trunk!r}.")
    else:
      params, forward = _lpips(trunk, eval_size)

    def highest(params, images):
      with jax.default_matmul_precision("highest"):  # TPUs and GPUs round inputs otherwise
        return forward(params, images)

    self.weights = trees.content_hash(params)
    self._params, self._forward, self._programs = params, highest, {}

  def __call__(self, images: np.ndarray) -> Features:
    """Features of uint8 images [n, s, s, 3].

    Raises:
      UserError: the array is something else, or the images are too small for the trunk.
    """
    return self.stream([images])

  def stream(self, chunks: Iterable[np.ndarray]) -> Features:
    """Features of images that come in chunks of any length, uint8 [m, s, s, 3] of one size.

    One chunk is held at a time, and less than a call's images of the one before.

    Raises:
      UserError: as for a call; the size changes between chunks, or there are no images.
    """
    made, pending, size, program = [], None, 0, None
    for images in _whole_calls(self._checked(chunks), self.batch * len(jax.local_devices())):
      size = images.shape[1]
      program = program or self._program(-(-len(images) // self.batch))
      ahead = program(images), len(images)
      if pending:
        made.append(_on_host(*pending))  # while the devices have the next ones
      pending = ahead
    if not pending:
      raise UserError("scoring takes uint8 images [n, s, s, 3], these are none; check the set.")
    made.append(_on_host(*pending))
    parts = {name: np.concatenate([part[name] for part in made]) for name in made[0]}
    seen = self.seen(size)
    return Features(
      trunk=self.trunk, weights=self.weights, image_size=size, eval_size=seen, **parts
    )

  def seen(self, image_size: int) -> int:
    """Pixels a side that the trunk sees of images of a size."""
    return inception.SIZE if self.trunk == "inception" else self.eval_size or image_size

  def _program(self, count: int) -> Callable:
    """A function of up to `batch` images for each of the first `count` devices."""
    devices = tuple(jax.local_devices()[:count])
    if devices not in self._programs:
      rows = parallel.Rows(self.batch, devices)
      params, fn = rows.everywhere(self._params), rows.jit(self._forward)

      def run(images):
        ((_, filled),) = rows.chunks(images, np.arange(len(images)))
        return fn(params, filled)

      self._programs[devices] = run
    return self._programs[devices]

  def _checked(self, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The chunks, each refused where the trunk does not take it."""
    size = None
    for images in chunks:
      square = images.ndim == 4 and images.shape[1] == images.shape[2] and images.shape[3] == 3
      if images.dtype != np.uint8 or not square or not len(images):
        raise UserError(
          f"scoring takes uint8 images [n, s, s, 3], this is {images.dtype} {list(images.shape)}; "
          "crop to squares and convert first."
        )
      size = size or images.shape[1]
      if images.shape[1] != size:
        raise UserError(
          f"images of {images.shape[1]} px came after such of {size} px; score images of one size."
        )
      least = lpips.SMALLEST.get(self.trunk, 1)
      if (seen := self.eval_size or size) < least:
        raise UserError(
          f"{self.trunk} needs {least} px or more, not {seen}; "
          "score larger images, or ask for a resize with eval_size=64."
        )
      yield images


def in_batches(fn, *arrays: np.ndarray, size: int = 32) -> np.ndarray:
  """fn over rows, `size` at a time; the last batch is padded, so that fn compiles once."""
  total, out = len(arrays[0]), []
  for start in range(0, total, size):
    rows = np.minimum(np.arange(start, start + size), total - 1)
    out.append(np.asarray(fn(*(a[rows] for a in arrays)))[: total - start])
  return np.concatenate(out)


def _lpips(trunk: str, eval_size: int) -> tuple[dict, Callable]:
  """Parameters, and a function of them and uint8 images."""
  model, params = lpips.LPIPS(trunk), lpips.load_weights(trunk)

  def forward(params, images):
    x = generate.to_float(images)
    if eval_size not in (0, x.shape[1]):
      shape = (len(x), eval_size, eval_size, 3)
      x = jnp.clip(jax.image.resize(x, shape, "cubic"), -1, 1)  # as a stored picture would be
    return {"values": model.apply({"params": params}, x, method="features")}

  return params, forward


def _inception(weights_file: str, eval_size: int) -> tuple[dict, Callable]:
  """As `_lpips`."""
  if not weights_file:
    raise UserError(
      "trunk='inception' needs its weights, which this package has not; give the file that the "
      "projects pytorch-fid and torch-fidelity publish, pt_inception-2015-12-05-6726825d.pth."
    )
  if eval_size not in (0, inception.SIZE):
    raise UserError(
      f"trunk='inception' resizes to {inception.SIZE} px itself; leave eval_size={eval_size} out."
    )
  model = inception.InceptionV3()

  def forward(params, images):
    out = model.apply({"params": params}, inception.prepare(images))
    return {"values": out.pool, "spatial": out.spatial, "logits": out.logits}

  return inception.load_weights(weights_file), forward


def _whole_calls(chunks: Iterable[np.ndarray], total: int) -> Iterator[np.ndarray]:
  """The same images in chunks of `total`, the last of what is left."""
  rest = None
  for images in chunks:
    images = images if rest is None else np.concatenate([rest, images])
    whole = len(images) // total * total
    yield from np.split(images[:whole], whole // total) if whole else ()
    rest = images[whole:].copy()  # of the chunk nothing else stays
  if rest is not None and len(rest):
    yield rest


def _on_host(made: dict, count: int) -> dict[str, np.ndarray]:
  return {name: np.asarray(x)[:count] for name, x in made.items()}
