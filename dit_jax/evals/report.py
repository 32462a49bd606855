"""One page about a run: what it is, how its stages went, what evaluations found.

The page is a file that opens anywhere: styles, curves and pictures are inside, there is no script
and nothing is fetched. It is made of the workdir's files alone, at any time and of any run; what is
missing or torn is named on it.
"""

import datetime
import json
import pathlib
import sys

import dit_jax
from dit_jax.core import config as configs
from dit_jax.core.files import write_text
from dit_jax.evals import curves, report_parts, words
from dit_jax.evals.run_files import Files
from dit_jax.evals.words import at, listed, shown

PAGE, TEMPLATE = "report.html", "report.html.j2"


def of_workdir(workdir) -> pathlib.Path:
  """Writes `workdir/report.html` in one move, and says where it is."""
  workdir = pathlib.Path(workdir)
  files = Files(workdir)
  config = _config(files)
  names = report_parts.stage_names(files, config)
  page = _template().render(
    name=workdir.resolve().name,
    facts=_essentials(config),
    classes=_classes(files, config, names),
    stages=[report_parts.stage(files, config, name) for name in names],
    groups=report_parts.evaluations(files),
    config=json.dumps(config, indent=2, default=str) if config else "",
    newest=_utc(files.newest),
    version=dit_jax.__version__,
    notes=files.notes,
  )
  write_text(workdir / PAGE, page, errors="replace")  # a file's name may be no text
  return workdir / PAGE


def refresh(workdir) -> None:
  """The page anew, in the midst of something dearer: what goes wrong costs a warning."""
  try:
    of_workdir(workdir)
  except Exception as e:
    print(f"warning: {PAGE} was not written ({type(e).__name__}: {e})", file=sys.stderr)


def _template():
  import jinja2

  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True,  # names of classes and files are the user's
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters |= {"number": words.number, "count": curves.count}
  return environment.get_template(TEMPLATE)


def _config(files: Files) -> dict:
  path = files.root / "config.json"
  try:
    return configs.from_json(json.dumps(files.json(path))).to_dict()
  except (ValueError, TypeError) as error:
    files.note(path, f"is no config ({error})")
    return {}


def _essentials(config: dict) -> list[tuple[str, str]]:
  size, every = at(config, "data.image_size"), at(config, "data.holdout")
  sampling = [(key, at(config, f"sampling.{key}")) for key in ("stepper", "steps", "guidance")]
  return listed(
    ("data", at(config, "data.source")),
    ("path", at(config, "data.path")),
    ("images", size and f"{shown(size)} px"),
    ("held out", every and f"1 of {shown(every)} in a class"),
    ("only", at(config, "data.only")),
    ("starts from", at(config, "init_from")),
    ("trained weights", at(config, "peft")),
    ("sampling", dict(listed(*sampling))),
    ("mesh", at(config, "mesh")),
    ("seed", at(config, "seed")),
  )


def _classes(files: Files, config: dict, stages: list[str]) -> dict[str, object]:
  """Names of the classes, of the newest checkpoint that tells them; how many in words."""
  levels = []
  for name in reversed(stages):
    for step in report_parts.checkpoints(files, name)[-1:]:
      meta = files.json(files.root / name / str(step) / "meta" / "metadata", needed=False)
      told = [at(meta, f"classes.{key}") for key in ("children", "superclasses")]
      levels = levels or [level for level in told if isinstance(level, list) and level]
  sizes = [len(level) for level in levels] or at(config, "data.classes")
  sizes = list(sizes) if isinstance(sizes, list | tuple) else []
  return dict(
    names=[str(x) for x in levels[0]] if levels else [],
    sizes=" in ".join(map(shown, sizes[:2])),
  )


def _utc(seconds: float) -> str:
  return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M} UTC"
