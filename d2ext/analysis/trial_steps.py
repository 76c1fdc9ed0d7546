"""Some real training steps, for the doctor: what a training will cost."""

import math
import time
from typing import Any, List

import torch
from torch import nn

from .doctor import Finding

__all__ = ["check_steps"]


def check_steps(cfg: Any, model: nn.Module, steps: int, report=print) -> List[Finding]:
    """Take some real training steps and say what a training will cost.

    Args:
        cfg: the config.
        model: the detector; its weights change.
        steps: how many.
        report: called with a line of progress.
    """
    from detectron2.utils.events import EventStorage

    from d2ext.engine import GlobalNormClipper, Precision, Trainer, hooks, resolve_schedule
    from d2ext.engine.single_step import take_step

    cfg = cfg.clone()
    cfg.DATALOADER.NUM_WORKERS = 0
    loader = Trainer.build_train_loader(cfg)
    hooks.count_class_weights(model, loader)
    cfg = resolve_schedule(cfg, loader.epoch_size)
    # The first warm-up rate: no training takes a step at BASE_LR from the start.
    cfg.SOLVER.BASE_LR *= cfg.SOLVER.WARMUP_FACTOR
    optimizer = Trainer.build_optimizer(cfg, model)
    how = {
        "precision": Precision(cfg),
        "accumulate": cfg.SOLVER.ACCUMULATE,
        "clip": GlobalNormClipper.from_config(cfg),
    }
    batches, cuda = iter(loader), cfg.MODEL.DEVICE.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    model.train()
    times, used = [], set()
    with EventStorage():
        for index in range(steps):
            start = time.perf_counter()
            losses = take_step(model, optimizer, batches, **how)
            if cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
            bad = [name for name, value in losses.items() if not math.isfinite(value)]
            if bad:
                what = f"{', '.join(bad)} is not finite in step {index + 1}."
                fix = "Check the annotations and the weights."
                return [Finding("error", "steps", what, "The training would stop here.", fix)]
            used |= {n for n, p in model.named_parameters() if p.grad is not None}
            total = sum(losses.values())
            report(f"step {index + 1} of {steps}: {times[-1]:.2f} s, loss {total:.3f}")
    idle = [n for n, p in model.named_parameters() if p.requires_grad and n not in used]
    found = []
    if idle and not cfg.ENGINE.FIND_UNUSED_PARAMETERS:
        found.append(
            Finding("warning", "steps", f"{len(idle)} parameters got no gradient, e.g. {idle[0]}.",
                    "Training on several GPUs would fail.",
                    "Set ENGINE.FIND_UNUSED_PARAMETERS True if that is meant.")
        )  # fmt: skip
    return [*found, _cost(cfg, times, cuda)]


def _cost(cfg: Any, times: List[float], cuda: bool) -> Finding:
    # The first step warms up.
    seconds = sorted(times[1:] or times)[len(times[1:] or times) // 2]
    hours = seconds * cfg.SOLVER.MAX_ITER / 3600
    if cuda:
        memory = f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB of GPU memory at most"
    else:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        memory = f"{peak:.2f} GiB of memory at most, the program's own included"
    whole = f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.0f} minutes"
    count = cfg.SOLVER.ACCUMULATE
    parts = f" in {count} micro-steps" if count > 1 else ""
    return Finding(
        "ok", "steps", f"{seconds:.2f} s a step on {cfg.MODEL.DEVICE}, about {whole} for "
        f"{cfg.SOLVER.MAX_ITER} steps of {cfg.SOLVER.IMS_PER_BATCH} images{parts}; {memory}."
    )  # fmt: skip
