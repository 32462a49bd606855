"""Laws of the writer: a resumed series is the undisturbed one, and no disk stops a run."""

import io
import json
import sys

import jax
import numpy as np
import pytest

from dit_jax.core import writer


def lines(folder):
  return [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]


def write(folder, first, last, scale=1.0, first_step=0):
  with writer.Writer(folder, "dct", first_step) as w:
    for step in range(first, last):
      w.write(step, {"loss": np.float32(step * scale), "grad_norm": 1})


def test_resumed_series_is_the_undisturbed_one(tmp_path):
  write(tmp_path / "straight", 1, 7)
  write(tmp_path / "killed", 1, 6, scale=3.0)  # what the killed run saw past step 2 is forgotten
  with writer.Writer(tmp_path / "killed", "dct", 1):
    pass
  write(tmp_path / "killed", 1, 4)
  with (tmp_path / "killed" / "metrics.jsonl").open("a") as f:
    f.write('{"step": 4, "lo')  # killed in the middle of a line
  write(tmp_path / "killed", 3, 7, first_step=3)
  assert lines(tmp_path / "killed") == lines(tmp_path / "straight")


def test_lines_are_strict_json(tmp_path):
  with writer.Writer(tmp_path) as w:
    w.write(1, {"loss": float("nan"), "grad_norm": float("inf"), "ok": 2})
  (line,) = lines(tmp_path)
  assert line == {"step": 1, "loss": None, "grad_norm": None, "ok": 2.0}


def test_tensorboard_files_appear(tmp_path):
  pytest.importorskip("tensorboardX")
  with writer.Writer(tmp_path, "dct") as w:
    w.write(1, {"loss": 0.5})
    w.write_images(1, {"preview": np.zeros((4, 4, 3), np.uint8)})
  events = list((tmp_path / "tensorboard").glob("events*"))
  assert events
  text = b"".join(path.read_bytes() for path in events)
  assert b"dct/loss" in text
  assert b"dct/preview" in text


def test_jsonl_alone_where_tensorboardx_is_absent(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorboardX", None)
  with writer.Writer(tmp_path) as w:
    w.write(1, {"loss": 0.5})
    w.write_images(1, {"preview": np.zeros((4, 4, 3), np.uint8)})
  assert lines(tmp_path) == [{"step": 1, "loss": 0.5}]
  assert not (tmp_path / "tensorboard").exists()


def test_only_process_0_writes(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  write(tmp_path / "other", 0, 2)
  assert not (tmp_path / "other").exists()


def test_a_full_disk_warns_once_and_goes_on(tmp_path, capsys):
  class Full(io.StringIO):
    def write(self, _):
      raise OSError(28, "No space left on device")

  with writer.Writer(tmp_path) as w:
    w._file.close()
    w._file = Full()
    w.write(1, {"loss": 1.0})
    w.write(2, {"loss": 1.0})
  assert capsys.readouterr().err.count("No space left") == 1
