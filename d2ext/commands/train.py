"""``d2ext train``: ``train_net.py`` for those who have the package and no checkout."""

import argparse
import os
from typing import Any, Dict

from .._arguments import argument_parser
from .common import Done, new_parser

__all__ = ["add_train", "run_train"]


def add_train(commands: Any) -> None:
    """``d2ext train``."""
    parser = new_parser(
        commands,
        "train",
        "train or evaluate a detector, with the flags of train_net.py",
        "d2ext train --data my_photos",
        "d2ext train --config-file Demo/dw_shapes OUTPUT_DIR output/dw",
        "d2ext train --config-file Demo/dw_shapes --resume OUTPUT_DIR output/dw",
        parents=[argument_parser(add_help=False)],
    )
    # Each process of a training imports the modules.
    parser.set_defaults(func=run_train, imports_itself=True)


def run_train(args: argparse.Namespace) -> Done:
    from ..engine import run

    code = run(args) or 0
    summary = _summary(args) if code == 0 and not args.eval_only else {}
    files = summary.get("files", {}).values() if args.json else ()  # the log has named them
    return Done({"exit_code": code, **summary}, files=tuple(files), code=code)


def _summary(args: argparse.Namespace) -> Dict[str, Any]:
    """What the run wrote into ``summary.json``."""
    from ..engine.hooks.results import read_summary
    from ..engine.run_folder import output_folder

    folder = output_folder(args)
    beside = read_summary(os.path.join(folder, "fast_dev_run")) if args.fast_dev_run else {}
    return beside or read_summary(folder)
