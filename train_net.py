#!/usr/bin/env python
"""Train or evaluate any model of d2ext or Detectron2.

    python train_net.py --config-file configs/... [--num-gpus N] [KEY VALUE ...]
    python train_net.py --config-file configs/... --resume
    python train_net.py --config-file configs/... --eval-only MODEL.WEIGHTS model.pth
    python train_net.py --lazy --config-file configs/lazy/....py [--num-gpus N] [key=value ...]

Three ways to start from a file, for three different things (see docs/trainer.md):
--resume goes on where the last run in OUTPUT_DIR stopped; MODEL.WEIGHTS (or --init-from) starts a
new run from weights; --reset-schedule takes the last run's state into a new schedule.
"""

import sys
from typing import Any, Optional

from detectron2.evaluation import verify_results
from detectron2.utils import comm

import d2ext
from d2ext.engine import (
    Checkpointer,
    Trainer,
    argument_parser,
    default_setup,
    import_modules,
    launch,
    train_lazy,
)


def setup(args: Any) -> Any:
    """The config of the command line."""
    cfg = d2ext.get_cfg()
    if args.config_file:
        cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    if args.init_from:
        cfg.MODEL.WEIGHTS = args.init_from
    if args.fast_dev_run:
        cfg.ENGINE.FAST_DEV_RUN = True
    cfg.freeze()
    d2ext.data.require_dataset(*([] if args.eval_only else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST)
    default_setup(cfg, args)
    return cfg


def main(args: Any) -> Optional[int]:
    import_modules(args.modules)
    if args.lazy:
        return train_lazy(args)
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        Checkpointer(model, cfg.OUTPUT_DIR).load(cfg.MODEL.WEIGHTS)
        results = Trainer.test(cfg, model)
        if comm.is_main_process() and cfg.TEST.EXPECTED_RESULTS:
            verify_results(cfg, results)
        return 0
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume, new_schedule=args.reset_schedule)
    trainer.train()
    return trainer.exit_code


if __name__ == "__main__":
    args = argument_parser().parse_args()
    code = launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
    sys.exit(code)
