"""How values read."""

from dit_jax.evals import words


def test_numbers():
  told = {1234567: "1,234,567", 0.123456: "0.1235", 2.0: "2", None: "–", 1e-7: "1e-07"}
  assert {x: words.number(x) for x in told} == told


def test_values_of_json():
  assert words.shown(True) == "yes"
  assert words.shown(["a", 2, None]) == "a, 2, –"
  assert words.shown({"data": -1, "fsdp": [1, 2]}) == "data -1, fsdp 1, 2"
  assert words.shown(list(range(30))).endswith("22, 23 and 6 more")
  assert words.shown("<b>") == "<b>"  # escaped where the page is made


def test_facts():
  assert words.listed(("a", 0), ("b", None), ("c", ""), ("d", ()), ("e", False)) == [
    ("a", "0"), ("e", "no"),
  ]  # fmt: skip
  tree = {"n": 5, "sampling": {"steps": 50, "cfg": {"from": 0.5}}, "none": {}}
  assert list(words.flat(tree)) == [
    ("n", "5"),
    ("sampling.steps", "50"),
    ("sampling.cfg.from", "0.5"),
  ]


def test_values_at_paths():
  tree = {"a": {"b": 3}, "c": [1]}
  assert [words.at(tree, p) for p in ("a.b", "a.x", "x", "c.d", "a.b.c")] == [3, *[None] * 4]
  assert words.at(None, "a") is None
