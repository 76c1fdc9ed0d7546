"""``d2ext report``: one HTML page about a training, or about several side by side."""

import argparse
from pathlib import Path
from typing import Any

from .._files import RunError
from .common import Done, add_output_argument, default_output, new_parser, write_json

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
    add_output_argument(parser, "report")
    parser.set_defaults(func=run_report)


def run_report(args: argparse.Namespace) -> Done:
    from ..analysis.report_page import make_page, numbers_of_runs
    from ..analysis.run_data import load_run

    if args.names and len(args.names) != len(args.runs):
        raise RunError("Give --names one name for each run, in their order.")
    names = args.names or [""] * len(args.runs)
    runs = [load_run(Path(folder), name) for folder, name in zip(args.runs, names)]
    output = default_output(args.output, "report", runs[0].name)
    page = output / "report.html"
    page.write_text(make_page(runs, args.title), encoding="utf-8")
    numbers = numbers_of_runs(runs)
    path = write_json(output / "report.json", numbers)
    print(f"{len(runs)} runs, a page of {page.stat().st_size / 2**20:.1f} MiB.")
    return Done(numbers, [page, path])
