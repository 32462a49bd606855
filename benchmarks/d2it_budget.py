"""What the runs of D2iT's comparisons cost: FLOPs by the analytic count, and minutes of a core."""

import dataclasses
import math

# FLOP a second of one thread of a CPU, and seconds of one, measured beside other work (CPU time,
# so that it hardly counts); jax 0.10.2, 2026-11-29. Small matrices and much that is no product.
RATES = {"dvae": 62e9, "dgt": 16e9, "dct": 22e9, "dit": 22e9}
SCORING = 0.04  # a picture: decoded, and its features taken
STARTING = 40.0  # a run: its programs compiled or read, its latents, its distances
PROCESSES = 2
_KNOWN = {}  # rows share models, and tracing takes seconds


@dataclasses.dataclass(frozen=True)
class Cost:
  """Of one run with one seed.

  Attributes:
    steps: stage -> "steps x batch" of what it trains itself.
    train: stage -> FLOPs of that.
    picture: FLOPs of the transformers for a picture.
    seconds: of one thread.
  """

  steps: dict[str, str]
  train: dict[str, float]
  picture: float
  seconds: float


def of_run(config, trains: tuple[str, ...], draws: bool, pictures: int, classes) -> Cost:
  """The cost of a run.

  Args:
    config: its recipe.
    trains: the stages that it trains itself.
    draws: whether its transformers draw the pictures.
    pictures: that are scored.
    classes: as tasks.sizes.latent_meta takes them.
  """
  count = lambda name, what: _counted(config, name, classes)[what]
  batch = lambda name: (config[name].total_steps, config[name].batch_size)
  steps = {name: "{} x {}".format(*batch(name)) for name in trains}
  train = {name: float(math.prod(batch(name))) * count(name, "train") for name in trains}
  calls = {name: config.sampling.steps for name in ("dct", "dit")}
  calls["dgt"] = config.sampling.map_steps
  drawn = {n: k * count(n, "forward") for n, k in calls.items() if draws and n in config.stages}
  seconds = STARTING + pictures * SCORING
  seconds += sum(flop / RATES[name] for name, flop in train.items())
  seconds += pictures * sum(flop / RATES[name] for name, flop in drawn.items())
  return Cost(steps, train, sum(drawn.values()), seconds)


def _counted(config, name: str, classes) -> dict[str, int]:
  """FLOPs of an image, forward and in training, as tasks.sizes.measure has them."""
  import jax

  from dit_jax.core import flops, rng
  from dit_jax.tasks import sizes

  key = str([name, config[name].model, config.dvae.model, config.dvae.ratios, classes])
  if key not in _KNOWN:
    init, forward, loss, frozen = sizes.parts(config, name, sizes.latent_meta(config, classes))
    params = jax.eval_shape(init, rng.abstract_key())
    train = flops.count(jax.grad(loss), params, frozen())
    _KNOWN[key] = {"forward": flops.count(forward, params), "train": train}
  return _KNOWN[key]


def print_table(costs: dict[str, Cost], seeds: int) -> None:
  """A line a row and stage, and the sums; the held-out pictures themselves are scored once."""
  print(f"{'row':14s} {'trains':6s} {'steps x batch':14s} {'TFLOP':>7s} {'GFLOP a':>8s}  minutes")
  print(f"{'':14s} {'':6s} {'':14s} {'a seed':>7s} {'picture':>8s}  of a core, {seeds} seeds")
  flops = minutes = 0.0
  for name, cost in costs.items():
    times = 1 if name == "held out" else seeds
    spent = times * cost.seconds / 60
    flops, minutes = flops + times * sum(cost.train.values()), minutes + spent
    for stage in tuple(cost.train) or ("-",):
      first = stage in tuple(cost.train)[-1:] or stage == "-"
      train = f"{cost.train[stage] / 1e12:7.2f}" if cost.train else f"{'-':>7s}"
      rest = f" {cost.picture / 1e9:8.2f}  {spent:7.1f}" if first else ""
      print(f"{name:14s} {stage:6s} {cost.steps.get(stage, '-'):14s} {train}{rest}".rstrip())
  print(
    f"training, all together: {flops / 1e12:.0f} TFLOP; with drawing and scoring "
    f"{minutes:.0f} minutes of a core, {minutes / PROCESSES:.0f} of {PROCESSES}",
    flush=True,
  )
