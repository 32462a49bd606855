"""Class tables: names survive, ids depend on names alone, and a person can ask in words."""

import csv
import io
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dit_jax.core.errors import UserError
from dit_jax.data.hierarchy import ClassTable, did_you_mean, printable

PAIRS = [
  ("bird", "American_Crow"),
  ("bird", "crane"),
  ("machine", "crane"),
  ("machine", "drill, cordless"),
  ("machine", "3"),
]
TABLE = ClassTable.from_pairs(PAIRS)
NAMES = st.text(st.characters(exclude_characters="/", exclude_categories=["C"]), min_size=1)


def test_ids_are_ordered_by_superclass_then_child():
  assert TABLE.superclasses == ("bird", "machine")
  assert TABLE.children == ("American_Crow", "bird/crane", "3", "machine/crane", "drill, cordless")
  assert TABLE.parents == (0, 0, 1, 1, 1)
  assert TABLE.num_classes == 5


@given(st.lists(st.tuples(NAMES, NAMES), min_size=1), st.randoms())
def test_table_depends_on_the_set_of_pairs_alone(pairs, rng: random.Random):
  table = ClassTable.from_pairs(pairs)
  again = [*pairs, pairs[0]]
  rng.shuffle(again)
  assert ClassTable.from_pairs(again) == table
  full = [table.full_name(i) for i in range(table.num_classes)]
  assert sorted(full) == sorted({f"{parent}/{child}" for parent, child in pairs})
  assert list(table.parents) == sorted(table.parents)


@given(st.lists(st.tuples(NAMES, NAMES)))
def test_json_round_trip(pairs):
  table = ClassTable.from_pairs(pairs)
  assert ClassTable.from_json(json.loads(json.dumps(table.to_json()))) == table
  assert hash(table) == hash(ClassTable.from_json(table.to_json()))


@given(st.lists(st.tuples(NAMES, NAMES), min_size=1))
def test_every_class_resolves_by_its_quoted_name_its_full_name_and_its_id(pairs):
  table = ClassTable.from_pairs([(printable(a).strip(), printable(b).strip()) for a, b in pairs])
  if not all(table.children) or not all(table.superclasses):
    return
  ids = list(range(table.num_classes))
  assert table.resolve(",".join(f"#{i}" for i in ids)) == ids
  for names in (table.children, [table.full_name(i) for i in ids]):
    line = io.StringIO()
    csv.writer(line, quoting=csv.QUOTE_ALL).writerow(names)
    want = [int(n[1:]) if is_id(n) else i for i, n in enumerate(names)]
    if all(i < len(ids) for i in want):
      assert table.resolve(line.getvalue().rstrip("\r\n")) == want


def is_id(name):
  return name.startswith("#") and name[1:].isdecimal()


@pytest.mark.parametrize(
  ("text", "ids"),
  [
    ("American_Crow", [0]),
    ("bird/American_Crow", [0]),  # always accepted
    ("machine/crane,bird/crane", [3, 1]),
    ('"drill, cordless", American_Crow', [4, 0]),
    ("3", [2]),  # an exact name wins over an id
    ("#3", [3]),
    ("4", [4]),  # no such name
    ("all", [0, 1, 2, 3, 4]),
    ("#0,#0", [0, 0]),
  ],
)
def test_resolve(text, ids):
  assert TABLE.resolve(text) == ids


def test_a_class_named_all_is_that_class():
  table = ClassTable.from_pairs([("a", "all"), ("a", "b")])
  assert table.resolve("all") == [0]


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("american crow", "did you mean 'American_Crow'"),
    ("bird/American_Craw", "did you mean 'bird/American_Crow'"),
    ("crane", "'bird/crane', 'machine/crane'"),
    ("machine", "superclass; ask for its classes: '3', 'machine/crane'"),
    ("#5", "#0 to #4"),
    ("7", "#0 to #4"),
    ("-1", "#0 to #4"),
    ("#-1", "#0 to #4"),
    ("", "empty name"),
    ("3,,4", "empty name"),
    ('"drill', "cannot be read"),
    ("zzzzzz", "no class is named 'zzzzzz'\\."),
  ],
)
def test_a_wrong_name_says_what_to_do(text, message):
  with pytest.raises(UserError, match=message):
    TABLE.resolve(text)


def test_unconditional_table():
  table = ClassTable()
  assert table.num_classes == 0
  assert ClassTable.from_json(table.to_json()) == table
  assert table.resolve("all") == [0]
  with pytest.raises(UserError, match="unconditional"):
    table.resolve("robin")


def test_names_compare_in_composed_unicode():
  table = ClassTable.from_pairs([("oiseaux", printable("me\u0301sange"))])
  assert table.children == ("m\u00e9sange",)
  assert table.resolve("me\u0301sange") == table.resolve("m\u00e9sange") == [0]


def test_bytes_that_are_no_utf8_become_text():
  name = printable(b"caf\xe9".decode("utf-8", "surrogateescape"))
  assert name == "caf\\xe9"
  assert name.encode("utf-8")


@pytest.mark.parametrize(
  "values",
  [
    {"children": ["a"], "superclasses": ["s"], "parents": []},
    {"children": ["a"], "superclasses": ["s"], "parents": [1]},
    {"children": ["a", "a"], "superclasses": ["s"], "parents": [0, 0]},
    {"children": ["a"]},
    ["a"],
  ],
)
def test_a_damaged_table_is_refused(values):
  with pytest.raises(UserError):
    ClassTable.from_json(values)


def test_suggestions_keep_the_first_of_names_that_differ_by_case():
  assert did_you_mean("robin", ["Robin", "ROBIN"]) == "; did you mean 'Robin'?"
  assert did_you_mean("robin", []) == ""
