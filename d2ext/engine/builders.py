"""What a trainer's constructor gets from a config, and what is refused before that."""

import inspect
from typing import Any, Dict

from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from d2ext.config import validate
from d2ext.config.classes import class_count_key

from .class_checks import check_classes
from .data_loader import check_batch_size
from .nonfinite import NonFiniteGuard
from .precision import GlobalNormClipper, Precision
from .schedule import resolve_schedule

__all__ = ["arguments_from_config", "check_config", "check_evaluators", "run_arguments"]

# Which method alone reads a key that names one of several choices.
_READERS = {
    "build_optimizer": ("SOLVER.OPTIMIZER",),
    "build_lr_scheduler": ("SOLVER.LR_SCHEDULER_NAME",),
    "build_train_loader": ("DATALOADER.SAMPLER_TRAIN", "DATALOADER.REPEAT_ROUNDING"),
    "build_model": ("MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.NAME"),
}


def check_config(cfg: CfgNode, base: type, trainer: type) -> None:
    """Refuse impossible values of a config.

    Names that an overridden method reads are its own business and may be anything.

    Args:
        cfg: the config.
        base: the trainer whose methods read all keys.
        trainer: that class or one derived from it.
    """
    skip = [k for name, keys in _READERS.items() for k in keys if _differs(base, trainer, name)]
    validate(cfg, skip=tuple(skip))


def check_evaluators(cfg: CfgNode, base: type, trainer: type) -> None:
    """Refuse a data set without an evaluator now, not at the first evaluation."""
    methods = ("build_evaluator", "test", "evaluate", "build_hooks")
    if any(_differs(base, trainer, method) for method in methods):
        return
    from d2ext.evaluation import evaluator_types

    for name in cfg.DATASETS.TEST:
        evaluator_types(name)


def _differs(base: type, trainer: type, method: str) -> bool:
    return inspect.getattr_static(trainer, method) is not inspect.getattr_static(base, method)


def arguments_from_config(cfg: CfgNode, trainer: Any) -> Dict[str, Any]:
    """The arguments of a trainer's constructor, built by its class's methods."""
    cfg = trainer.auto_scale_workers(cfg, comm.get_world_size())
    if cfg.SEED >= 0:
        seed_all_rng(cfg.SEED + comm.get_rank())
    data_loader = trainer.build_train_loader(cfg)
    check_batch_size(data_loader, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE)
    cfg = resolve_schedule(cfg, getattr(data_loader, "epoch_size", 0.0))
    model = trainer.build_model(cfg)
    key = class_count_key(cfg) or "the model's number of classes"
    check_classes(model, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, key)
    optimizer = trainer.build_optimizer(cfg, model)
    return {
        "model": model,
        "data_loader": data_loader,
        "optimizer": optimizer,
        "scheduler": trainer.build_lr_scheduler(cfg, optimizer),
        "clipper": GlobalNormClipper.from_config(cfg),
        "config": cfg,
        **run_arguments(cfg),
    }


def run_arguments(cfg: CfgNode) -> Dict[str, Any]:
    """The arguments of a trainer's constructor that are about the run and not about its parts."""
    engine = cfg.ENGINE
    return {
        "max_iter": cfg.SOLVER.MAX_ITER,
        "precision": Precision(cfg),
        "accumulate": cfg.SOLVER.ACCUMULATE,
        "guard": NonFiniteGuard(
            engine.NONFINITE, engine.MAX_SKIPPED_STEPS, cfg.OUTPUT_DIR, engine.LOG_PERIOD
        ),
        "output_dir": cfg.OUTPUT_DIR,
        "max_to_keep": engine.MAX_TO_KEEP,
        "find_unused_parameters": engine.FIND_UNUSED_PARAMETERS,
    }
