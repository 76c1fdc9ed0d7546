"""``d2ext lr-find``: a learning rate to begin with."""

import argparse
import math
from typing import Any

from .._arguments import at_least
from .._files import RunError
from .common import (
    Done,
    add_config_arguments,
    add_output_argument,
    default_output,
    load_config,
    new_parser,
    progress,
    quiet,
    require_data,
    write_json,
)

__all__ = ["add_lr_find", "run_lr_find"]


def add_lr_find(commands: Any) -> None:
    """``d2ext lr-find CONFIG``."""
    parser = new_parser(
        commands,
        "lr-find",
        "train some steps with a growing learning rate and suggest one",
        "d2ext lr-find Demo/fcos_shapes --steps 60",
    )
    add_config_arguments(parser)
    parser.add_argument("--steps", type=at_least(1), default=100, help="how many (default: 100)")
    parser.add_argument("--lowest", type=float, default=1e-6, help="first rate (default: 1e-6)")
    parser.add_argument("--highest", type=float, default=1.0, help="last rate (default: 1)")
    add_output_argument(parser, "lr_find")
    parser.set_defaults(func=run_lr_find)


def run_lr_find(args: argparse.Namespace) -> Done:
    from ..analysis.lr_finder import draw_range_test, range_test, suggest_rate
    from ..engine import GlobalNormClipper, Precision, Trainer, hooks
    from .show import load_model

    if not 0 < args.lowest < args.highest < math.inf:
        raise RunError(
            f"--lowest is {args.lowest:g} and --highest {args.highest:g}; the rate grows by a "
            "factor from one to the other, so both must be above 0, and the second the higher one."
        )
    output = default_output(args.output, "lr_find", args.config)
    with quiet():
        cfg = load_config(args.config, args.opts)
        require_data(cfg.DATASETS.TRAIN)
        model = load_model(cfg, allow_pickle=args.allow_pickle)
        loader = Trainer.build_train_loader(cfg)
        hooks.count_class_weights(model, loader)
        found = range_test(
            model,
            Trainer.build_optimizer(cfg, model),
            loader,
            lowest=args.lowest,
            highest=args.highest,
            steps=args.steps,
            settle=min(20, max(3, args.steps // 2)),  # RetinaNet averages its normaliser over ten
            precision=Precision(cfg),
            accumulate=cfg.SOLVER.ACCUMULATE,
            clip=GlobalNormClipper.from_config(cfg),
            report=progress(args),
        )
    rates = suggest_rate(found)
    picture = output / "lr_find.png"
    draw_range_test(found, rates, cfg.SOLVER.BASE_LR, picture)
    report = {**rates, "base_lr": cfg.SOLVER.BASE_LR, **found}
    path = write_json(output / "lr_find.json", report)
    if rates["steepest"] is None:
        print("The loss did not fall by more than its noise; raise --steps.")
    else:
        print(
            f"The loss falls fastest at {rates['steepest']:.2e}; a tenth of the rate with the "
            f"lowest loss is {rates['safe']:.2e}. The config has {cfg.SOLVER.BASE_LR:.2e}, for "
            f"{cfg.SOLVER.IMS_PER_BATCH} images a step."
        )
    return Done(report, [picture, path])
