"""A paper's comparison at a size for the machine at hand: trains, samples, scores, prints a table.

  python benchmarks/reproduce.py --paper=efdit --data=FOLDER [--workdir=DIR] [--seeds=0,1,2]
  python benchmarks/reproduce.py --paper=d2it [--workdir=DIR] [--only=maps] [--seeds=0,1,2]

`efdit`: one base that is shown superclasses alone, then the 2^3 fine-tunes {TE, HRIG, ProAttention}
from it (benchmarks/efdit_study.py). `d2it`: DiT on coarse and on fine codes, D2iT, and D2iT with
other grain maps, depths, shares and losses (benchmarks/d2it_study.py). Every run draws as many
pictures as there are held-out ones, of the same classes, and is scored against those.

A finished run leaves a JSON file in --out and is not repeated; with all of them there, only the
table is printed. A kept --workdir resumes what was interrupted. The same command twice, with one
--out and one --workdir, shares the work: each takes what the other is not at.
"""

import argparse
import contextlib
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]


def main(words=None) -> None:
  from benchmarks import d2it_study, efdit_study

  papers = {"efdit": efdit_study.Study, "d2it": d2it_study.Study}
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--paper", required=True, choices=sorted(papers))
  parser.add_argument("--data", default="", help="an image folder, root/superclass/class/*")
  parser.add_argument("--out", default="", help="default: benchmarks/results/PAPER")
  parser.add_argument("--workdir", default="", help="kept, and resumed; default: a temporary one")
  parser.add_argument("--seeds", default="0,1,2")
  parser.add_argument("--only", default="", help="comparisons of the paper, with commas")
  parser.add_argument("--grid", default="", help="a PNG of pictures; of d2it one a comparison")
  parser.add_argument("--tiny", action="store_true", help="the recipe's :tiny, to try the command")
  args = parser.parse_args(words)

  with contextlib.ExitStack() as stack:
    folder = args.workdir or stack.enter_context(tempfile.TemporaryDirectory())
    study = papers[args.paper](args.data, pathlib.Path(folder), args.tiny, args.only)
    seeds = [int(word) for word in args.seeds.split(",")]
    study.print_budget(len(seeds))
    out = pathlib.Path(args.out or ROOT / "benchmarks" / "results" / args.paper)
    study.print_table(study.done(seeds, out))
    if args.grid:
      study.save_grid(args.grid, seeds[0])


if __name__ == "__main__":
  sys.path.insert(0, str(ROOT))
  main()
