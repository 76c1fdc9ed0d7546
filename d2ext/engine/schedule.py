"""What a config's schedule means for this run: real batch, epochs, dry run."""

import logging
import math
from typing import Callable, Dict, List, Tuple

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer

__all__ = [
    "OPTIMIZER_KEYS",
    "apply_fast_dev_run",
    "changed_keys",
    "resolve_schedule",
    "scale_to_world_size",
    "schedule_keys",
]

logger = logging.getLogger(__name__)

FAST_DEV_RUN_STEPS = 4
FAST_DEV_RUN_IMAGES = 4


def resolve_schedule(cfg: CfgNode, epoch_size: float) -> CfgNode:
    """A copy of ``cfg`` in which the iteration keys say what will be done.

    Args:
        cfg: the config.
        epoch_size: images in an epoch, repeats of repeat-factor sampling included.
    """
    frozen = cfg.is_frozen()
    cfg = cfg.clone()
    cfg.defrost()
    _scale_to_batch(cfg)
    _from_epochs(cfg, epoch_size)
    if cfg.ENGINE.FAST_DEV_RUN:
        apply_fast_dev_run(cfg)
    _drop_late_steps(cfg)
    if frozen:
        cfg.freeze()
    return cfg


def scale_to_world_size(cfg: CfgNode, world_size: int) -> CfgNode:
    """Detectron2's scaling of batch and schedule by ``REFERENCE_WORLD_SIZE``.

    The scaled schedule is for the scaled batch, so that :func:`resolve_schedule` must not scale for
    that once more.
    """
    scaled = DefaultTrainer.auto_scale_workers(cfg, world_size)
    reference = cfg.SOLVER.REFERENCE_BATCH
    if reference > 0 and scaled.SOLVER.IMS_PER_BATCH != cfg.SOLVER.IMS_PER_BATCH:
        frozen = scaled.is_frozen()
        scaled.defrost()
        factor = scaled.SOLVER.IMS_PER_BATCH / cfg.SOLVER.IMS_PER_BATCH
        scaled.SOLVER.REFERENCE_BATCH = max(1, round(reference * factor))
        if frozen:
            scaled.freeze()
    return scaled


def _drop_late_steps(cfg: CfgNode) -> None:
    """Learning-rate steps that never come. Detectron2 warns of those beyond MAX_ITER and fails
    on one that equals it, which scaling or epochs easily give."""
    steps = tuple(step for step in cfg.SOLVER.STEPS if step < cfg.SOLVER.MAX_ITER)
    if len(steps) != len(cfg.SOLVER.STEPS):
        logger.warning(
            f"SOLVER.STEPS {cfg.SOLVER.STEPS} go up to SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER} "
            f"or beyond; only {steps} will come."
        )
        cfg.SOLVER.STEPS = steps


def _scale_to_batch(cfg: CfgNode) -> None:
    """Scale lr and iterations by the real batch over the one the config was written for."""
    solver, reference = cfg.SOLVER, cfg.SOLVER.REFERENCE_BATCH
    if reference <= 0 or reference == solver.IMS_PER_BATCH:
        return
    factor = solver.IMS_PER_BATCH / reference
    if not solver.AUTO_SCALE:
        logger.warning(
            f"The schedule was written for {reference} images a step, and this run has "
            f"{solver.IMS_PER_BATCH}: its learning rate would be {solver.BASE_LR * factor:.6g} "
            f"and not {solver.BASE_LR:.6g}. Set SOLVER.AUTO_SCALE True to scale it."
        )
        return
    before = {key: solver[key] for key in ("BASE_LR", "MAX_ITER", "STEPS", "WARMUP_ITERS")}
    solver.BASE_LR *= factor
    solver.BASE_LR_END *= factor
    _map_iterations(cfg, lambda n: int(round(n / factor)))
    # The batch is now what the schedule is for, so a second call changes nothing.
    solver.REFERENCE_BATCH = solver.IMS_PER_BATCH
    changes = ", ".join(f"{key} {value} -> {solver[key]}" for key, value in before.items())
    logger.info(f"Scaled from {reference} to {solver.IMS_PER_BATCH} images a step: {changes}.")


def _map_iterations(cfg: CfgNode, change: Callable[[int], int]) -> None:
    def at_least_one(n: int) -> int:
        return max(change(n), 1) if n > 0 else n

    solver = cfg.SOLVER
    solver.MAX_ITER = at_least_one(solver.MAX_ITER)
    solver.STEPS = tuple(at_least_one(step) for step in solver.STEPS)
    solver.WARMUP_ITERS = at_least_one(solver.WARMUP_ITERS)
    solver.FLAT_ITERS = at_least_one(solver.FLAT_ITERS)
    solver.CHECKPOINT_PERIOD = at_least_one(solver.CHECKPOINT_PERIOD)
    cfg.TEST.EVAL_PERIOD = at_least_one(cfg.TEST.EVAL_PERIOD)
    cfg.TEST.VAL_LOSS.PERIOD = at_least_one(cfg.TEST.VAL_LOSS.PERIOD)


