"""Class tables: names survive, ids depend on names alone, and a person can ask in words."""

import csv
import io
import json
import random

import pytest
from hypothesis import given, settings
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


@settings(deadline=None)  # a busy machine is no error
@given(st.lists(st.tuples(NAMES, NAMES), min_size=1), st.randoms())
def test_table_depends_on_the_set_of_pairs_alone(pairs, rng: random.Random):
  table = ClassTable.from_pairs(pairs)
  again = [*pairs, pairs[0]]
  rng.shuffle(again)
  assert ClassTable.from_pairs(again) == table
  full = [table.full_name(i) for i in range(table.num_classes)]
  assert sorted(full) == sorted({f"{parent}/{child}" for parent, child in pairs})
  assert list(table.parents) == sorted(table.parents)


@settings(deadline=None)  # a busy machine is no error
@given(st.lists(st.tuples(NAMES, NAMES)))
def test_json_round_trip(pairs):
  table = ClassTable.from_pairs(pairs)
  assert ClassTable.from_json(json.loads(json.dumps(table.to_json()))) == table
  assert hash(table) == hash(ClassTable.from_json(table.to_json()))


@settings(deadline=None)  # a busy machine is no error
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


def test_halves_of_pairs_become_the_sign_of_what_is_no_character():
  name = json.loads(r'"a\ud800b\udc7f\udd00\udfff \ud83d\ude00"')
  assert printable(name) == "a\ufffdb\ufffd\ufffd\ufffd \U0001f600"
  assert printable("\udc80\udcff") == r"\x80\xff"


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
    {"children": ["a"], "superclasses": ["s"], "parents": [0.0]},
    {"children": ["a"], "superclasses": ["s"], "parents": [False]},
    {"children": ["a"], "superclasses": ["s"], "parents": [None]},
    {"children": [1], "superclasses": ["s"], "parents": [0]},
    {"children": ["a"], "superclasses": [None], "parents": [0]},
    {"children": [["a"]], "superclasses": ["s"], "parents": [0]},
    {"children": ["a"]},
    ["a"],
  ],
)
def test_a_damaged_table_is_refused(values):
  with pytest.raises(UserError):
    ClassTable.from_json(values)


OLD = """{"children": ["barn", "owl/x", "blue", "tit/x"], "superclasses": ["owl", "tit"],
  "parents": [0, 0, 1, 1]}"""  # as checkpoints and caches of two levels have stored it


def test_a_stored_table_of_two_levels_loads_and_is_stored_alike():
  table = ClassTable.from_json(json.loads(OLD))
  assert table.children == ("barn", "owl/x", "blue", "tit/x")
  assert (table.superclasses, table.parents, table.coarser) == (("owl", "tit"), (0, 0, 1, 1), ())
  assert table.to_json() == json.loads(OLD)
  assert [table.full_name(i) for i in (1, 2)] == ["owl/x", "tit/blue"]
  assert table == ClassTable.from_pairs(
    [("tit", "blue"), ("owl", "x"), ("owl", "barn"), ("tit", "x")]
  )


DEEP = ClassTable.from_paths(
  [
    ("animal", "bird", "sparrow", "house"),
    ("animal", "bird", "sparrow", "tree"),
    ("animal", "bird", "prunella", "dunnock"),
    ("plant", "mint", "prunella", "selfheal"),
    ("plant", "mint", "mint", "water"),
  ]
)


def test_levels_of_a_deep_tree_and_their_maps():
  assert DEEP.levels == (
    ("house", "tree", "dunnock", "selfheal", "water"),
    ("animal/bird/prunella", "sparrow", "mint", "plant/mint/prunella"),
    ("bird", "mint"),
    ("animal", "plant"),
  )
  assert DEEP.maps == ((1, 1, 0, 3, 2), (0, 0, 1, 1), (0, 1))
  assert DEEP.sizes == (5, 4, 2, 2)
  assert DEEP.full_name(2) == "animal/bird/prunella/dunnock"
  assert DEEP.full_name(0) == "animal/bird/sparrow/house"
  assert ClassTable.from_json(json.loads(json.dumps(DEEP.to_json()))) == DEEP


