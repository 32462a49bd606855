"""The benchmark's claim, short: a minute of training beats bicubic on images never trained on."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
BIRDS = ROOT.parent / "shared" / "data" / "birds100"


@pytest.mark.all
@pytest.mark.skipif(not BIRDS.is_dir(), reason="the bird photos are not beside this clone")
def test_the_network_beats_bicubic_and_its_weights_are_why(tmp_path):
  env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  words = [f"--data={BIRDS}", f"--out={tmp_path / 'out.json'}", "--steps=100", "--images=40"]
  command = [sys.executable, str(ROOT / "benchmarks" / "superres.py"), *words]
  run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
  assert run.returncode == 0, run.stderr[-2000:]
  found = json.loads((tmp_path / "out.json").read_text())["psnr_luma_db"]
  assert set(found) == {"degraded", "bicubic", "area"}
  degraded = found["degraded"]
  assert degraded["network"] >= degraded["bicubic"] + 0.3
  assert degraded["zeroed"] < degraded["bicubic"] + 0.15
