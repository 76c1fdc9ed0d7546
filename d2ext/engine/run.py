"""What ``train_net.py`` and ``d2ext train`` do: train or evaluate what the command line names."""

import argparse
import os
from datetime import timedelta
from typing import Any, Optional

from detectron2.config import CfgNode
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from .. import model_zoo
from ..config import get_cfg
from ..data import require_dataset
from .checkpoint import Checkpointer
from .launch import launch
from .lazy import train_lazy
from .setup import default_setup, import_modules
from .trainer import Trainer

__all__ = ["main", "run", "setup"]


def setup(args: argparse.Namespace) -> CfgNode:
    """The config of the command line, frozen, with its log files open."""
    cfg = get_cfg()
    if args.config_file:
        cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    if args.init_from:
        cfg.MODEL.WEIGHTS = args.init_from
    if args.fast_dev_run:
        cfg.ENGINE.FAST_DEV_RUN = True
    cfg.freeze()
    Trainer.check_config(cfg)
    require_dataset(*([] if args.eval_only else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST)
    default_setup(cfg, args)
    return cfg


def main(args: argparse.Namespace) -> Optional[int]:
    """Train or evaluate, in each process of a run; returns its exit code."""
    import_modules(args.modules)
    if args.lazy:
        return train_lazy(args)
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, allow_pickle=args.allow_pickle)
        checkpointer.load(cfg.MODEL.WEIGHTS)
        results = Trainer.test(cfg, model)
        if comm.is_main_process() and cfg.TEST.EXPECTED_RESULTS:
            verify_results(cfg, results)
        return 0
    trainer = Trainer(cfg)
    trainer.checkpointer.allow_pickle = args.allow_pickle
    trainer.resume_or_load(resume=args.resume, new_schedule=args.reset_schedule)
    trainer.train()
    return trainer.exit_code


def run(args: argparse.Namespace, main: Any = main) -> Optional[int]:
    """Start the processes that the command line asks for, and call ``main(args)`` in each.

    Args:
        args: what :func:`~d2ext.engine.argument_parser` makes of a command line.
        main: a module-level function of your own, for a script with another trainer.

    Returns:
        the exit code
    """
    if args.config_file and not os.path.isfile(args.config_file):
        args.config_file = model_zoo.get_config_file(args.config_file)
    return launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
        timeout=timedelta(minutes=args.process_timeout),
    )
