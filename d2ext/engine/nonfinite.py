"""What happens when a loss or a gradient is infinite or NaN."""

import logging
import math
import os
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Deque, Dict, List, Optional

import torch
from detectron2.utils import comm
from torch import nn

from d2ext.data import PackedBatch

from .batch_file import batch_file_names, save_batch
from .errors import NonFiniteLossError
from .step_record import StepRecord

__all__ = ["NonFiniteGuard"]

logger = logging.getLogger(__name__)


@dataclass
class _Step:
    """A step that may still have to be reported: its batches and their losses."""

    iteration: int
    lr: float
    batches: List[Any] = field(default_factory=list)
    losses: List[Dict[str, torch.Tensor]] = field(default_factory=list)


class NonFiniteGuard:
    """Names and saves the batch of a loss or gradient that is not finite; then stops, or leaves the
    step out.

    * ``stop``: costs no host-device sync. On the CPU the check comes before the optimiser's step;
      on CUDA it comes one step later, and a checkpoint is never written before it. Gradients are
      looked at in each step where their norm is known (clipping by it), otherwise every
      ``period`` steps and in the last one: one that comes in between makes the next loss
      non-finite, and no checkpoint takes such weights (see :class:`Checkpointer`).
    * ``skip``: checks the losses right after the forward pass and the gradients of each step, which
      costs a host-device sync, and restores the buffers the forward pass changed. The
      step has no update, and after a loss no backward, ``on_losses`` and ``after_backward``; it is
      counted, and one beyond ``max_skips`` stops.

    All ranks act alike, whichever of them met it.

    Args:
        policy: "stop" or "skip".
        max_skips: steps that may be left out in a run.
        output_dir: where batches are saved, as ``nonfinite_{step}_rank{r}.pth``.
        period: steps between two looks at gradients whose norm is not needed.
    """

    def __init__(
        self, policy: str = "stop", max_skips: int = 10, output_dir: str = "", period: int = 20
    ):
        if policy not in ("stop", "skip"):
            raise ValueError(
                f"The policy for non-finite losses is '{policy}'; choose stop or skip."
            )
        self.policy, self.max_skips, self.output_dir = policy, max_skips, output_dir
        self.period = period
        self.skips = 0
        self._recent: Deque[_Step] = deque(maxlen=2)
        self._buffers: Dict[str, torch.Tensor] = {}

    @property
    def skipping(self) -> bool:
        return self.policy == "skip"

    def looks_at_gradients(self, trainer: Any) -> bool:
        """Whether the gradients of this step are looked at although their norm is not needed."""
        return self.skipping or trainer.is_due(self.period)

    def begin_step(self, iteration: int, lr: float, model: nn.Module) -> None:
        self._recent.append(_Step(iteration, lr))
        if self.skipping:
            self._buffers = {k: b.detach().clone() for k, b in model.named_buffers()}

    def saw(self, batch: Any, losses: Dict[str, torch.Tensor]) -> None:
        """Keep a micro-step's batch and losses until they are known to be finite."""
        step = self._recent[-1]
        step.batches.append(batch)
        step.losses.append({name: loss.detach() for name, loss in losses.items()})

    @torch.no_grad()
    def skip(self, model: nn.Module, *, of_gradient: bool = False) -> None:
        """Undo the forward passes of this step, and report it. Every rank must call it."""
        for name, buffer in model.named_buffers():
            buffer.copy_(self._buffers[name])
        self.skips += 1
        step = self._recent[-1]
        message = self._of_gradient(step, None, model) if of_gradient else self._of_loss(step, None)
        if self.skips > self.max_skips:
            raise NonFiniteLossError(f"{message} {self.skips - 1} steps were left out before it.")
        if comm.is_main_process():
            logger.warning(f"{message} Left out ({self.skips} of at most {self.max_skips}).")

    def check(self, record: StepRecord, model: nn.Module) -> None:
        """Raise if the recorded step met a number that is not finite. Every rank must call it."""
        if record.finite and record.gradients_finite:
            return
        step = next(s for s in self._recent if s.iteration == record.iteration)
        # If the host reads the losses late, the weights are no longer those of that step.
        now = model if step is self._recent[-1] else None
        if not record.finite:
            raise NonFiniteLossError(self._of_loss(step, now))
        raise NonFiniteLossError(self._of_gradient(step, now, now))

    def _of_loss(self, step: _Step, model: Optional[nn.Module]) -> str:
        """Save the batch on the ranks that met the loss; the message, equal on all ranks."""
        parts = [part for part in comm.all_gather(self._local_report(step, model)) if part]
        where = " ".join(parts) or "Only the mean over ranks overflowed."
        return f"A loss is not finite at iteration {step.iteration} (lr {step.lr:.6g}). {where}"

    def _of_gradient(
        self, step: _Step, model: Optional[nn.Module], gradients: Optional[nn.Module]
    ) -> str:
        """The same for a gradient: they are averaged over ranks, so any rank's batch may be it."""
        names = [] if gradients is None else _nonfinite_gradients(gradients)
        of = f", that of {names[0]}" if names else ""
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        batch = _joined(step.batches)
        files = ", ".join(batch_file_names(batch))
        part = f"On rank {comm.get_rank()} the images are {files}."
        parts = comm.all_gather(f"{part}{self._save(step, batch, {}, model)}")
        return (
            f"A gradient is not finite at iteration {step.iteration} (lr {step.lr:.6g}){of}{more}, "
            f"though all losses are. {' '.join(parts)}"
        )

    def _local_report(self, step: _Step, model: Optional[nn.Module]) -> str:
        for batch, losses in zip(step.batches, step.losses):
            values = {name: float(loss) for name, loss in losses.items()}
            bad = [f"{name} is {v}" for name, v in values.items() if not math.isfinite(v)]
            if not bad:
                continue
            files = ", ".join(batch_file_names(batch))
            saved = self._save(step, batch, values, model)
            return f"On rank {comm.get_rank()} {' and '.join(bad)}, for {files}.{saved}"
        return ""

    def _save(
        self, step: _Step, batch: Any, values: Dict[str, float], model: Optional[nn.Module]
    ) -> str:
        if not self.output_dir:
            return ""
        name = f"nonfinite_{step.iteration:07d}_rank{comm.get_rank()}.pth"
        path = os.path.join(self.output_dir, name)
        extra: Dict[str, Any] = {"iteration": step.iteration, "lr": step.lr, "losses": values}
        if model is not None:
            extra["model"] = model.state_dict()
        try:
            save_batch(path, batch, **extra)
        except (OSError, RuntimeError, TypeError) as error:
            return f" The batch could not be saved ({error})."
        return f" The batch is saved in {path}."

    def state_dict(self) -> Dict[str, int]:
        return {"skips": self.skips}

    def load_state_dict(self, state: Dict[str, int]) -> None:
        self.skips = state["skips"]


def _nonfinite_gradients(model: nn.Module) -> List[str]:
    named = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    return [name for name, gradient in named if not bool(torch.isfinite(gradient).all())]


def _joined(batches: List[Any]) -> Any:
    """The batches of a step's micro-steps as one."""
    if len(batches) == 1:
        return batches[0]
    lists = [b.unpack() if isinstance(b, PackedBatch) else b for b in batches]
    return [sample for batch in lists for sample in batch]
