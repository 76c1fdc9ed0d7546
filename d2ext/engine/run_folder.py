"""Where a run writes by default: a folder of its own, ``output/train``, ``train-2``, ..."""

import argparse
import contextlib
import os
import re
from typing import Iterator, List, Optional

from detectron2.config import LazyConfig
from detectron2.utils import comm

from ..config import CfgNode, get_cfg

__all__ = [
    "ROOT",
    "latest_folder",
    "new_folder",
    "output_folder",
    "removed_if_empty",
    "settle_output_folder",
]

#: The folder of the runs without an OUTPUT_DIR; Detectron2's default.
ROOT = "output"


def new_folder(name: str, root: str = ROOT) -> str:
    """Make ``root/name``, or the first of ``name-2``, ``name-3``, ... that does not exist."""
    os.makedirs(root, exist_ok=True)
    number = 1
    while True:
        folder = os.path.join(root, name if number == 1 else f"{name}-{number}")
        try:
            os.mkdir(folder)
        except FileExistsError:
            number += 1
            continue
        return folder


@contextlib.contextmanager
def removed_if_empty(args: argparse.Namespace) -> Iterator[None]:
    """A run that was refused before it wrote anything leaves no folder behind."""
    try:
        yield
    finally:
        made = dict(zip(args.opts[::2], args.opts[1::2])).get("OUTPUT_DIR")
        if made and os.path.dirname(made) == ROOT:
            with contextlib.suppress(OSError):
                os.rmdir(made)


def latest_folder(name: str, root: str = ROOT) -> Optional[str]:
    """The last of the folders that :func:`new_folder` has made and that hold something."""
    found = {}
    with contextlib.suppress(OSError):
        for entry in os.listdir(root):
            match = re.fullmatch(rf"{re.escape(name)}(?:-(\d+))?", entry)
            path = os.path.join(root, entry)
            if match and os.path.isdir(path) and os.listdir(path):
                found[int(match.group(1) or 1)] = path
    return found[max(found)] if found else None


def settle_output_folder(args: argparse.Namespace) -> None:
    """Give a command line an OUTPUT_DIR, in place, if neither it nor its config file has one.

    Once for all ranks: a process that has no group yet decides for those that it will start.
    """
    if _is_given(args):
        return
    name = "fast-dev-run" if args.fast_dev_run else "eval" if args.eval_only else "train"
    folder: Optional[str] = None
    if comm.is_main_process():
        if args.resume or args.reset_schedule:
            folder = latest_folder("train")
            # Runs of older versions wrote to the root itself.
            if folder is None and os.path.isfile(os.path.join(ROOT, "last_checkpoint")):
                folder = ROOT
        folder = folder or new_folder(name)
    folder = comm.all_gather(folder)[0]
    key = "train.output_dir={}" if args.lazy else "OUTPUT_DIR {}"
    args.opts = [*args.opts, *key.format(folder).split(" ", 1)]


def output_folder(args: argparse.Namespace) -> str:
    """The folder of a command line that :func:`settle_output_folder` has seen."""
    if args.lazy:
        cfg = LazyConfig.apply_overrides(LazyConfig.load(args.config_file[0]), args.opts)
        return str(cfg.train.output_dir)
    cfg = get_cfg()
    for file in args.config_file:
        cfg.merge_from_file(file)
    return str(dict(zip(args.opts[::2], args.opts[1::2])).get("OUTPUT_DIR", cfg.OUTPUT_DIR))


def _is_given(args: argparse.Namespace) -> bool:
    default = get_cfg().OUTPUT_DIR
    if args.lazy:
        cfg = LazyConfig.load(args.config_file[0])
        given: List[str] = [word.split("=")[0] for word in args.opts]
        return "train.output_dir" in given or cfg.train.output_dir != default
    if "OUTPUT_DIR" in args.opts[::2]:
        return True
    for file in args.config_file:
        with contextlib.suppress(OSError, ValueError):  # the later, real read says what is wrong
            if "OUTPUT_DIR" in CfgNode.load_yaml_with_base(file):
                return True
    return False
