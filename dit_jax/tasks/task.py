"""What the training loop is handed: one stage, by value."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from dit_jax.data import pipeline
from dit_jax.training import peft


class Timed(NamedTuple):
  """An evaluator inside training.

  Attributes:
    name: for messages.
    every: steps of the stage.
    run: (params, frozen, step) -> numbers by name; all processes call it, one writes files.
  """

  name: str
  every: int
  run: Callable[[Any, Any, int], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Task:
  """A stage as the loop sees it.

  Attributes:
    name: the stage, its folder under the workdir.
    init: key -> params.
    frozen: tree that the loss needs and nothing updates; saved once, by its hash. Of a fine-tune's
      base it holds shapes.
    phases: (steps done before it, loss function), ascending from 0; each phase is one program. A
      loss function is (params, frozen, batch, keys, norm, step) -> (loss, metrics); every term
      is a sum over the batch divided by the denominators in `norm`, so micro-batches add up.
    normalizers: global batch -> norm.
    batches: first step -> endless iterator of this process's rows, dicts with `index` [b].
    num_images: images an epoch.
    fingerprint: of the data and of everything made from it that the stage reads.
    meta: JSON-ready facts that sampling needs: class table, thresholds, latent statistics.
    preview: (params, frozen) -> uint8 picture [H, W, 3] that shows how far the stage is.
    measured: (params, frozen) -> JSON-ready facts of averaged weights that their checkpoint keeps
      in its meta; None where there are none.
    skipped: () -> names of unreadable images met so far.
    evaluators: of averaged weights.
  """

  name: str
  init: Callable[[Any], Any]
  frozen: Any
  phases: tuple[tuple[int, Callable[..., tuple[Any, dict]]], ...]
  normalizers: Callable[[dict], dict]
  batches: Callable[[int], Iterator[dict]]
  num_images: int
  fingerprint: str
  meta: dict
  preview: Callable[[Any, Any], np.ndarray]
  measured: Callable[[Any, Any], dict] | None = None
  skipped: Callable[[], list[str]] = list
  evaluators: tuple[Timed, ...] = ()

  def tuned(self, how: peft.Peft) -> "Task":
    """The stage where only the parameters that `how` names are trained, the rest being frozen."""
    return dataclasses.replace(
      self,
      init=how.init(self.init),
      frozen=self.frozen | how.base(self.init),
      phases=tuple((start, how.over_base(loss_fn)) for start, loss_fn in self.phases),
      preview=how.over_base(self.preview),
      measured=self.measured and how.over_base(self.measured),
      evaluators=tuple(e._replace(run=how.over_base(e.run)) for e in self.evaluators),
    )


def reader(config, name: str, source, **how) -> Callable[[int], Iterator[dict]]:
  """`Task.batches` of a stage over a source; `how` as for pipeline.batches."""
  return lambda first_step: pipeline.batches(
    source,
    config[name].batch_size,
    seed=config.seed,
    start_step=first_step,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    threads=config.data.workers,
    **how,
  )
