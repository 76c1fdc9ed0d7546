#!/usr/bin/env python
"""Run a study: a grid of configs and seeds, resumable at any point, with a table and a plot.

Usage: python tools/study.py docs/studies/dw.yaml [--jobs 2] [--retry 1] [--output DIR]
       python tools/study.py docs/studies/dw.yaml --table-only
       python tools/study.py docs/studies/dw.yaml --launcher slurm --slurm-args="--gres=gpu:1"
       python tools/study.py docs/studies/dw.yaml --commit-results
       python tools/study.py docs/studies/dw.yaml --again dw --seeds 1

Runs go to OUTPUT/NAME; call it again to go on, also after Ctrl-C. docs/studies/README.md tells how
to write a study of your own.
"""

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path

from d2ext._arguments import at_least

ROOT = Path(__file__).resolve().parent.parent


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="YAML file of the study")
    parser.add_argument("--jobs", type=at_least(1), default=1, help="runs at the same time")
    parser.add_argument(
        "--retry", type=at_least(0), default=0, help="how often to try a failed run again"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "studies")
    parser.add_argument(
        "--import", dest="modules", action="append", default=[], metavar="MODULE",
        help="a module of yours to import first (data sets, losses); may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--train-args", type=shlex.split, default=[], metavar="WORDS",
        help='more for train_net.py: --train-args="--num-gpus 2"',
    )  # fmt: skip
    parser.add_argument("--launcher", choices=["local", "slurm"], default="local")
    parser.add_argument(
        "--slurm-args", type=shlex.split, default=[], metavar="WORDS",
        help='options of sbatch, as one word: --slurm-args="--gres=gpu:1 --time=2:00:00"',
    )  # fmt: skip
    parser.add_argument(
        "--again", nargs="+", metavar="RUN",
        help="train these runs anew, into OUTPUT/NAME_again, and compare them with the results "
        "beside the study file",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", nargs="+", type=int, metavar="SEED", help="with --again: these seeds alone"
    )
    parser.add_argument("--figures", nargs="+", metavar="NAME", help="e.g. bbox/AP bbox/APr")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the table here too")
    parser.add_argument(
        "--plot", type=Path, nargs="?", const=True, metavar="FILE",
        help="draw means, seeds and intervals; without FILE into the folder of the runs",
    )  # fmt: skip
    parser.add_argument("--table-only", action="store_true", help="run nothing")
    parser.add_argument(
        "--commit-results", action="store_true",
        help="run nothing; write results, table and plot beside the study file, the table into "
        "README.md there, or the page of the folder's name, if that has markers for it",
    )  # fmt: skip
    args = parser.parse_args()
    if args.seeds and not args.again:
        parser.error("--seeds goes with --again RUN")
    # Now, and not after hours of runs.
    for option, file in (("--table", args.table), ("--plot", args.plot)):
        if isinstance(file, Path) and not file.parent.is_dir():
            parser.error(f"{option}: there is no folder {file.parent}; make it, or choose another")
    return args


def make_runner(args, study, folder):
    """The local runner or the launcher of Slurm jobs."""
    from studies import Runner, SlurmLauncher

    modules = [word for name in (*study.modules, *args.modules) for word in ("--import", name)]
    command = [sys.executable, "-W", "ignore", str(ROOT / "train_net.py"), *modules]
    command += args.train_args
    if args.launcher == "slurm":
        return SlurmLauncher(study, folder, command, sbatch_args=args.slurm_args)
    return Runner(study, folder, command, args.jobs, retry=args.retry)


