"""A step's losses and the wishes to stop: summed over ranks once, read by the host once."""

import math
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from detectron2.utils import comm

__all__ = ["StepRecord", "StepRecorder"]


@dataclass
class StepRecord:
    """What all ranks know of a step.

    Attributes:
        iteration: the step.
        losses: mean over ranks of each named loss; equal on every rank.
        total: the mean over ranks of the sum of all losses.
        local_losses: this rank's own losses.
        data_time: the longest wait for data among ranks, in seconds.
        rank_data_time: this rank's own.
        stop_wishes: how many ranks asked to stop, (because of a signal, otherwise).
        grad_norm: norm of all gradients before clipping, if it was computed.
        finite: whether every loss of every rank is finite.
        gradients_finite: whether every gradient is, as far as they were looked at.
    """

    iteration: int
    losses: Dict[str, float]
    total: float
    local_losses: Dict[str, float]
    data_time: float
    rank_data_time: float
    stop_wishes: Tuple[int, int]
    grad_norm: Optional[float]
    finite: bool
    gradients_finite: bool = True


@dataclass
class _Pending:
    iteration: int
    names: List[str]
    local: torch.Tensor
    """This rank's losses, in the order of ``names``, and the sum of those without a name yet."""
    reduced: torch.Tensor
    """The same summed over ranks, followed by the tail (several ranks only)."""
    grad_norm: Optional[torch.Tensor]
    data_time: float
    stop_wishes: Tuple[bool, bool]
    gradients: Optional[torch.Tensor] = None
    ready: Optional["torch.cuda.Event"] = None


class StepRecorder:
    """Collects one vector a step: losses, data times, wishes to stop.

    On CUDA the vector is copied to the host while the GPU goes on, and read one step later, so the
    host does not wait for the GPU inside of a step. On the CPU there is nothing to wait for.

    Ranks agree on the names of the losses in the first step, and again after a step in which one
    of them met a new name. So a rank whose model returns fewer losses adds zeros, instead of
    leaving the others alone in a reduction of another length.

    Args:
        device: where the losses live.
        lag: read a step when the next one is handed in.
    """

    def __init__(self, device: torch.device, lag: bool):
        self.device, self.lag = device, lag
        self.world_size, self.rank = comm.get_world_size(), comm.get_rank()
        self._names: List[str] = []
        self._pending: Optional[_Pending] = None

    def push(
        self,
        iteration: int,
        losses: Dict[str, torch.Tensor],
        data_time: float,
        stop_wishes: Tuple[bool, bool] = (False, False),
        grad_norm: Optional[torch.Tensor] = None,
        deferred: Sequence[tuple] = (),
        *,
        gradients: Optional[torch.Tensor] = None,
    ) -> List[StepRecord]:
        """Hand in a step; returns the steps that can be read now. Every rank must call it.

        ``deferred`` are tensors to be summed over ranks in the same message; see
        :func:`d2ext.ops.reduce.deferring`. ``gradients`` (their norm, or their sum) is not finite
        if one is not; it is read with the losses and equal on all ranks.
        """
        records = self.flush()
        if self.world_size == 1:
            self._names = list(losses)
        elif not self._names:
            self._agree_on_names(list(losses))
        local, reduced = self._reduce(losses, data_time, stop_wishes, deferred)
        self._pending = _Pending(
            iteration,
            self._names,
            local,
            reduced,
            grad_norm,
            data_time,
            stop_wishes,
            gradients,
        )
        if self.device.type == "cuda":
            _start_copy(self._pending)
        return records if self.lag else records + self.flush()

    def flush(self) -> List[StepRecord]:
        """The step that was not read yet, if any. Every rank must call it at the same point."""
        if self._pending is None:
            return []
        step, self._pending = self._pending, None
        if step.ready is not None:
            step.ready.synchronize()
        count = len(step.names) + 1
        local, values = step.local.tolist(), step.reduced.tolist()
        tail = values[count:]
        data_time, wishes = step.data_time, step.stop_wishes
        if self.world_size > 1:
            data_time, wishes = max(tail[: self.world_size]), (tail[-2], tail[-1])
            if tail[-3] > 0:
                self._agree_on_names(self._last_local_names)
        means = [value / self.world_size for value in values[:count]]
        norm = None if step.grad_norm is None else float(step.grad_norm)
        figure: Any = norm if step.gradients is step.grad_norm else step.gradients
        return [
            StepRecord(
                iteration=step.iteration,
                losses=dict(zip(step.names, means)),
                total=sum(means),
                local_losses=dict(zip(step.names, local)),
                data_time=data_time,
                rank_data_time=step.data_time,
                stop_wishes=(round(wishes[0]), round(wishes[1])),
                grad_norm=norm,
                finite=all(math.isfinite(mean) for mean in means),
                gradients_finite=step.gradients is None or math.isfinite(float(figure)),
            )
        ]

    def any_nonfinite(self, losses: Dict[str, torch.Tensor]) -> bool:
        """Whether a loss of any rank is not finite, now. Waits for the device and all ranks."""
        flag = (~torch.isfinite(_stack(list(losses.values()), self.device))).any().float()
        if self.world_size > 1:
            torch.distributed.all_reduce(flag)
        return bool(flag > 0)

    def _reduce(
        self,
        losses: Dict[str, torch.Tensor],
        data_time: float,
        stop_wishes: Tuple[bool, bool],
        deferred: Sequence[tuple],
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        if self.world_size == 1:
            local = _stack([*losses.values(), _zero(self.device)], self.device)
            return local, local
        zero = _zero(self.device)
        named = [losses.get(name, zero) for name in self._names]
        unnamed = [loss for name, loss in losses.items() if name not in self._names]
        local = _stack([*named, sum(unnamed, zero)], self.device)
        times = [0.0] * self.world_size
        times[self.rank] = data_time
        tail = [*times, float(len(unnamed) > 0), *map(float, stop_wishes)]
        self._last_local_names = list(losses)
        own = torch.tensor(tail).to(self.device, non_blocking=True)
        parts = [local, own, *(tensor.flatten().to(self.device) for tensor, _ in deferred)]
        message = torch.cat(parts)
        torch.distributed.all_reduce(message)
        reduced, *sums = message.split([len(local) + len(tail), *map(len, parts[2:])])
        for (tensor, take_in), total in zip(deferred, sums):
            take_in(total.view(tensor.shape).to(tensor.device))
        return local, reduced

    def _agree_on_names(self, names: List[str]) -> None:
        known = [*self._names, *(n for part in comm.all_gather(names) for n in part)]
        self._names = list(dict.fromkeys(known))


def _start_copy(step: _Pending) -> None:
    """Move a step's numbers to page-locked memory, after the work queued on the GPU."""

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor.detach(), non_blocking=True)

    same = step.local is step.reduced
    step.local = copy(step.local)
    step.reduced = step.local if same else copy(step.reduced)
    same = step.gradients is step.grad_norm
    if step.grad_norm is not None:
        step.grad_norm = copy(step.grad_norm)
    if same:
        step.gradients = step.grad_norm
    elif step.gradients is not None:
        step.gradients = copy(step.gradients)
    step.ready = torch.cuda.Event()
    step.ready.record()


def _stack(values: List[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Scalars as one float32 vector, without a graph."""
    return torch.stack([v.detach().to(device=device, dtype=torch.float32) for v in values])


_ZEROS: Dict[torch.device, torch.Tensor] = {}


def _zero(device: torch.device) -> torch.Tensor:
    if device not in _ZEROS:
        _ZEROS[device] = torch.zeros((), device=device)
    return _ZEROS[device]
