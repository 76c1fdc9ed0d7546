"""The command line, the log files and the seed of a run."""

import argparse
import functools
import importlib
import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.engine import default_setup as upstream_default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from d2ext._files import writing
from d2ext.model_zoo import config_files

from .checkpoint import Checkpointer
from .output_lock import keep_until_the_end, lock_output_folder
from .random_state import set_deterministic

__all__ = [
    "argument_parser",
    "choose_device",
    "default_setup",
    "fast_dev_run_folder",
    "import_modules",
    "load_weights",
    "missing_gpu",
    "set_up_output",
]

logger = logging.getLogger(__name__)


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's command line, and the flags of this trainer."""
    upstream = default_argument_parser()
    parser = argparse.ArgumentParser(
        parents=[upstream],
        conflict_handler="resolve",
        epilog=upstream.epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--config-file",
        action="append",
        default=[],
        metavar="FILE",
        help="a config: a file, or a name that 'd2ext zoo' lists; may be repeated, later ones are "
        "merged over earlier ones",
    )
    add("--init-from", default="", metavar="FILE", help="start from these weights, at step 0")
    add(
        "--reset-schedule",
        action="store_true",
        help="resume model, optimiser and data, but begin the config's schedule at step 0",
    )
    add(
        "--allow-pickle",
        action="store_true",
        help="read MODEL.WEIGHTS even if it is a pickle, which may run any code; it is warned of",
    )
    add("--lazy", action="store_true", help="--config-file is a LazyConfig, configs/lazy/*.py")
    add("--fast-dev-run", action="store_true", help="a few steps, one checkpoint, one evaluation")
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
        "--import",
        action="append",
        default=[],
        dest="modules",
        metavar="MODULE",
        help="import a Python module first, for what it registers; may be repeated",
    )
    add(
        "--process-timeout",
        type=float,
        default=30.0,
        metavar="MINUTES",
        help="with several processes: how long one waits for another before it gives up",
    )
    for action in parser._actions:
        if action.dest == "num_gpus":
            action.help = "number of processes per machine, one a GPU (or on CPU, through gloo)"
        elif action.dest == "resume":
            action.help = (
                "go on from the last checkpoint in OUTPUT_DIR as if nothing had happened; "
                "with --eval-only, evaluate it"
            )
        elif action.dest == "dist_url":
            action.default = "auto"
    return parser


def import_modules(names: list) -> None:
    """Import the modules named on the command line, also from the working folder."""
    # The folder of the script is on the path, which is the working folder only by chance.
    if names and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in names:
        importlib.import_module(name)


def missing_gpu(key: str, device: str) -> str:
    """What to say of a config that asks for a GPU, the value of ``key``, where there is none."""
    if not device.startswith("cuda") or torch.cuda.is_available():
        return ""
    return f"{key} is {device}, but there is no GPU: using the CPU."


def choose_device(cfg: CfgNode) -> None:
    """Fall back to the CPU, in place, where the config asks for CUDA and there is none."""
    warning = missing_gpu("MODEL.DEVICE", cfg.MODEL.DEVICE)
    if warning:
        logger.warning(warning)
        cfg.MODEL.DEVICE = "cpu"


def fast_dev_run_folder(folder: str) -> str:
    """Where a fast development run writes: beside the checkpoints of a real run, if there are."""
    is_used = Checkpointer(nn.Module(), folder).has_checkpoint()
    return os.path.join(folder, "fast_dev_run") if comm.all_gather(is_used)[0] else folder


def load_weights(checkpointer: Checkpointer, weights: str, resume: bool) -> None:
    """Load what is to be evaluated: the last checkpoint in the folder, as a training would resume
    from, or else ``weights``."""
    path = checkpointer.get_checkpoint_file() if resume else ""
    if resume and not path:
        logger.warning(
            f"No checkpoint to evaluate in '{checkpointer.save_dir}'; evaluating "
            f"{weights or 'a model without trained weights'}."
        )
    checkpointer.load(path or weights, checkpointables=[])


def default_setup(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Detectron2's set-up (log files, environment, ``config.yaml``, seed) and determinism."""
    set_up_output(cfg, args, cfg.OUTPUT_DIR)
    set_deterministic(cfg.SOLVER.DETERMINISTIC)


def set_up_output(cfg: Any, args: argparse.Namespace, folder: str) -> None:
    """Detectron2's set-up for any kind of config, in a folder that this run has for itself."""
    if not args.eval_only:
        # Before anything is written: the log of the other run must not get our lines.
        keep_until_the_end(lock_output_folder(folder))
    with writing(folder):
        upstream_default_setup(cfg, argparse.Namespace(**{**vars(args), "config_file": ""}))
        setup_logger(folder, distributed_rank=comm.get_rank(), name="d2ext")
    for file in config_files(getattr(args, "config_file", "")):
        logger.info(f"Contents of config file {file}:\n{Path(file).read_text()}")
    for name in ("detectron2", "fvcore", "d2ext"):
        for handler in logging.getLogger(name).handlers:
            if not isinstance(handler, logging.StreamHandler):
                continue
            path = str(getattr(handler.stream, "name", ""))
            if folder and path.startswith(os.path.join(folder, "")):
                give_up = functools.partial(_give_up_log_file, handler)
                handler.handleError = give_up  # type: ignore[method-assign]


def _give_up_log_file(handler: logging.StreamHandler, record: logging.LogRecord) -> None:
    """A log that cannot be written is said once, not at every line; the terminal still has it."""
    error = sys.exc_info()[1]
    if not isinstance(error, OSError):
        logging.Handler.handleError(handler, record)
        return
    # What the stream still holds must go somewhere, or closing it fails at the end of the run.
    # All handlers of the file share the stream, so that this happens once.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, handler.stream.fileno())
    os.close(nowhere)
    print(
        f"Could not write {handler.stream.name} ({error.strerror}); the log goes on here only.",
        file=sys.stderr,
    )
