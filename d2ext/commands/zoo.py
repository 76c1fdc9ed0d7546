"""``d2ext zoo``: the configs that come with d2ext."""

import argparse
import textwrap
from itertools import groupby
from typing import Any, Dict, List

from .._files import RunError
from .common import Done, new_parser

__all__ = ["add_zoo", "run_zoo"]


def add_zoo(commands: Any) -> None:
    """``d2ext zoo``."""
    parser = new_parser(
        commands,
        "zoo",
        "list the configs that come with d2ext",
        "d2ext zoo 'DualWeighting/*'",
        "d2ext zoo harmonic",
    )
    parser.add_argument(
        "pattern", nargs="?", help="part of a name, or a shell pattern such as 'Demo/*'"
    )
    parser.add_argument("--base", action="store_true", help="list Base-*.yaml files too")
    parser.set_defaults(func=run_zoo)


def run_zoo(args: argparse.Namespace) -> Done:
    from .. import model_zoo

    names = model_zoo.list_configs(args.pattern, include_base=args.base)
    if not names:
        raise RunError(f"No config matches '{args.pattern}'; 'd2ext zoo' lists all.")
    rows: List[Dict[str, Any]] = [
        {**model_zoo.describe_config(name), "authors_ap": model_zoo.AUTHORS_AP.get(name)}
        for name in names
    ]
    _print(rows)
    if args.pattern is None:
        fragments = ", ".join(model_zoo.list_fragments())
        print(textwrap.fill(f"Fragments, for any detector: {fragments}.", 99))
        print("Add them up: --config-file COCO/fcos_R_50_FPN_1x --config-file ALWA/Base-ALWA-2")
        print("or COCO/fcos_R_50_FPN_1x+ALWA/Base-ALWA-2; what comes later holds.")
    return Done({"configs": rows, "fragments": model_zoo.list_fragments()})


def _print(rows: List[Dict[str, Any]]) -> None:
    """A table for each data set and folder, narrow enough for a terminal."""

    def place(row: Dict[str, Any]) -> Any:
        return row["config"].rpartition("/")[0], row["training data"]

    width = max(len(row["config"]) for row in rows)
    for (_, data), group in groupby(sorted(rows, key=place), place):
        print(f"Training data: {data}" if data != "-" else "No training data")
        for row in group:
            detector = row["detector"].partition(" (")[2].rstrip(")") or row["detector"]
            figure = row["authors_ap"]
            told = "" if figure is None else f"  {figure:.1f}"
            print(f"  {row['config']:{width}}  {detector}{told}")
    if any(row["authors_ap"] is not None for row in rows):
        print("Figures: AP that a method's authors report, not measured with d2ext.")
