"""Eight images of eight classes, through all stages and back from pure noise.

A model that has seen only eight images must give them back: every stage, the latent statistics, the
grain structure of the noise and the labels have to be right for that. The circles share one grain
map and the flags another, so a map tells the kind and only the label tells which one. Minutes long.
"""

import jax
import numpy as np
import pytest
import real_run

from dit_jax.core import config as configs
from dit_jax.data import grain_maps, sources
from dit_jax.evals import frechet
from dit_jax.sampling import generate
from dit_jax.tasks import dvae, restored

SIZE = 32  # pixels; of tests/recipes/memorise.py
PICTURES = (  # circles (red, green, purple, orange) and flags of three upright stripes, in turn
  *("1f534", "1f1eb-1f1f7", "1f7e2", "1f1ee-1f1f9"),
  *("1f7e3", "1f1ee-1f1ea", "1f7e0", "1f1e8-1f1ee"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """root/class/picture.png, drawn on white by the Twemoji source."""
  from PIL import Image

  data = dict(source="twemoji", path="", image_size=SIZE, holdout=0, only=())
  source = sources.open_source(configs.parse_arg("", **data), "all")
  place = {source.name(i).rpartition("/")[2].removesuffix(".png"): i for i in range(len(source))}
  root = tmp_path_factory.mktemp("eight")
  for i, name in enumerate(PICTURES):  # the order of the classes is that of their folders
    (root / f"{i}_{name}").mkdir()
    Image.fromarray(source[place[name]]["image"]).save(root / f"{i}_{name}" / f"{name}.png")
  return root


@pytest.mark.all
def test_eight_images_come_back_from_noise(folder, tmp_path):
  real_run.main("memorise.py", tmp_path / "run", f"--config.data.path={folder}")
  run = restored.load(tmp_path / "run")
  source = sources.open_source(run.config.data, "train")
  batch = dvae.collate([source[i] for i in range(len(source))])
  images, label = batch["image"], batch["label"]
  grains = grain_maps.GrainMaps.from_record(run.meta["thresholds"]).add_to(batch)["grains"]
  assert len(np.unique(grains, axis=0)) == 2
  np.testing.assert_array_equal(grains, np.roll(grains, 2, axis=0))

  stage = dvae.DVAETask(run.config.dvae, SIZE)
  again = np.asarray(jax.jit(stage.reconstruct)({"gen": run.params["dvae"]}, images, grains))
  generator = generate.Generator(
    run.models, run.settings(steps=50, guidance=1.0), jax.devices()[:1]
  )

  def mean_psnr(label, grains):
    index = np.arange(8, dtype=np.int32)
    drawn = generator.images(run.params, label, index, grains, seed=5)
    return float(frechet.psnr(images, drawn).mean())

  own = float(frechet.psnr(images, again).mean())
  sampled = mean_psnr(label, grains)
  other_label = mean_psnr(np.roll(label, 2), grains)
  other_map = mean_psnr(label, np.roll(grains, 1, axis=0))
  print(
    f"\nmemorisation: DVAE {own:.2f} dB, from noise {sampled:.2f} dB, labels permuted "
    f"{other_label:.2f} dB, maps permuted {other_map:.2f} dB"
  )
  assert sampled >= 25
  assert sampled >= own - 2
  assert other_label <= sampled - 8
  assert other_map <= sampled - 8
