"""The modules, the device, the log files and the seed of a run."""

import argparse
import functools
import importlib
import logging
import os
import sys
from pathlib import Path
from typing import Any, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup as upstream_default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from d2ext._files import writing
from d2ext.model_zoo import config_files

from .checkpoint import Checkpointer
from .class_checks import check_checkpoint_classes, check_trained
from .output_lock import keep_until_the_end, lock_output_folder
from .random_state import set_deterministic

__all__ = [
    "choose_device",
    "default_setup",
    "fast_dev_run_folder",
    "import_modules",
    "load_weights",
    "missing_gpu",
    "set_up_output",
]

logger = logging.getLogger(__name__)


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


def load_weights(
    checkpointer: Checkpointer, weights: str, resume: bool, names: Sequence[str] = ()
) -> None:
    """Load what is to be evaluated: the last checkpoint in the folder, as a training would resume
    from, or else ``weights``.

    Args:
        checkpointer: of the model.
        weights: a file.
        resume: whether to look for a checkpoint.
        names: the data sets, whose classes must be the checkpoint's.

    Raises:
        ValueError: there are no weights, or not for all of the model
    """
    path = checkpointer.get_checkpoint_file() if resume else ""
    if not (path or weights):
        check_trained(checkpointer.model, "", None)
    if resume and not path:
        logger.warning(
            f"No checkpoint to evaluate in '{checkpointer.save_dir}'; evaluating {weights}."
        )
    extra = checkpointer.load(path or weights, checkpointables=[])
    check_trained(checkpointer.model, path or weights, checkpointer.last_incompatible)
    check_checkpoint_classes(path or weights, extra.get("class_names"), names)


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
