"""The modules, the device, the log files and the seed of a run."""

import argparse
import importlib
import logging
import os
import sys
from typing import Any, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch import nn

from d2ext._files import RunError, writing

from .checkpoint import Checkpointer
from .class_checks import check_checkpoint_classes, check_trained
from .logs import open_logs, write_preamble
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
    """Import the modules named on the command line, also from the working folder.

    Raises:
        RunError: if one cannot be imported.
    """
    # The folder of the script is on the path, which is the working folder only by chance.
    if names and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise RunError(
                f"--import {name} fails: {error}; correct the name, or start from the folder that "
                "has the module."
            ) from error


def missing_gpu(key: str, device: str) -> str:
    """What to say of a config that asks, by ``key``, for a GPU on a machine without one."""
    if not device.startswith("cuda") or torch.cuda.is_available():
        return ""
    return f"{key} is {device}, but there is no GPU: using the CPU."


def choose_device(cfg: CfgNode) -> None:
    """Fall back to the CPU, in place, if the config asks for CUDA on a machine without a GPU."""
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
    """Log files, ``config.yaml`` and seed of a run, in a folder that no other run uses.

    As Detectron2's ``default_setup``, but the terminal does not show all that is in the file.
    """
    if not args.eval_only:
        # Before anything is written: the log of the other run must not get our lines.
        keep_until_the_end(lock_output_folder(folder))
    with writing(folder):
        if folder:
            os.makedirs(folder, exist_ok=True)
        open_logs(folder)
        write_preamble(cfg, args, folder)
    is_yaml = isinstance(cfg, CfgNode)
    seed = cfg.SEED if is_yaml else cfg.train.get("seed", -1)
    seed_all_rng(None if seed < 0 else seed + comm.get_rank())
    if not args.eval_only:
        benchmark = cfg.CUDNN_BENCHMARK if is_yaml else cfg.train.get("cudnn_benchmark", False)
        torch.backends.cudnn.benchmark = benchmark
