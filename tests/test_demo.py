"""The README's first command at the demo's tiny sizes: it installs, trains and reports."""

import json
import pathlib
import subprocess

import numpy as np
import pytest
import real_run
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[1]


def demo(workdir) -> str:
  env = real_run.one_device() | {"CONFIG": "configs/demo.py:tiny", "WORKDIR": str(workdir)}
  done = subprocess.run([ROOT / "launch" / "demo.sh"], env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stdout


@pytest.mark.all
def test_the_demo_ends_with_a_picture_and_its_numbers(tmp_path):
  workdir = tmp_path / "demo"
  said = demo(workdir)
  for stage in ("dvae", "dgt", "dct"):
    assert f"[{stage}] done in" in said
  picture = np.asarray(Image.open(workdir / "samples.png"))
  assert picture.shape == (4 * (16 + 2 * 68), 12 * 68, 3)  # four titled blocks of two rows of 12
  report = json.loads((workdir / "report.json").read_text())
  assert report["held_out_images"] > 100
  assert 0 <= report["near_copies"] <= 1
  assert set(report["alexnet_fd_to_train"]) == {"held", "samples", "noise"}
  assert all(np.isfinite(d) and d > 0 for d in report["alexnet_fd_to_train"].values())
  page = (workdir / "report.html").read_text()
  assert [f">{stage}<small>" in page for stage in ("dvae", "dgt", "dct")] == [True] * 3

  again = demo(workdir)
  assert again.count("finished before") == 3
  assert json.loads((workdir / "report.json").read_text()) == report
