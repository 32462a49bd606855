"""A workdir as a run leaves it, of small files, without the run."""

import io
import json
import pathlib

import numpy as np
from PIL import Image

CONFIG = {
  "stages": {"__tuple__": ["dvae", "dct"]},
  "data": {
    "source": "folder",
    "path": "birds",
    "image_size": 64,
    "classes": {"__tuple__": [3, 2]},
    "holdout": 5,
    "only": {"__tuple__": []},
  },
  "seed": 7,
  "sampling": {"stepper": "ddim", "steps": 50, "guidance": 2.0},
  "dvae": {"batch_size": 8, "total_steps": 40, "optim": {"name": "adam", "lr": 0.002}},
  "dct": {"batch_size": 16, "total_steps": 100, "ema_decay": 0.995},
}
CLASSES = {"children": ["robin", "wren", "owl"], "superclasses": ["songbird", "raptor"]}


def png(shade: int = 90, width: int = 20, height: int = 10) -> bytes:
  """A flat picture."""
  file = io.BytesIO()
  Image.fromarray(np.full((height, width, 3), shade, np.uint8)).save(file, "PNG")
  return file.getvalue()


def evaluated(workdir: pathlib.Path, stage: str, step: int, evaluator: str, metrics, **facts):
  """An evaluation's folder, with two pictures."""
  folder = workdir / "evaluations" / f"{stage}_step_{step:08d}_{evaluator}"
  folder.mkdir(parents=True)
  card = dict(evaluator=evaluator, stage=stage, step=step, metrics=metrics, **facts)
  (folder / "card.json").write_text(json.dumps(card))
  (folder / "01_samples.png").write_bytes(png(30))
  (folder / "02_fine_regions.png").write_bytes(png(60))
  return folder


def write(workdir: pathlib.Path, config=CONFIG, classes=CLASSES) -> pathlib.Path:
  """dvae is done, dct is at 30 of 100 steps and was scored twice."""
  workdir.mkdir(parents=True)
  (workdir / "config.json").write_text(json.dumps(config))
  for stage, steps in (("dvae", range(10, 41, 10)), ("dct", range(5, 31, 5))):
    folder = workdir / stage
    (folder / "previews").mkdir(parents=True)
    lines = [dict(step=s, loss=1 + 2.0 / s, grad_norm=60.0 / s**2, skipped=0.0) for s in steps]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    (folder / "parameters.txt").write_text("| a | b |\nTotal: 54,596 -- 218,384 bytes\n")
    for step in (10, 20, 30):
      (folder / "previews" / f"step_{step:08d}.png").write_bytes(png(step))
    meta = folder / str(max(steps)) / "meta"
    meta.mkdir(parents=True)
    (meta / "metadata").write_text(json.dumps({"format": 1, "classes": classes}))
  how = dict(stepper="ddim", labels="balanced")
  evaluated(workdir, "dct", 20, "fidelity", {"VGG-FD": 60.5, "VGG-KID": None}, n=8, sampling=how)
  evaluated(workdir, "dct", 30, "fidelity", {"VGG-FD": 50.25, "VGG-KID": 0.5}, n=8, sampling=how)
  evaluated(workdir, "dvae", 40, "reconstruction", {"PSNR": 25.6})
  return workdir
