#!/usr/bin/env python
"""Run a study: a grid of configs and seeds, resumable at any point, with a table at the end.

Usage: python tools/study.py docs/studies/dw.yaml [--jobs 2] [--output DIR] [--table-only]
"""

import argparse
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="YAML file of the study")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "studies")
    parser.add_argument(
        "--figures", nargs="+", default=["bbox/AP", "bbox/AP50", "bbox/AP75"], metavar="NAME"
    )
    parser.add_argument("--table-only", action="store_true", help="run nothing")
    args = parser.parse_args()

    from d2ext.analysis.study import Runner, load_study, markdown_table

    study = load_study(args.study, ROOT)
    command = [sys.executable, "-W", "ignore", str(ROOT / "train_net.py")]
    runner = Runner(study, args.output / study.name, command, args.jobs)
    committed = args.study.with_suffix(".jsonl")
    if committed.exists() and not runner.results_file.exists():
        runner.folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(committed, runner.results_file)
    results = runner.results() if args.table_only else runner.run()
    wanted = len(study.runs)
    if results:
        print(f"\n{study.name}: {len(results)} of {wanted} runs\n")
        print(markdown_table(results, args.figures, study.baseline))
    sys.exit(0 if len(results) == wanted else 1)


if __name__ == "__main__":
    main()
