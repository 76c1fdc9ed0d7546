"""The command line, ``d2ext`` or ``python -m d2ext``.

To add a command, write ``add_<name>(commands)`` in a file of `d2ext.commands` and list it in
`COMMANDS`. It calls `new_parser`, declares its arguments and calls ``set_defaults(func=...)`` with
a function that takes the parsed arguments, prints for people and returns a `Done`. Import what the
command needs inside that function: ``--version`` has to work where torch is missing, and ``--help``
to be quick.
"""

import argparse
import contextlib
import json
import os
import sys
from typing import Iterator, List, Optional

from . import __version__
from ._environment import requirement_problem, versions
from ._files import RunError
from ._text import as_json, printable_lines
from .commands.analyze import add_analyze
from .commands.calibrate import add_calibrate
from .commands.common import Done, import_named
from .commands.convert import add_convert
from .commands.data import add_data
from .commands.doctor import add_doctor
from .commands.export import add_export
from .commands.lr_find import add_lr_find
from .commands.predict import add_predict
from .commands.report import add_report
from .commands.show import add_show
from .commands.train import add_train
from .commands.val import add_val
from .commands.zoo import add_zoo

__all__ = ["COMMANDS", "build_parser", "main"]

COMMANDS = (
    add_zoo,
    add_train,
    add_val,
    add_calibrate,
    add_doctor,
    add_show,
    add_analyze,
    add_report,
    add_lr_find,
    add_data,
    add_predict,
    add_export,
    add_convert,
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
        prog="d2ext",
        description="Parts for training detectors with Detectron2.",
        epilog="Examples:\n  d2ext train --data my_photos\n  d2ext predict --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    """Run one command.

    Returns:
        its exit status: 0, 1 after a sentence on stderr, 2 for words that are no command, or what
        a training ends with.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if not hasattr(args, "func"):
        parser.print_help()
        return 2
    problem = requirement_problem()
    if problem is not None:
        print(problem, file=sys.stderr)
        return 1
    try:
        code = _call(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader of the output, such as head, has exited. What is still buffered is dropped.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    # A wrong name on the command line, or what one sentence says all about: no traceback helps.
    except RunError as error:
        print(printable_lines(error), file=sys.stderr)
    except OSError as error:
        told = f"{error.filename}: {error.strerror}" if error.filename else error
        print(printable_lines(told), file=sys.stderr)
    return 1


def _call(args: argparse.Namespace) -> int:
    with _silenced() if args.json or args.quiet else contextlib.nullcontext():
        if not getattr(args, "imports_itself", False):
            import_named(args)
        done: Done = args.func(args)
    files = [str(file) for file in done.files]
    if args.json:
        print(json.dumps(as_json({**done.values, "files": files}), indent=1))
    elif files and not args.quiet:
        *first, last = map(printable_lines, files)
        print(f"Written to {', '.join(first) + ' and ' if first else ''}{last}.")
    return done.code


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Nothing reaches stdout, from child processes neither."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        if sys.__stdout__ is not None:
            sys.__stdout__.flush()
        saved = os.dup(1)
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(saved, 1)
            os.close(saved)
