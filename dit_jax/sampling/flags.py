"""The flags of a command that draws: how, where it is not to be as the run says."""

from collections.abc import Callable

from absl import flags

from dit_jax.core.errors import UserError
from dit_jax.diffusion import solvers
from dit_jax.diffusion.spacing import SPACINGS


def define(flag_values: flags.FlagValues) -> Callable[[], dict]:
  """Defines them on an entry point's own flags.

  Returns:
    () -> fields of generate.Settings, None where the run's value is wanted.
  """
  own = {"flag_values": flag_values}
  integer, decimal = flags.DEFINE_integer, flags.DEFINE_float
  interval = flags.DEFINE_list(
    "guidance_interval", None, "Guide between these model times: LOW,HIGH.", **own
  )
  holders = {
    "steps": integer("steps", None, "Steps; default: the run's.", **own),
    "stepper": flags.DEFINE_string(
      "sampler", None, f"One of {', '.join(solvers.NAMES)}; default: the run's.", **own
    ),
    "spacing": flags.DEFINE_string(
      "spacing", None, f"Of times: auto, {', '.join(SPACINGS)}; default: the run's.", **own
    ),
    "guidance": decimal("guidance", None, "Scale; default: the run's.", **own),
    "guidance_level": integer(
      "guidance_level", None, "Guide away from this level, 1 the superclass.", **own
    ),
    "guidance_channels": integer(
      "guidance_channels", None, "Guide the first channels of a latent; 0: all.", **own
    ),
    "guidance_rescale": decimal(
      "guidance_rescale", None, "Take back the contrast of guidance: 0 to 1.", **own
    ),
  }

  def read() -> dict:
    values = {name: holder.value for name, holder in holders.items()}
    return values | {"guidance_interval": _interval(interval.value)}

  return read


def _interval(texts: list[str] | None) -> tuple[float, ...] | None:
  try:
    return None if texts is None else tuple(map(float, texts))
  except ValueError as e:
    raise UserError(f"--guidance_interval={','.join(texts)} must be LOW,HIGH, as 100,800.") from e
