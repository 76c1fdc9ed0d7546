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

from d2ext.engine import argument_parser, run

# Beside a trainer of your own, give run() a function like d2ext.engine.main that makes it.
if __name__ == "__main__":
    sys.exit(run(argument_parser().parse_args()))