def show(args, study, results, folder):
    """Print the table, and write what was asked for."""
    from studies import (
        default_figures,
        draw_study,
        fill_tables,
        markdown_table,
        marked_tables,
        version_notes,
    )

    figures = args.figures or list(study.figures) or default_figures(results)
    title = f"{study.name}: {len(results)} of {len(study.runs)} runs"
    table = markdown_table(results, figures, study.baseline)
    print(f"\n{title}\n\n{table}")
    for note in version_notes(results):
        print(f"{note}\n")
    tables = [args.table] if args.table else []
    plots = [folder / "plot.png" if args.plot is True else args.plot] if args.plot else []
    if args.commit_results:
        plots.append(args.study.with_suffix(".png"))
        # README.md beside it, or for docs/leaderboard/x.yaml the page docs/leaderboard.md.
        for page in (
            args.study.with_name("README.md"),
            args.study.resolve().parent.with_suffix(".md"),
        ):
            text = page.read_text() if page.exists() else ""
            if study.name in marked_tables(text):
                page.write_text(fill_tables(text, {study.name: table}))
                print(f"Written: {page}")
                break
        else:
            tables.append(args.study.with_suffix(".md"))
    for file in tables:
        file.write_text(table)
    for file in plots:
        draw_study(results, figures, study.baseline, file, title=title)
    for file in (*tables, *plots):
        print(f"Written: {file}")


def load(args):
    """The study, with its modules imported and its configs checked."""
    from studies import check_study, load_study

    from d2ext.engine import RunError, import_modules

    sys.path.insert(0, "")  # modules of the current folder, as in the runs
    try:
        study = load_study(args.study, ROOT)
        import_modules([*study.modules, *args.modules])
    except (OSError, ValueError, RunError) as error:
        sys.exit(f"{error}")
    if args.again:
        study = _chosen(study, args)
    problems = check_study(study)
    if problems:
        sys.exit("Nothing was run, because of\n  " + "\n  ".join(problems))
    return study


def _chosen(study, args):
    """The runs of --again and --seeds alone."""
    runs = [run for run in study.runs if run.name in args.again]
    runs = [run for run in runs if not args.seeds or run.seed in args.seeds]
    unknown = [name for name in args.again if all(run.name != name for run in runs)]
    if unknown:
        sys.exit(f"{args.study} has no run '{unknown[0]}' with these seeds.")
    return dataclasses.replace(study, runs=runs)


def compare_again(results, committed):
    """A line for each run that was trained again: whether its figures are those of before."""
    from studies import Results

    before = {(r["name"], r["seed"]): r for r in Results(results.study, committed).finished()}
    for record in results.finished():
        old = before.get((record["name"], record["seed"]), {}).get("figures")
        name = f"{record['name']}, seed {record['seed']}"
        if old is None:
            print(f"{name}: {committed} has no result to compare with.")
            continue
        other = [key for key, value in old.items() if record["figures"].get(key) != value]
        if other:
            key = other[0]
            now = record["figures"].get(key)
            print(f"{name}: {len(other)} of {len(old)} figures differ; {key} {old[key]} -> {now}.")
        else:
            print(f"{name}: all {len(old)} figures are equal.")


def call(args):
    """Do what the command line says; returns the exit code, or the sentence that ends it."""
    from studies import Busy, Results

    from d2ext.engine import RunError

    study = load(args)
    folder = args.output / (f"{study.name}_again" if args.again else study.name)
    results = Results(study, folder / "results.jsonl")
    committed = args.study.with_suffix(".jsonl")
    try:
        taken = 0 if args.again else results.take_over(committed)
        if taken:
            print(f"{taken} finished runs are taken from {committed}.")
        studies = sorted({*args.study.parent.glob("*.yaml")} - {args.study})
        others = [study.with_suffix(".jsonl") for study in studies]
        borrowed = 0 if args.again else results.borrow(others)
        if borrowed:
            print(f"{borrowed} runs were finished in other studies of {args.study.parent}.")
        if not (args.table_only or args.commit_results):
            make_runner(args, study, folder).run()
    except Busy as error:
        return f"{error}; wait for it, or choose another --output."
    except (OSError, RuntimeError, RunError) as error:
        return f"{error}"
    finished = results.finished()
    if args.again:
        compare_again(results, committed)
        return 0 if len(finished) == len(study.runs) else 1
    try:
        if finished and args.commit_results:
            results.export(committed)
            print(f"Written: {committed}")
        if finished:
            show(args, study, finished, folder)
    except (OSError, ValueError, RunError) as error:  # such as a figure that no run has
        return f"{error}\nThe results are in {results.file}; --table-only shows them."
    return 0 if len(finished) == len(study.runs) else 1


def main():
    try:
        sys.exit(call(parse()))
    except KeyboardInterrupt:
        print("The study was stopped; the same command goes on with it.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