@settings(deadline=None)  # a busy machine is no error
@given(st.integers(2, 5).flatmap(lambda n: st.lists(st.tuples(*[NAMES] * n), min_size=1)))
def test_a_deep_tree_gives_every_path_back(paths):
  table = ClassTable.from_paths(paths)
  want = list(dict.fromkeys(paths))
  assert [table.full_name(i) for i in range(table.num_classes)] == ["/".join(p) for p in want]
  assert ClassTable.from_json(json.loads(json.dumps(table.to_json()))) == table
  assert all(len(set(names)) == len(names) for names in table.levels)
  for depth, names in enumerate(reversed(table.levels), 1):
    assert len(names) == len({path[:depth] for path in paths})


@pytest.mark.parametrize(
  ("text", "nodes"),
  [
    ("tree", [1]),
    ("animal/bird/sparrow/tree", [1]),
    ("sparrow", [6]),
    ("animal/bird/sparrow", [6]),
    ("animal/bird/prunella", [5]),
    ("plant", [12]),
    ("mint", [7]),  # the finer of two levels
    ("plant/mint", [10]),
    ("plant/mint/mint", [7]),
    ("all", [0, 1, 2, 3, 4]),
    ("sparrow, #2", [6, 2]),
  ],
)
def test_superclasses_resolve_to_their_nodes(text, nodes):
  assert DEEP.resolve(text, superclasses=True) == nodes
  assert DEEP.nodes[6] == "sparrow"


def test_a_slash_at_its_end_asks_for_the_superclass():
  """Which a child of its name, or the word for every class, would hide."""
  table = ClassTable.from_paths([("all", "mint", "mint"), ("all", "mint", "x"), ("b", "all", "y")])
  for text, name in (("all/", "all"), ("b/all/", "all"), ("mint/", "mint"), ("b/", "b")):
    (node,) = table.resolve(text, superclasses=True)
    assert node >= table.num_classes
    assert table.nodes[node] == name
  assert table.resolve("all", superclasses=True) == [0, 1, 2]
  assert table.resolve("mint", superclasses=True) == [0]
  flat = ClassTable.from_pairs([("all", "x"), ("all", "y")])
  assert flat.resolve("all/", superclasses=True) == [2]
  for text in ("all/", "/"):
    with pytest.raises(UserError, match="no class is named"):
      flat.resolve(text, superclasses=text == "/")


@pytest.mark.parametrize(
  ("text", "superclasses", "message"),
  [
    ("sparow", True, "did you mean 'sparrow'"),
    ("prunella", True, "say which: 'animal/bird/prunella', 'plant/mint/prunella'"),
    ("animal/brid", True, "did you mean 'animal/bird'"),
    ("bird", False, "superclass; ask for its classes: 'house', 'tree', 'dunnock'"),
    ("#5", True, "#0 to #4"),
  ],
)
def test_a_wrong_name_in_a_deep_tree_says_what_to_do(text, superclasses, message):
  with pytest.raises(UserError, match=message):
    DEEP.resolve(text, superclasses)


@pytest.mark.parametrize("sizes", [(5, 2), (9, 4, 4, 1), (0, 0)])
def test_a_stand_in_has_the_sizes_asked_for(sizes):
  table = ClassTable.of_sizes(sizes)
  assert table.sizes == sizes
  for ids, above in zip(table.maps, table.sizes[1:], strict=True):
    assert set(ids) == set(range(above))  # no superclass is empty


@pytest.mark.parametrize("sizes", [(5,), (2, 5), (3, 0)])
def test_a_stand_in_that_is_no_tree_is_refused(sizes):
  with pytest.raises(UserError, match="finest first"):
    ClassTable.of_sizes(sizes)


@pytest.mark.parametrize(
  "coarser",
  [
    [[["o"], [0]]],  # two superclasses, one parent
    [[["o"], [0, 1]]],
    [[["o", "o"], [0, 1]]],
    [["o"]],
    [[["o"], [0, False]]],
    [[[3], [0, 0]]],
    7,
  ],
)
def test_a_damaged_level_is_refused(coarser):
  with pytest.raises(UserError):
    ClassTable.from_json(json.loads(OLD) | {"coarser": coarser})


def test_suggestions_keep_the_first_of_names_that_differ_by_case():
  assert did_you_mean("robin", ["Robin", "ROBIN"]) == "; did you mean 'Robin'?"
  assert did_you_mean("robin", []) == ""
