"""Superclasses from tables and names: the tree that was written, or a line that says why not."""

import json

import pytest

from dit_jax.core.errors import UserError
from dit_jax.data import taxonomy
from dit_jax.data.hierarchy import ClassTable
from dit_jax.data.images import ImageFile

ROWS = [
  ("owl", "Strix", "Strigidae", "bird"),
  ("dunnock", "Prunella", "Prunellidae", "bird"),
  ("selfheal", "Prunella", "Lamiaceae", "plant"),
  ("unused", "Salvia", "Lamiaceae", "plant"),
]
COLUMNS = ("folder", "genus", "family", "kind")
CARP = "02912_Animalia_Chordata_Actinopterygii_Cypriniformes_Cyprinidae_Cyprinus_carpio"
DUNNOCK = "04000_Animalia_Chordata_Aves_Passeriformes_Prunellidae_Prunella_modularis"
HEAL = "08500_Plantae_Tracheophyta_Magnoliopsida_Lamiales_Lamiaceae_Prunella_vulgaris"


def flat(*children):
  return [ImageFile(f"{c}/{i}.png", 1, "all", c) for c in sorted(children) for i in range(2)]


FILES = flat("owl", "dunnock", "selfheal")


def table_of(files):
  return ClassTable.from_paths([(*f.above, f.superclass, f.child) for f in files])


@pytest.fixture(params=["csv", "jsonl"])
def written(request, tmp_path):
  path = tmp_path / f"taxa.{request.param}"
  if request.param == "csv":
    lines = [",".join(row) for row in (COLUMNS, *ROWS)]
  else:
    lines = [json.dumps(dict(zip(COLUMNS, row, strict=True))) for row in ROWS]
  path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
  return str(path)


def test_every_column_is_a_level(written):
  files = taxonomy.apply(FILES, written, ())
  assert [f.name for f in files] == [f.name for f in FILES]
  table = table_of(files)
  assert table.levels == (
    ("dunnock", "owl", "selfheal"),
    ("bird/Prunellidae/Prunella", "Strix", "plant/Lamiaceae/Prunella"),
    ("Prunellidae", "Strigidae", "Lamiaceae"),
    ("bird", "plant"),
  )
  assert table.maps == ((0, 1, 2), (0, 1, 2), (0, 0, 1))


@pytest.mark.parametrize(
  ("levels", "want"),
  [
    (("kind",), (("bird", "plant"),)),
    (("family", "kind"), (("Prunellidae", "Strigidae", "Lamiaceae"), ("bird", "plant"))),
    (("genus",), (("Strix", "bird/Prunellidae/Prunella", "plant/Lamiaceae/Prunella"),)),
  ],
  ids=str,
)
def test_chosen_columns_alone_and_namesakes_stay_apart(written, levels, want):
  table = table_of(taxonomy.apply(FILES, written, levels))
  assert table.levels == (("dunnock", "owl", "selfheal"), *want)


def test_no_taxonomy_leaves_the_files():
  assert taxonomy.apply(FILES, "", ()) is FILES


@pytest.mark.parametrize(
  ("levels", "parents"),
  [
    (("family",), ("Cyprinidae", "Prunellidae", "Lamiaceae")),
    (("group",), ("Ray-finned Fishes", "Birds", "Plants")),
    (("kingdom",), ("Animalia", "Animalia", "Plantae")),
    (("class", "group"), ("Actinopterygii", "Aves", "Magnoliopsida")),
  ],
)
def test_names_of_inaturalist(levels, parents):
  table = table_of(taxonomy.apply(flat(HEAL, CARP, DUNNOCK), taxonomy.INAT, levels))
  assert table.children == ("Cyprinus carpio", "Prunella modularis", "Prunella vulgaris")
  assert tuple(table.superclasses[i] for i in table.parents) == parents
  assert len(table.levels) == 1 + len(levels)


def test_a_genus_of_plants_and_of_birds_is_two():
  table = table_of(taxonomy.apply(flat(HEAL, DUNNOCK), taxonomy.INAT, ("genus",)))
  assert table.superclasses == (
    "Animalia/Chordata/Aves/Passeriformes/Prunellidae/Prunella",
    "Plantae/Tracheophyta/Magnoliopsida/Lamiales/Lamiaceae/Prunella",
  )


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("c,s\nowl,x\ndunnock,x\nselfhea,y", "'selfheal' has no row .* did you mean 'selfhea'"),
    ("c,s\nowl,x\nowl,y", r"'owl' under x and, in row 2, under y; a class has one parent"),
    ("c,s\nowl,x\ndunnock, \n", r"row 2 of .* \('dunnock'\) leaves 's' empty"),
    ("c,s\nowl,x/y", "row 1 of .* has the name 'x/y'"),
    ("c,s\nowl", "row 1 .* 1 values for 2 columns"),
    ("c\nowl", "needs named columns"),
    ("c,s,s\nowl,x,x", "needs named columns"),
    ("c,s\n", "0 rows"),
    ("", "needs named columns"),
    ("c;s\nowl;x", "columns c;s and 1 rows; its names are parted by semicolons, write commas"),
    ("c\ts\nowl\tx", "parted by tabs"),
    ("c|s\nowl|x", "parted by bars"),
    ('c,s\n"owl', "cannot be read"),
  ],
)
def test_a_table_that_is_no_tree_is_refused(tmp_path, text, message):
  path = tmp_path / "t.csv"
  path.write_text(text, encoding="utf-8")
  with pytest.raises(UserError, match=message):
    taxonomy.apply(FILES, str(path), ())


@pytest.mark.parametrize("text", ['{"c": "owl"', '["owl"]', '{"c": 1, "s": "x"}',
                                  '{"c": "owl", "s": "x"}\n{"c": "wren"}',
                                  '{"c": "owl", "s": "x", "c": "wren"}',
                                  "[" * 200_000])  # fmt: skip
def test_lines_that_are_no_rows_are_refused(tmp_path, text):
  path = tmp_path / "t.jsonl"
  path.write_text(text, encoding="utf-8")
  with pytest.raises(UserError, match="cannot be read"):
    taxonomy.read(str(path))


@pytest.mark.parametrize(
  ("files", "name", "levels", "message"),
  [
    (FILES, "nowhere.csv", (), "cannot be read"),
    (FILES, "taxa.xlsx", (), r"must end in .csv or .jsonl, or be 'inat2021'"),
    (FILES, "", ("genus",), "data.taxonomy, which is empty"),
    (FILES, "{written}", ("genusses",), "did you mean 'genus'"),
    (FILES, "{written}", ("rank",), "it has genus, family, kind"),
    (FILES, "{written}", ("kind", "genus"), "finest first, in the order genus, family, kind"),
    (FILES, "{written}", ("kind", "kind"), "columns once"),
    (FILES, "inat2021", (), "not named as in iNaturalist"),
    (flat("owl"), "{written}", (), "one class alone, 'owl'"),
    ([ImageFile("a/b/1.png", 1, "a", "b")], "{written}", (), "a flat folder"),
    ([ImageFile("1.png", 1)], "{written}", (), "a flat folder"),
  ],
)
def test_what_does_not_fit_the_set_is_refused(written, files, name, levels, message):
  with pytest.raises(UserError, match=message):
    taxonomy.apply(files, name.format(written=written), levels)
