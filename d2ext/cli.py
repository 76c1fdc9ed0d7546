"""The command line, ``d2ext`` or ``python -m d2ext``.

To add a sub-command, write ``add_<name>(commands)``: it calls ``commands.add_parser``, declares its
arguments and calls ``set_defaults(func=...)`` with a function that takes the parsed arguments and
returns an exit status or None. Then list it in `COMMANDS`. Import what the command needs inside
that function: ``--version`` has to work where torch is missing, and ``--help`` to be quick.
"""

import argparse
import sys
from typing import List, Optional

from . import __version__
from ._environment import requirement_problem, versions
from ._files import RunError
from .commands.analyze import add_analyze
from .commands.common import new_parser
from .commands.data import add_data
from .commands.doctor import add_doctor
from .commands.export import add_export
from .commands.lr_find import add_lr_find
from .commands.predict import add_predict
from .commands.report import add_report
from .commands.show import add_show
from .commands.train import add_train
from .commands.val import add_val

__all__ = ["COMMANDS", "build_parser", "main"]


def add_zoo(commands) -> None:
    """``d2ext zoo``: the configs that come with d2ext."""
    parser = new_parser(
        commands, "zoo", "list the configs that come with d2ext", "d2ext zoo 'DualWeighting/*'"
    )
    parser.add_argument(
        "pattern", nargs="?", help="part of a name, or a shell pattern such as 'Demo/*'"
    )
    parser.add_argument("--base", action="store_true", help="list Base-*.yaml files too")
    parser.set_defaults(func=run_zoo)


def run_zoo(args: argparse.Namespace) -> int:
    from tabulate import tabulate

    from . import model_zoo

    names = model_zoo.list_configs(args.pattern, include_base=args.base)
    if not names:
        print(f"No config matches '{args.pattern}'; 'd2ext zoo' lists all.", file=sys.stderr)
        return 1
    figures = {name: model_zoo.AUTHORS_AP.get(name) for name in names}
    rows = [model_zoo.describe_config(name) for name in names]
    if any(value is not None for value in figures.values()):
        rows = [{**row, "authors' AP": figures[row["config"]]} for row in rows]
    print(tabulate(rows, headers="keys", tablefmt="simple", floatfmt=".1f"))
    if any(value is not None for value in figures.values()):
        print("authors' AP: what the method's authors report, not measured with d2ext.")
    if args.pattern is None:
        print(f"\nFragments, for any detector: {', '.join(model_zoo.list_fragments())}.")
        print("Add them up: --config-file COCO/fcos_R_50_FPN_1x --config-file ALWA/Base-ALWA-2")
        print("or COCO/fcos_R_50_FPN_1x+ALWA/Base-ALWA-2; what comes later holds.")
    return 0


COMMANDS = (
    add_zoo,
    add_train,
    add_val,
    add_doctor,
    add_show,
    add_analyze,
    add_report,
    add_lr_find,
    add_data,
    add_predict,
    add_export,
)


class _VersionAction(argparse.Action):
    def __init__(self, option_strings, dest, help=None):
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser, namespace, values, option_string=None):
        for name, version in {"d2ext": __version__, **versions()}.items():
            print(f"{name:<12}{version}")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The parser with every command of `COMMANDS`."""
    parser = argparse.ArgumentParser(
        prog="d2ext", description="Parts for training detectors with Detectron2."
    )
    parser.add_argument(
        "--version",
        action=_VersionAction,
        help="print the versions of d2ext and of what it needs, then exit",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for add_command in COMMANDS:
        add_command(commands)
    return parser


def main(argv: Optional[List[str]] = None) -> int:
    """Run one command; return its exit status."""
    parser = build_parser()
    problem = requirement_problem()
    # Without torch not every flag is known; the answer is then what is missing.
    args = parser.parse_args(argv) if problem is None else parser.parse_known_args(argv)[0]
    if not hasattr(args, "func"):
        parser.print_help()
        return 2
    if problem is not None:
        print(problem, file=sys.stderr)
        return 1
    try:
        return args.func(args) or 0
    # A wrong name on the command line, or what one sentence says all about: no traceback helps.
    except (FileNotFoundError, RunError) as error:
        print(error, file=sys.stderr)
        return 1
