"""Arguments of the command line. Only Python is needed: ``--help`` answers at once."""

import argparse
import math
from typing import Any, Callable, Union

__all__ = [
    "add_import_argument",
    "add_pickle_argument",
    "argument_parser",
    "at_least",
    "share",
    "share_or_auto",
]

_EXAMPLES = """Examples:
  %(prog)s --config-file Demo/dw_shapes OUTPUT_DIR output/dw
  %(prog)s --data my_photos
  %(prog)s --config-file cfg.yaml --num-gpus 8 SOLVER.BASE_LR 0.001
  %(prog)s --config-file cfg.yaml --resume
  %(prog)s --config-file cfg.yaml --eval-only MODEL.WEIGHTS model.pth
  %(prog)s --config-file cfg.yaml --num-machines 2 --machine-rank 0 --dist-url URL
"""


def argument_parser(**options: Any) -> argparse.ArgumentParser:
    """The command line of a training: Detectron2's, and the flags of this trainer.

    Args:
        options: of ``argparse.ArgumentParser``, for the parser of a command that is a training.
    """
    options = {"epilog": _EXAMPLES, "formatter_class": argparse.RawDescriptionHelpFormatter,
               **options}  # fmt: skip
    parser = argparse.ArgumentParser(**options)
    add = parser.add_argument
    add(
        "--config-file",
        action="append",
        default=[],
        metavar="FILE",
        help="a config: a file, or a name that 'd2ext zoo' lists; may be repeated, later ones are "
        "merged over earlier ones",
    )
    add(
        "--data",
        default="",
        metavar="PATH",
        help="your own labelled images: a folder, a data.yaml or a COCO JSON; any common form",
    )
    add(
        "--split",
        metavar="SHARE",
        help="with --data that have no splits: share of training images (default: 0.8), or "
        "shares of training, validation and test images such as 0.7,0.2,0.1",
    )
    add(
        "--minutes",
        type=float,
        metavar="N",
        help="with --data and without --config-file: choose model and schedule for N minutes "
        "(default: 10 on a CPU, 20 on a GPU)",
    )
    add(
        "--method",
        default="",
        metavar="NAME",
        help="with --data and without --config-file: dw, fcos, atss, retinanet, faster, efl, "
        "harmonic, alwa or sampling_free instead of what would be chosen",
    )
    add(
        "--resume",
        action="store_true",
        help="go on from the last checkpoint in OUTPUT_DIR as if nothing had happened; "
        "with --eval-only, evaluate it",
    )
    add("--eval-only", action="store_true", help="evaluate, do not train")
    add("--init-from", default="", metavar="FILE", help="start from these weights, at step 0")
    add(
        "--reset-schedule",
        action="store_true",
        help="resume model, optimiser and data, but begin the config's schedule at step 0",
    )
    add_pickle_argument(parser)
    add("--lazy", action="store_true", help="--config-file is a LazyConfig, configs/lazy/*.py")
    add("--fast-dev-run", action="store_true", help="a few steps, one checkpoint, one evaluation")
    add_import_argument(parser)
    _add_launch_arguments(parser)
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        help="overrides at the end: KEY VALUE pairs, or key=value with --lazy",
    )
    return parser


def _add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """How many processes there are, and how they find each other."""
    add = parser.add_argument
    add(
        "--num-gpus",
        type=int,
        default=1,
        help="number of processes per machine, one a GPU (or on CPU, through gloo)",
    )
    add("--num-machines", type=int, default=1, help="total number of machines")
    add("--machine-rank", type=int, default=0, help="the number of this machine, from 0 on")
    add(
        "--dist-url",
        default="auto",
        metavar="URL",
        help="where the processes of several machines meet, tcp://HOST:PORT",
    )
    add(
        "--process-timeout",
        type=float,
        default=30.0,
        metavar="MINUTES",
        help="with several processes: how long one waits for another before it gives up",
    )


def add_import_argument(parser: argparse.ArgumentParser) -> None:
    """``--import``."""
    parser.add_argument(
        "--import",
        action="append",
        default=[],
        dest="modules",
        metavar="MODULE",
        help="import a Python module first, for what it registers; may be repeated",
    )


def add_pickle_argument(parser: argparse.ArgumentParser) -> None:
    """``--allow-pickle``."""
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read weights even if they are a pickle, which may run any code; it is warned of",
    )


def at_least(least: int) -> Callable[[str], int]:
    """A type of argparse: a whole number that is not smaller."""

    def number(word: str) -> int:
        try:
            value = int(word)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"'{word}' must be a whole number from {least} on")
        return value

    return number


def share(word: str) -> float:
    """A type of argparse: a number from 0 to 1, such as a score."""
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"'{word}' must be a number from 0 to 1")
    return value


def share_or_auto(word: str) -> Union[float, str]:
    """A type of argparse: a number from 0 to 1, or "auto"."""
    return word if word == "auto" else share(word)
