"""Diffusion transformers whose tokens follow the image and whose labels follow a hierarchy."""

__version__ = "0.1.0"
