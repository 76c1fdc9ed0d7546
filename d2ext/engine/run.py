"""What ``train_net.py`` and ``d2ext train`` do: train or evaluate what the command line names."""

import argparse
import contextlib
import functools
import logging
import os
import sys
from datetime import timedelta
from typing import Any, Optional

import torch
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from .. import model_zoo
from .._files import RunError
from .._text import printable_lines
from ..config import CfgNode, get_cfg
from ..config.node import override_pairs
from ..data import require_dataset
from ..data.own import use_own_data
from ..run_index import record_sets
from .checkpoint import Checkpointer
from .errors import mistakes_in_sentences
from .hooks import tell_results
from .launch import launch, place_from_environment
from .lazy import lazy_file, load_lazy, train_lazy
from .own_data import prepare_own_data
from .run_folder import removed_if_empty, settle_output_folder
from .setup import (
    default_setup,
    fast_dev_run_folder,
    import_modules,
    load_weights,
    missing_gpu,
)
from .trainer import Trainer

__all__ = ["main", "run", "setup"]

logger = logging.getLogger(__name__)


def setup(args: argparse.Namespace) -> CfgNode:
    """The config of the command line, frozen, with its log files open."""
    cfg = get_cfg()
    with mistakes_in_sentences(", ".join(args.config_file) or "The command line"):
        if args.config_file:
            cfg.merge_from_file(args.config_file)
        cfg.merge_from_list(args.opts)
        if args.init_from:
            cfg.MODEL.WEIGHTS = args.init_from
        if args.fast_dev_run:
            cfg.ENGINE.FAST_DEV_RUN = True
        use_own_data(cfg, args.opts)
        Trainer.check_config(cfg)
    warning = missing_gpu("MODEL.DEVICE", cfg.MODEL.DEVICE)
    if warning:
        cfg.MODEL.DEVICE = "cpu"
    if cfg.ENGINE.FAST_DEV_RUN and not args.eval_only:
        cfg.OUTPUT_DIR = fast_dev_run_folder(cfg.OUTPUT_DIR)
    cfg.freeze()
    with mistakes_in_sentences():
        require_dataset(*([] if args.eval_only else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST)
    default_setup(cfg, args)
    if not args.eval_only:
        record_sets(cfg.OUTPUT_DIR, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
    if warning:
        logger.warning(warning)  # there is a log only now
    return cfg


def main(args: argparse.Namespace) -> Optional[int]:
    """Train or evaluate, in each process of a run; returns its exit code."""
    import_modules(args.modules)
    settle_output_folder(args)
    if args.lazy:
        return train_lazy(args)
    cfg = setup(args)
    with mistakes_in_sentences():
        if args.eval_only:
            model = Trainer.build_model(cfg)
            checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, allow_pickle=args.allow_pickle)
            load_weights(checkpointer, cfg.MODEL.WEIGHTS, args.resume, cfg.DATASETS.TEST)
        else:
            trainer = Trainer(cfg)
            trainer.checkpointer.allow_pickle = args.allow_pickle
            trainer.resume_or_load(resume=args.resume, new_schedule=args.reset_schedule)
    if args.eval_only:
        results = Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results = {**results, **Trainer.test_with_TTA(cfg, model)}
        if comm.is_main_process() and cfg.TEST.EXPECTED_RESULTS:
            verify_results(cfg, results)
        return 0
    trainer.train()
    tell_results(trainer)
    return trainer.exit_code


def _decide_for_all(args: argparse.Namespace) -> None:
    """Choose folder and recipe in the first of several processes that are started apart.

    Before they meet, because a step that is measured must not wait for others. These wait in
    ``launch``. A refusal is kept for them, too, so that all end with it.
    """
    try:
        settle_output_folder(args)
        prepare_own_data(args)
    except RunError as error:
        args.refusal = error


def _as_the_first(main: Any, args: argparse.Namespace) -> Optional[int]:
    """Call ``main`` with the config file and the overrides that the first process decided on."""
    mine = (args.config_file, args.opts, getattr(args, "refusal", None))
    args.config_file, args.opts, refusal = comm.all_gather(mine)[0]
    if refusal is not None:
        raise refusal
    missing = [file for file in args.config_file if not os.path.isfile(file)]
    if missing:
        raise RunError(
            f"{missing[0]}, which the first process wrote, is not there for process "
            f"{comm.get_rank()}; give an OUTPUT_DIR that all machines share."
        )
    return main(args)


def _device_of(args: argparse.Namespace) -> str:
    """The device that a command line asks for, before anything of it is imported or checked."""
    if args.lazy:
        cfg = load_lazy(args)
        return str(cfg.train.device)
    device = get_cfg().MODEL.DEVICE
    with contextlib.suppress(
        OSError, ValueError, TypeError
    ):  # main reports what is wrong with the file
        for file in args.config_file:
            model = CfgNode.load_yaml_with_base(file).get("MODEL")
            device = model.get("DEVICE", device) if isinstance(model, dict) else device
    given = dict(zip(args.opts[::2], args.opts[1::2]))
    return str(given.get("MODEL.DEVICE", device))


def run(args: argparse.Namespace, main: Any = main) -> Optional[int]:
    """Start the processes that the command line asks for, and call ``main(args)`` in each.

    Args:
        args: what :func:`~d2ext.engine.argument_parser` makes of a command line.
        main: a module-level function of your own, for a script with another trainer.

    Returns:
        the exit code
    """
    try:
        with mistakes_in_sentences(", ".join(args.config_file) or "The command line"):
            args.config_file = model_zoo.config_files(args.config_file)
            if args.lazy:
                lazy_file(args)
            else:
                args.opts = [word for pair in override_pairs(args.opts) for word in pair]
        place = place_from_environment(os.environ)
        several = args.num_machines > 1 or place is not None
        first_decides = several and bool(args.data) and not args.config_file
        is_first = (args.machine_rank if place is None else place.rank) == 0
        if not several:
            settle_output_folder(args)  # otherwise when all processes have met
        with removed_if_empty(args):
            if not first_decides:
                prepare_own_data(args)
            elif is_first:
                _decide_for_all(args)
            return launch(
                functools.partial(_as_the_first, main) if first_decides else main,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
                timeout=timedelta(minutes=args.process_timeout),
                device=_device_of(args) if torch.cuda.is_available() else "cpu",
            )
    except RunError as error:
        print(printable_lines(error), file=sys.stderr)
        return 1
