"""Learning-rate schedules: Detectron2's, and that of YOLOX."""

import math

import torch
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier
from detectron2.solver import build_lr_scheduler as build_upstream
from fvcore.common.param_scheduler import ParamScheduler

__all__ = ["QuadraticCosineSchedule", "build_lr_scheduler"]


class QuadraticCosineSchedule(ParamScheduler):
    """Up with the square of the step, down along a cosine, then flat.

    Factor of the rate at step t: ``(t / warmup)^2`` at first; then half a cosine from ``peak`` to
    ``end * peak``, which it reaches ``flat`` steps before the last and keeps.

    Args:
        max_iter: steps in all.
        warmup: steps of the warm-up.
        flat: steps at the end.
        end: the last rate over the peak.
        last_of_warmup: the peak is what the warm-up reached in its last step, a little below 1, as
            in United-Perception; else 1, as in YOLOX.
    """

    def __init__(
        self, max_iter: int, *, warmup: int, flat: int, end: float, last_of_warmup: bool = False
    ):
        if warmup + flat >= max_iter:
            raise ValueError(
                f"warmup ({warmup} steps) and flat ({flat}) leave no step of {max_iter} for the "
                "cosine; shorten one of them."
            )
        self.max_iter = max_iter
        self.warmup = warmup
        self.flat = flat
        self.end = end
        self.peak = ((warmup - 1) / warmup) ** 2 if last_of_warmup and warmup else 1.0

    def __call__(self, where: float) -> float:
        step = round(where * self.max_iter)
        if step < self.warmup:
            return (step / self.warmup) ** 2
        last = self.max_iter - self.flat
        if step >= last:
            return self.end * self.peak
        cosine = math.cos(math.pi * (step - self.warmup) / (last - self.warmup))
        return self.peak * (self.end + (1 - self.end) / 2 * (1 + cosine))


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
    """The schedule called ``SOLVER.LR_SCHEDULER_NAME``."""
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME != "QuadraticWarmupCosineLR":
        return build_upstream(cfg, optimizer)
    schedule = QuadraticCosineSchedule(
        solver.MAX_ITER,
        warmup=solver.WARMUP_ITERS,
        flat=solver.FLAT_ITERS,
        end=solver.BASE_LR_END / solver.BASE_LR,
        last_of_warmup=solver.COSINE_FROM == "warmup",
    )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=solver.MAX_ITER)
