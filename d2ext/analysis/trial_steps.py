"""Training steps without a training: as the trainer takes them, for commands that watch them."""

import math
import time
from typing import Any, Callable, Dict, Iterator, List, Optional

import torch
from torch import nn

from .doctor import Finding

__all__ = ["check_steps", "take_step"]


def take_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Any],
    *,
    precision: Optional[Any] = None,
    accumulate: int = 1,
    clip: Optional[Callable[[torch.optim.Optimizer], Any]] = None,
) -> Dict[str, float]:
    """One step of :class:`d2ext.engine.Trainer`, without its hooks.

    Args:
        model: gives a dictionary of losses (or one loss) for a batch.
        optimizer: of its parameters; it does nothing if a loss is not finite.
        batches: one is taken for each micro-step.
        precision: a :class:`d2ext.engine.Precision`; float32 by default.
        accumulate: micro-steps, SOLVER.ACCUMULATE.
        clip: called with the optimizer before the update.

    Returns:
        the losses by name, their means over the micro-steps
    """
    from d2ext.data.packed_batch import batch_on
    from d2ext.engine import Precision

    precision = precision or Precision()
    device = next(model.parameters()).device
    means: Dict[str, torch.Tensor] = {}
    optimizer.zero_grad(set_to_none=True)
    for _ in range(accumulate):
        batch = batch_on(next(batches), device)
        with precision.autocast():
            losses = model(batch)
        losses = losses if isinstance(losses, dict) else {"total_loss": losses}
        precision.scale(sum(losses.values()) / accumulate).backward()
        for name, loss in losses.items():
            share = loss.detach() / accumulate
            means[name] = means[name] + share if name in means else share
    values = {name: float(mean) for name, mean in means.items()}
    if all(math.isfinite(value) for value in values.values()):
        precision.unscale(optimizer)
        if clip is not None:
            clip(optimizer)
        precision.step(optimizer)
    return values


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

    cfg = cfg.clone()
    cfg.DATALOADER.NUM_WORKERS = 0
    loader = Trainer.build_train_loader(cfg)
    hooks.count_class_weights(model, loader)
    cfg = resolve_schedule(cfg, loader.epoch_size)
    # The first warm-up rate: BASE_LR from the start is no step that a training takes.
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
