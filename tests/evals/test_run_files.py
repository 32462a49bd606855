"""A run's files: what is there is read, what is torn is noted, and nothing is raised."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dit_jax.evals.run_files import Files, is_number, numbered


def png(width=5, height=3) -> bytes:
  file = io.BytesIO()
  Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(file, "PNG")
  return file.getvalue()


def huge() -> bytes:
  """A small file that says it has 900 million pixels."""
  data = png()
  header = b"IHDR" + struct.pack(">2I", 30_000, 30_000) + data[24:29]
  return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def test_metrics_by_name_and_step(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 4, "loss": 2, "a": null}\n{"step": 2, "loss": 3.5, "kl": 1}\n')
  files = Files(tmp_path)
  assert files.metrics(path) == {"loss": {2: 3.5, 4: 2.0}, "a": {}, "kl": {2: 1.0}}
  assert list(files.metrics(path)["loss"]) == [2, 4]
  assert files.notes == []
  assert files.newest == path.stat().st_mtime


def test_of_a_step_told_twice_the_later_line_counts(tmp_path):
  """A run that was killed and resumed."""
  path = tmp_path / "metrics.jsonl"
  lines = [(1, "1"), (2, "2"), (2, "5"), (1, "null")]
  path.write_text("\n".join(f'{{"step": {step}, "x": {x}}}' for step, x in lines))
  assert Files(tmp_path).metrics(path) == {"x": {2: 5.0}}


def test_torn_lines_are_counted(tmp_path):
  path = tmp_path / "metrics.jsonl"
  bad = ['{"step": 3, "lo', "[1]", '{"loss": 1}', '{"step": "3"}', '{"step": true}', "[" * 100_000]
  good = ['{"step": 1, "loss": 1}', '{"step": 2, "loss": NaN, "t": "x", "b": true}']
  path.write_bytes("\n".join([good[0], *bad, good[1]]).encode() + b"\n\xff\xfe")
  files = Files(tmp_path)
  assert files.metrics(path)["loss"] == {1: 1.0}
  assert files.notes == ["metrics.jsonl: 7 torn lines left out"]


def test_json_is_an_object_or_nothing(tmp_path):
  files, path = Files(tmp_path), tmp_path / "card.json"
  told = {"missing": None, "cut": '{"a": 1', "a list": "[1]", "empty": "", "deep": "[" * 100_000}
  for text in told.values():
    if text is not None:
      path.write_text(text)
    assert files.json(path) == {}
  assert len(files.notes) == 5
  path.write_text('{"a": [1]}')
  assert files.json(path) == {"a": [1]}
  assert files.json(tmp_path / "other.json", needed=False) == {}
  assert len(files.notes) == 5


def test_a_picture_is_its_bytes(tmp_path):
  (tmp_path / "a.png").write_bytes(png())
  picture = Files(tmp_path).picture(tmp_path / "a.png", "samples")
  head, _, data = picture.uri.partition(",")
  assert (head, base64.b64decode(data)) == ("data:image/png;base64", png())
  assert (picture.title, picture.width, picture.height) == ("samples", 5, 3)


@pytest.mark.parametrize(
  ("data", "said"),
  [
    (None, "is missing"),
    (b"", "torn or no PNG"),
    (png()[:-20], "torn or no PNG"),
    (png()[:45] + b"\x00\x00" + png()[47:], "torn or no PNG"),
    (b"GIF89a" + png(), "torn or no PNG"),
    (huge(), "too large"),
  ],
  ids=["missing", "empty", "cut", "flipped", "another format", "huge"],
)
def test_a_broken_picture_is_noted(tmp_path, data, said):
  if data is not None:
    (tmp_path / "a.png").write_bytes(data)
  files = Files(tmp_path)
  assert files.picture(tmp_path / "a.png", "x") is None
  [note] = files.notes
  assert note.startswith("a.png: ")
  assert said in note


def test_folders_and_numbers_in_names(tmp_path):
  for name in ("step_00000010.png", "step_9.png", "step_x.png", "step_3.png.tmp"):
    (tmp_path / name).touch()
  (tmp_path / "b").mkdir()
  (tmp_path / "a").mkdir()
  (tmp_path / ".hidden").mkdir()
  assert list(numbered(tmp_path, r"step_(\d+)\.png")) == [9, 10]
  assert numbered(tmp_path / "absent", r"(\d+)") == {}
  files = Files(tmp_path)
  assert [p.name for p in files.folders(tmp_path)] == ["a", "b"]
  assert files.folders(tmp_path / "absent") == []
  assert files.folders(tmp_path / "step_9.png") == []
  assert len(files.notes) == 1


def test_numbers():
  assert [is_number(x) for x in (1, 2.5, True, None, "1", float("nan"))] == [True] * 2 + [False] * 4
