"""What happens when a loss is infinite or NaN."""

import logging
import math
import os
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Deque, Dict, List, Optional

import torch
from detectron2.utils import comm
from torch import nn

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
    """Names and saves the batch of a non-finite loss; then stops, or leaves the step out.

    * ``stop``: costs no wait. On the CPU the check comes before the optimiser's step; on CUDA it
      comes one step later, and a checkpoint is never written before it.
    * ``skip``: checks right after the forward pass, which makes the host wait for the device, and
      restores the buffers the forward pass changed. The step has no backward, no update and no
      ``on_losses`` and ``after_backward``; it is counted, and one beyond ``max_skips`` stops.

    All ranks act alike, whichever of them met the loss.

    Args:
        policy: "stop" or "skip".
        max_skips: steps that may be left out in a run.
        output_dir: where batches are saved, as ``nonfinite_{step}_rank{r}.pth``.
    """

    def __init__(self, policy: str = "stop", max_skips: int = 10, output_dir: str = ""):
        if policy not in ("stop", "skip"):
            raise ValueError(f"ENGINE.NONFINITE is '{policy}'; choose stop or skip.")
        self.policy, self.max_skips, self.output_dir = policy, max_skips, output_dir
        self.skips = 0
        self._recent: Deque[_Step] = deque(maxlen=2)
        self._buffers: Dict[str, torch.Tensor] = {}

    @property
    def skipping(self) -> bool:
        return self.policy == "skip"

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
    def skip(self, model: nn.Module) -> None:
        """Undo the forward passes of this step, and report it. Every rank must call it."""
        for name, buffer in model.named_buffers():
            buffer.copy_(self._buffers[name])
        self.skips += 1
        message = self._report(self._recent[-1], None)
        if self.skips > self.max_skips:
            raise NonFiniteLossError(f"{message} {self.skips - 1} steps were left out before it.")
        if comm.is_main_process():
            logger.warning(f"{message} Left out ({self.skips} of at most {self.max_skips}).")

    def check(self, record: StepRecord, model: nn.Module) -> None:
        """Raise if a loss of the recorded step was not finite. Every rank must call it."""
        if record.finite:
            return
        step = next(s for s in self._recent if s.iteration == record.iteration)
        # If the host reads the losses late, the weights are no longer those of that step.
        weights = model if step is self._recent[-1] else None
        raise NonFiniteLossError(self._report(step, weights))

    def _report(self, step: _Step, model: Optional[nn.Module]) -> str:
        """Save the batch on the ranks that met the loss; the message, equal on all ranks."""
        parts = [part for part in comm.all_gather(self._local_report(step, model)) if part]
        where = " ".join(parts) or "Only the mean over ranks overflowed."
        return f"A loss is not finite at iteration {step.iteration} (lr {step.lr:.6g}). {where}"

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
