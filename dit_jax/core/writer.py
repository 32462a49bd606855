"""Metrics on disk: one JSON object a line, and TensorBoard where tensorboardX is installed."""

import json
import math
import pathlib
import sys

import jax
import numpy as np

from dit_jax.core import files


class Writer:
  """Writes `workdir/metrics.jsonl` and TensorBoard events; only process 0 writes.

  A resumed run drops what the killed one had written past its checkpoint, so the series is that of
  a run that was never disturbed. A full disk costs metrics and a warning, never the run.
  """

  def __init__(self, workdir, tag: str = "", first_step: int = 0):
    """Opens the files.

    Args:
      workdir: made if missing.
      tag: head of the names in TensorBoard, "dct" -> "dct/loss".
      first_step: the first step that this run will write; older lines stay, later ones go.
    """
    self._file = self._board = None
    self._tag, self._warned = tag, False
    if jax.process_index() != 0:
      return
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "metrics.jsonl"
    _drop_from(path, first_step)
    self._file = path.open("a", encoding="utf-8")
    try:
      from tensorboardX import SummaryWriter
    except ImportError:  # JSONL alone is complete
      return
    self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step or None)

  def write(self, step: int, scalars: dict) -> None:
    """Writes {name: number} of one step; not-a-number and infinity become null in the JSON."""
    if self._file is None:
      return
    values = {name: float(value) for name, value in scalars.items()}
    line = {"step": int(step)}
    line |= {name: value if math.isfinite(value) else None for name, value in values.items()}
    with self._disk_errors_warn():
      self._file.write(json.dumps(line, allow_nan=False) + "\n")
      self._file.flush()
      if self._board is not None:
        for name, value in values.items():
          self._board.add_scalar(self._name(name), value, int(step))

  def write_images(self, step: int, images: dict) -> None:
    """Writes {name: uint8 [h, w, 3]} to TensorBoard."""
    if self._board is None:
      return
    with self._disk_errors_warn():
      for name, image in images.items():
        self._board.add_image(self._name(name), np.asarray(image), int(step), dataformats="HWC")
      self._board.flush()

  def close(self) -> None:
    """Flushes and closes; may be called twice."""
    if self._file is not None:
      with self._disk_errors_warn():
        self._file.close()
        if self._board is not None:
          self._board.close()
    self._file = self._board = None

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def _name(self, name: str) -> str:
    return f"{self._tag}/{name}" if self._tag else name

  def _disk_errors_warn(self):
    return _WarnOnce(self)


class _WarnOnce:
  """Turns an OSError inside a block of the writer into one warning a run."""

  def __init__(self, writer: Writer):
    self._writer = writer

  def __enter__(self):
    return self

  def __exit__(self, kind, error, _):
    if not isinstance(error, OSError):
      return False
    if not self._writer._warned:
      print(f"warning: metrics are not being written ({error}); training goes on", file=sys.stderr)
    self._writer._warned = True
    return True


def read(path) -> list[dict]:
  """The lines of a metrics.jsonl; a last line that a kill tore in two is left out."""
  lines = []
  for text in pathlib.Path(path).read_text(encoding="utf-8").splitlines():
    try:
      lines.append(json.loads(text))
    except json.JSONDecodeError:
      continue
  return lines


def _drop_from(path: pathlib.Path, first_step: int) -> None:
  """Rewrites the file without steps >= first_step, in one rename."""
  if not path.exists():
    return
  kept = [line for line in read(path) if line["step"] < first_step]
  files.write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
