"""Which column is the class: by its usual names, by the user's, never by guess."""

import types

import pytest

from dit_jax.core.errors import UserError
from dit_jax.data import columns


def keys(label_key="", super_key=""):
  return types.SimpleNamespace(label_key=label_key, super_key=super_key)


@pytest.mark.parametrize(
  ("names", "data", "want"),
  [
    (["path", "label"], keys(), ("label",)),
    (["path"], keys(), ()),
    (["superclass"], keys(), ()),
    (["label", "coarse_label"], keys(), ("coarse_label", "label")),
    (["img", "fine_label", "coarse_label"], keys(), ("coarse_label", "fine_label")),
    (["label", "fine_label"], keys(), ("label",)),
    (["label", "kind"], keys(super_key="kind"), ("kind", "label")),
    (["label", "genus", "family"], keys(super_key="genus, family"), ("family", "genus", "label")),
    (["label", "kind", "superclass"], keys("kind"), ("superclass", "kind")),
    (["label", "superclass"], keys("superclass"), ("superclass",)),
    (["label", "superclass"], types.SimpleNamespace(), ("superclass", "label")),  # an older config
  ],
)
def test_levels(names, data, want):
  assert columns.levels(names, data, "the set") == want


@pytest.mark.parametrize(
  ("names", "data", "message"),
  [
    (["path", "label"], keys("lable"), "data.label_key names 'lable', .* did you mean 'label'"),
    (["path", "label"], keys(super_key="zzz"), "data.super_key names 'zzz', .* has path, label"),
    (["label"], keys(super_key=","), "data.super_key names ''"),
    (["path", "kind"], keys(super_key="kind"), "no class; set data.label_key"),
    (["label", "kind"], keys(super_key="label"), "names the class"),
    (["label", "kind"], keys(super_key="kind,kind"), "one column twice"),
  ],
)
def test_refusals(names, data, message):
  with pytest.raises(UserError, match=message):
    columns.levels(names, data, "the set")


def test_numbers_keep_their_order_as_names():
  names = columns.by_number([10, 2, 2, 0], (), "the set")
  assert names == {0: "00", 2: "02", 10: "10"}
  assert columns.by_number([1, 0], ("C/V Van", " cat "), "the set") == {0: "C-V Van", 1: "cat"}
  assert columns.by_number([1, 2], ("7", "10", "8"), "the set") == {1: "10", 2: "08"}
  assert columns.by_text(["10", "2"]) == {"10": "10", "2": "02"}
  assert columns.by_text(["10", "b"]) == {"10": "10", "b": "b"}
  assert columns.by_text(["1", "01", "10"]) == {"1": "1", "01": "01", "10": "10"}
  assert columns.by_number([0, 1], ("1", "01"), "the set") == {0: "1", 1: "01"}
  assert columns.by_number([], (), "the set") == columns.by_text([]) == {}


@pytest.mark.parametrize(
  ("values", "names", "message"),
  [
    ([-1, 0], (), "the class -1"),
    ([0, 2], ("a", "b"), "the class 2"),
    ([0], ("a", "a"), "two classes 'a'"),
    ([0], ("a/b", "a-b"), "two classes 'a-b'"),
  ],
)
def test_numbers_without_a_name_of_their_own(values, names, message):
  with pytest.raises(UserError, match=message):
    columns.by_number(values, names, "the set")