def _from_epochs(cfg: CfgNode, epoch_size: float) -> None:
    """Replace the iteration keys by those given in epochs."""
    solver = cfg.SOLVER
    given = (solver.EPOCHS, solver.WARMUP_EPOCHS, solver.CHECKPOINT_EPOCHS, cfg.TEST.EVAL_EPOCHS)
    if not any(epochs > 0 for epochs in given) and not len(solver.EPOCH_STEPS):
        return
    if epoch_size <= 0:
        raise ValueError(
            "A schedule in epochs needs a training loader with an epoch_size (images); "
            "give the loader one, or give the schedule in iterations."
        )
    per_epoch = epoch_size / solver.IMS_PER_BATCH
    said: List[str] = []

    def iterations(epochs: float, key: str) -> int:
        count = max(1, math.ceil(epochs * per_epoch - 1e-9))
        said.append(f"{key} {count}")
        return count

    if solver.EPOCHS > 0:
        solver.MAX_ITER = iterations(solver.EPOCHS, "MAX_ITER")
    if len(solver.EPOCH_STEPS):
        solver.STEPS = tuple(iterations(epoch, "STEP") for epoch in solver.EPOCH_STEPS)
    if solver.WARMUP_EPOCHS > 0:
        solver.WARMUP_ITERS = iterations(solver.WARMUP_EPOCHS, "WARMUP_ITERS")
    if solver.CHECKPOINT_EPOCHS > 0:
        solver.CHECKPOINT_PERIOD = iterations(solver.CHECKPOINT_EPOCHS, "CHECKPOINT_PERIOD")
    if cfg.TEST.EVAL_EPOCHS > 0:
        cfg.TEST.EVAL_PERIOD = iterations(cfg.TEST.EVAL_EPOCHS, "EVAL_PERIOD")
    logger.info(f"An epoch is {epoch_size:.0f} images, {per_epoch:.2f} steps: {', '.join(said)}.")


def apply_fast_dev_run(cfg: CfgNode) -> None:
    """A handful of steps, one checkpoint and one evaluation of a few images, in place."""
    cfg.SOLVER.MAX_ITER = FAST_DEV_RUN_STEPS
    cfg.SOLVER.STEPS = ()
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.SOLVER.FLAT_ITERS = 0
    # Both happen at the end in any case.
    cfg.SOLVER.CHECKPOINT_PERIOD = FAST_DEV_RUN_STEPS
    cfg.TEST.EVAL_PERIOD = FAST_DEV_RUN_STEPS
    if cfg.TEST.VAL_LOSS.PERIOD > 0:
        cfg.TEST.VAL_LOSS.PERIOD = FAST_DEV_RUN_STEPS
        cfg.TEST.VAL_LOSS.MAX_BATCHES = 2
    cfg.TEST.EXPECTED_RESULTS = []
    cfg.TEST.PRECISE_BN.NUM_ITER = min(cfg.TEST.PRECISE_BN.NUM_ITER, 2)
    cfg.ENGINE.EARLY_STOPPING.PATIENCE = 0
    cfg.ENGINE.LOG_PERIOD = 1
    logger.info(f"Fast development run: {FAST_DEV_RUN_STEPS} steps, whatever the config says.")


# On a resume the optimiser keeps the first ones, and the others are the config's.
OPTIMIZER_KEYS = (
    "BASE_LR", "BIAS_LR_FACTOR", "WEIGHT_DECAY", "WEIGHT_DECAY_NORM", "WEIGHT_DECAY_BIAS",
    "WEIGHT_DECAY_CLASS_BIAS",
    "MOMENTUM", "NESTEROV",
)  # fmt: skip
_SCHEDULE_KEYS = (
    "LR_SCHEDULER_NAME", "BASE_LR_END", "MAX_ITER", "STEPS", "GAMMA",
    "WARMUP_ITERS", "WARMUP_FACTOR", "WARMUP_METHOD", "IMS_PER_BATCH", "FLAT_ITERS", "COSINE_FROM",
)  # fmt: skip


def schedule_keys(cfg: CfgNode) -> Dict[str, object]:
    """What determines an iteration's update of the weights; saved to notice a change on resume."""
    return {
        name: list(value) if isinstance(value := cfg.SOLVER[name], (tuple, list)) else value
        for name in (*OPTIMIZER_KEYS, *_SCHEDULE_KEYS)
    }


def changed_keys(saved: Dict[str, object], now: Dict[str, object]) -> Tuple[List[str], List[str]]:
    """What is not the checkpoint's: (keys that change a resumed run, keys that do not)."""
    # An older checkpoint does not have all of them.
    differ = [name for name in now if name in saved and saved[name] != now[name]]
    changed = [f"{k} {saved[k]} -> {now[k]}" for k in differ if k in _SCHEDULE_KEYS]
    kept = [f"{k} stays {saved[k]}, not {now[k]}" for k in differ if k in OPTIMIZER_KEYS]
    return changed, kept
