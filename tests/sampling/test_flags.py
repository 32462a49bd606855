"""Flags of how to sample: what is given, under the names of the settings; the rest stays open."""

import dataclasses

import pytest
from absl import flags

from dit_jax.core.errors import UserError
from dit_jax.sampling import flags as sampling_flags
from dit_jax.sampling import generate


def parse(*words):
  own = flags.FlagValues()
  read = sampling_flags.define(own)
  own(["draw", *words])
  return read()


def test_nothing_given_changes_nothing():
  assert set(parse().values()) == {None}
  assert set(parse()) <= {field.name for field in dataclasses.fields(generate.Settings)}


def test_every_flag_is_a_setting():
  words = ["--steps=9", "--sampler=ddim", "--guidance=1.5", "--guidance_level=2"]
  got = parse(*words, "--guidance_interval=100,800", "--guidance_channels=3", "--spacing=karras")
  settings = generate.Settings(**{name: x for name, x in got.items() if x is not None})
  assert (settings.steps, settings.stepper, settings.guidance) == (9, "ddim", 1.5)
  assert (settings.guidance_level, settings.guidance_channels) == (2, 3)
  assert settings.spacing == "karras"
  assert settings.guidance_interval == (100.0, 800.0)


def test_an_interval_of_words_is_refused():
  with pytest.raises(UserError, match="--guidance_interval=low,high must be LOW,HIGH"):
    parse("--guidance_interval=low,high")
