"""When something is due, and one line that says how a run goes."""

import sys
import time


def due(step: int, every: int, total: int) -> bool:
  """Whether the work of every `every` steps falls on `step`.

  Args:
    step: finished steps, so that the last one is `total`; never due at 0.
    every: interval; 0 means never.
    total: the last step is always due.
  """
  return every > 0 and step > 0 and (step % every == 0 or step == total)


class Progress:
  """Images per second, time left, loss and gradient norm: a tqdm bar on a terminal, else lines.

  The first step compiles, so the clock starts when it has been dispatched.
  """

  def __init__(
    self, total: int, batch_size: int, first_step=0, label="", stream=None, now=None, unit="step"
  ):
    """Starts the display.

    Args:
      total: steps of the whole run.
      batch_size: global, in images.
      first_step: finished steps of a resumed run.
      label: stage name at the head of each line.
      stream: where to write; None is stderr.
      now: seconds from any origin; None is the monotonic clock.
      unit: what a step is called.
    """
    self._unit = unit
    self._total, self._batch_size, self._label = total, batch_size, label
    self._stream = sys.stderr if stream is None else stream
    self._now = time.monotonic if now is None else now
    self._start = None  # (step, time) of the first step after the compile
    self._last = None  # the same of the last line
    self._step = first_step
    self._bar = None
    if self._stream.isatty():
      try:
        import tqdm
      except ImportError:  # plain lines will do
        return
      self._bar = tqdm.tqdm(
        total=total, initial=first_step, desc=label, file=self._stream, dynamic_ncols=True
      )

  def tick(self, step: int) -> None:
    """Says that `step` steps have been dispatched."""
    if self._start is None:
      self._start = self._last = (step, self._now())
    if self._bar is not None:
      self._bar.update(step - self._step)
    self._step = step

  def report(self, step: int, metrics: dict) -> str:
    """Shows and returns the line of `step`, from host metrics with `loss` and `grad_norm`."""
    rate, eta = self._rates(step)
    parts = [f"{self._unit} {step}/{self._total}"]
    parts += [
      f"{name} {float(metrics[key]):.4g}"
      for key, name in (("loss", "loss"), ("grad_norm", "grad norm"))
      if key in metrics
    ]
    if rate is not None:
      parts += [f"{rate:.4g} img/s", f"ETA {duration(eta)}"]
    if metrics.get("skipped", 0):
      parts.append(f"skipped {int(metrics['skipped'])}")
    line = ", ".join(parts)
    if self._bar is not None:
      self._bar.set_postfix_str(line.partition(", ")[2], refresh=True)
    else:
      self.write(f"[{self._label}] {line}" if self._label else line)
    return line

  def write(self, line: str) -> None:
    """A line of its own that does not tear the bar."""
    if self._bar is not None:
      self._bar.write(line, file=self._stream)
    else:
      print(line, file=self._stream, flush=True)

  def close(self) -> None:
    """Ends the bar."""
    if self._bar is not None:
      self._bar.close()

  def _rates(self, step: int):
    """Images per second since the last line, and seconds left at the mean speed since the start."""
    if self._start is None or step <= self._last[0]:
      return None, None
    now = self._now()
    since_last, since_start = now - self._last[1], now - self._start[1]
    if since_last <= 0 or since_start <= 0:
      return None, None
    rate = (step - self._last[0]) * self._batch_size / since_last
    eta = (self._total - step) * since_start / (step - self._start[0])
    self._last = (step, now)
    return rate, eta


def duration(seconds: float) -> str:
  """Seconds as "42s", "3m05s", "2h07m" or "3d04h"."""
  seconds = round(seconds)
  if seconds < 60:
    return f"{seconds}s"
  if seconds < 3600:
    return f"{seconds // 60}m{seconds % 60:02d}s"
  if seconds < 86400:
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
  return f"{seconds // 86400}d{seconds % 86400 // 3600:02d}h"
