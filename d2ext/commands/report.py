"""``d2ext report``: one HTML page about a training, or about several side by side."""

import argparse
from pathlib import Path
from typing import Any

from .._arguments import add_import_argument, at_least
from .._files import RunError
from .common import (
    Done,
    add_output_argument,
    default_output,
    import_named,
    new_parser,
    write_json,
)

__all__ = ["add_report", "run_report"]


def add_report(commands: Any) -> None:
    """``d2ext report RUN [RUN ...]``."""
    parser = new_parser(
        commands,
        "report",
        "make one self-contained HTML page about a training, or several side by side",
        "d2ext report output/baseline output/with_alwa --output output/report",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="OUTPUT_DIR of a training")
    parser.add_argument(
        "--names", nargs="+", default=[], metavar="NAME", help="what to call the runs, in order"
    )
    parser.add_argument("--title", default="Training report", help="heading of the page")
    parser.add_argument(
        "--images",
        type=at_least(1),
        default=60,
        metavar="N",
        help="images in the gallery (default: 60)",
    )
    parser.add_argument(
        "--trackers",
        nargs="+",
        default=[],
        choices=("tensorboard", "wandb", "mlflow"),
        help="also write the figures there, as scalars and images",
    )
    add_import_argument(parser)
    add_output_argument(parser, "report")
    parser.set_defaults(func=run_report)


def run_report(args: argparse.Namespace) -> Done:
    from ..report import collect, load_run, make_page, numbers_of_runs

    if args.names and len(args.names) != len(args.runs):
        raise RunError("Give --names one name for each run, in their order.")
    import_named(args)
    names = args.names or [""] * len(args.runs)
    runs = [load_run(Path(folder), name) for folder, name in zip(args.runs, names)]
    output = default_output(args.output, "report", runs[0].name)
    page = output / "report.html"
    page.write_text(make_page(runs, args.title, images=args.images), encoding="utf-8")
    numbers = numbers_of_runs(runs)
    path = write_json(output / "report.json", numbers)
    print(
        f"{len(runs)} run{'s' * (len(runs) != 1)}, a page of {page.stat().st_size / 2**20:.1f} MiB."
    )
    if args.trackers:
        from ..report.trackers import write_tracker

        for run, found in zip(runs, collect(runs)[1]):
            for tracker in args.trackers:
                print(f"{run.name}: written to {write_tracker(tracker, run, found, args.title)}.")
    return Done({"runs": numbers}, [page, path])
