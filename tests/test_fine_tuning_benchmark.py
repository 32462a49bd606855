"""The benchmark of fine-tuning runs at a small size, and its rows say what its table does."""

import json
import pathlib
import subprocess
import sys

import pytest
import real_run

SCRIPT = pathlib.Path(__file__).resolve().parents[1] / "benchmarks" / "fine_tuning.py"


@pytest.mark.all
def test_rows_of_two_batch_sizes(tmp_path):
  words = ["--variant=S", "--depth=1", "--image-size=64", "--repeats=2", "--batch=1", "--also=2"]
  command = [sys.executable, str(SCRIPT), *words, "--kinds=full,efdit", f"--out={tmp_path / 'out'}"]
  run = subprocess.run(
    command, env=real_run.one_device(), capture_output=True, text=True, check=False
  )
  assert run.returncode == 0, run.stderr[-2000:]
  head, *rows = json.loads((tmp_path / "out").read_text())
  assert {"date", "device", "versions"} < set(head)
  named = [(row["kind"], row["batch"], "processor_s" in row) for row in rows]
  assert named == [("full", 2, False), ("efdit", 2, False), ("full", 1, True), ("efdit", 1, True)]
  for row in rows:
    full = next(r for r in rows if r["batch"] == row["batch"])
    assert row["to_first"] == {name: row[name] / full[name] for name in row["to_first"]}
    assert row["bytes"] >= row["argument_bytes"] + row["temporary_bytes"]
    assert all(row[name] > 0 for name in row["to_first"])
  assert rows[1]["trainable"] < rows[0]["trainable"] / 5
