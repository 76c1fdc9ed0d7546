"""``d2ext train``: ``train_net.py`` for those who have the package and no checkout."""

import argparse
from typing import Any, Optional

from .._environment import requirement_problem

__all__ = ["add_train", "run_train"]


def add_train(commands: Any) -> None:
    """``d2ext train``."""
    flags = []
    if requirement_problem() is None:  # the flags are Detectron2's, and some of ours
        from ..engine import argument_parser

        flags = [argument_parser()]
    parser = commands.add_parser(
        "train",
        help="train or evaluate a detector, with the flags of train_net.py",
        description="Train or evaluate a detector, with the flags of train_net.py.",
        epilog="Example:\n  d2ext train --config-file Demo/dw_shapes OUTPUT_DIR output/dw",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=flags,
        add_help=not flags,
    )
    parser.set_defaults(func=run_train)


def run_train(args: argparse.Namespace) -> Optional[int]:
    from ..engine import run

    return run(args)
