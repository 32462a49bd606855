"""The page: all of a run, readable offline; hostile names are text, torn files are named."""

import html.parser
import json
import re
import shutil

import pytest
import small_run

from dit_jax.evals import report

VOID = {"meta", "img", "br"}


class Page(html.parser.HTMLParser):
  """What a browser would make of a page: elements, attributes and text; tags must match."""

  def __init__(self, text: str):
    super().__init__()
    self.open, self.tags, self.attributes, self.text = [], [], [], ""
    self.feed(text)
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += [(tag, *pair) for pair in attrs]
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += [(tag, *pair) for pair in attrs]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


def page_of(workdir) -> Page:
  return Page(report.of_workdir(workdir).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return small_run.write(tmp_path_factory.mktemp("a place") / "birds run")


@pytest.fixture
def copy(run, tmp_path):
  return shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("report.html"))


def test_the_page_tells_the_run(run):
  page = page_of(run)
  for said in (
    "birds run", "dvae → dct", "3 in 2 superclasses", "robin, wren, owl", "folder", "64 px",
    "dynamic autoencoder", "step 40", "step 30 of 100", "54,596", "Never moved: skipped 0",
    "fidelity", "VGG-FD", "50.25", "sampling.labels", "balanced", "fine regions", "PSNR", "25.6",
  ):  # fmt: skip
    assert said in page.text, said
  assert page.tags.count("img") == 4 + 4  # previews, and those of the newest evaluations
  assert page.tags.count("svg") == 4 + 1
  assert "could be read" not in page.text


def test_the_page_opens_offline_and_runs_nothing(run):
  page = page_of(run)
  assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
  for tag, name, value in page.attributes:
    assert not name.startswith("on"), (tag, name)
    if name in ("src", "href", "xlink:href", "action", "data"):
      assert re.match(r"#|data:image/png;base64,", value), (tag, name)
  text = report.of_workdir(run).read_text()
  assert not re.search(r"url\((?!#)|@import", text)
  [policy] = [v for _, name, v in page.attributes if name == "content" and "default-src" in v]
  assert policy.startswith("default-src 'none'")


def test_links_lead_somewhere(run):
  page = page_of(run)
  names = [value for _, name, value in page.attributes if name == "id"]
  targets = {v[1:] for tag, name, v in page.attributes if tag == "a" and name == "href"}
  assert targets <= set(names)
  anchors = [n for n in names if n.startswith(("stage-", "evaluation"))]
  assert len(anchors) == len(set(anchors))


def test_the_same_files_make_the_same_page(run):
  first = report.of_workdir(run).read_bytes()
  assert report.of_workdir(run).read_bytes() == first
  assert not list(run.glob("*.tmp"))


HOSTILE = "<script>alert('1')</script>\"'><img src=x onerror=alert(2)>{{ 7*7 }}&amp;$\\frac{"


def test_hostile_names_are_text(run, tmp_path):
  """Of classes, data, metrics, evaluators, facts and files."""
  config = json.loads(json.dumps(small_run.CONFIG))
  config["data"] |= {"source": HOSTILE, "path": HOSTILE, "only": [HOSTILE]}
  config["dct"]["optim"] = {"name": HOSTILE}
  classes = {"children": [HOSTILE, "owl"], "superclasses": [HOSTILE]}
  workdir = small_run.write(tmp_path / "run <b>&", config, classes)
  name = HOSTILE.replace("/", "|")
  folder = small_run.evaluated(
    workdir, "dct", 3, name, {HOSTILE: 1.5}, **{HOSTILE: HOSTILE, "deep": {HOSTILE: [HOSTILE]}}
  )
  (folder / f"03_{name[:60]}.png").write_bytes(small_run.png())
  (folder / "04_torn<i>.png").write_bytes(b"")
  stage = workdir / "<svg onload=alert(3)>"
  stage.mkdir()
  (stage / "metrics.jsonl").write_text(json.dumps({"step": 1, HOSTILE: 2.0}) + "\n{")
  page = page_of(workdir)
  assert set(page.tags) <= set(page_of(run).tags) | {"li", "ul"}
  assert page.tags.count("img") == 4 + 4 + 3  # pictures, none of a name
  assert page.tags.count("i") == 3  # bars
  assert not [a for a in page.attributes if a[1].startswith("on")]
  assert page.text.count(HOSTILE) >= 10
  assert "run <b>&" in page.text
  assert "04_torn<i>.png: is torn or no PNG" in page.text


FILES = (
  "config.json", "dct/metrics.jsonl", "dct/parameters.txt", "dct/previews/step_00000030.png",
  "dct/30/meta/metadata", "evaluations/dct_step_00000030_fidelity/card.json",
  "evaluations/dct_step_00000030_fidelity/01_samples.png",
)  # fmt: skip
DAMAGE = {
  "missing": None,
  "empty": b"",
  "binary": bytes(range(256)) * 4,
  "another type": b"[1, 2]",
  "a folder": ...,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_torn_file_never_breaks_the_page(copy, damage):
  """Every kind of file at once: the rest is there, and what is not is named."""
  for name in FILES:
    path, data = copy / name, DAMAGE[damage]
    path.unlink()
    if data is ...:
      path.mkdir()
    elif data is not None:
      path.write_bytes(data)
  page = page_of(copy)
  assert "dynamic autoencoder" in page.text
  assert "60.5" in page.text  # the other evaluation
  noted = {name for name in FILES if f"{name}: " in page.text}
  if damage == "missing":  # which nobody can know of a picture
    assert noted == {name for name in FILES if name.endswith(("json", "jsonl"))}
  else:
    assert noted >= set(FILES) - {"dct/parameters.txt", "dct/metrics.jsonl"}
    assert ("dct/metrics.jsonl" in noted) == (damage != "empty")  # it begins so


@pytest.mark.parametrize("name", FILES)
def test_each_file_may_be_cut_in_two(copy, name):
  data = (copy / name).read_bytes()
  (copy / name).write_bytes(data[: len(data) // 2])
  page = page_of(copy)
  alone = name.startswith("evaluations") and name.endswith("json")  # then both are the newest
  assert page.tags.count("img") == 8 + 2 * alone - name.endswith(".png")
  assert (f"{name}: " in page.text) == (name != "dct/parameters.txt")


def test_configs_of_other_shapes(copy):
  odd = [{"stages": 5, "data": 3, "dct": 7}, {"stages": [], "data": {"classes": 4}}]
  odd.append({"stages": [["dct"], None], "dct": {"total_steps": "x", "batch_size": [1]}})
  for config in odd:
    (copy / "config.json").write_text(json.dumps(config))
    page = page_of(copy)
    assert "content transformer" in page.text
    assert page.tags.count("img") == 8


def test_an_empty_folder_has_a_page(tmp_path):
  page = page_of(tmp_path)
  assert "config.json: is missing" in page.text


def test_a_write_that_fails_leaves_the_old_page(copy, monkeypatch):
  old = report.of_workdir(copy).read_bytes()
  (copy / "dct" / "metrics.jsonl").unlink()

  def full(self, *_, **__):
    raise OSError(28, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError, match="No space"):
      report.of_workdir(copy)
  assert (copy / "report.html").read_bytes() == old
