"""DistributedDataParallel, and the one part of its state that is in no state dict."""

import contextlib
import logging
from typing import Any, Iterator, List

import torch
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["GradientOrder", "create_ddp_model"]

logger = logging.getLogger(__name__)


def create_ddp_model(model: nn.Module, *, find_unused_parameters: bool = False) -> nn.Module:
    """Wrap a model in DistributedDataParallel if there are several ranks, on GPU or CPU."""
    if comm.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    return DistributedDataParallel(
        model,
        # Detectron2's helper names the GPU by the rank: DDP refuses that on the CPU, and a process
        # that sees one GPU alone has no other number for it than 0.
        device_ids=[device.index] if device.type == "cuda" else None,
        broadcast_buffers=False,
        find_unused_parameters=find_unused_parameters,
    )


class GradientOrder:
    """The order in which gradients became ready in a run's first backward pass.

    DistributedDataParallel sorts its buckets by it before the second step, so that communication
    overlaps with the backward pass. Where a gradient lies in a bucket decides in which order three
    or more ranks add it up, and so its last bits. A resumed run begins with unsorted buckets again:
    :meth:`replay` sorts them as they were before its first step.

    Args:
        model: the model in its wrapper; without one there is nothing to do.
    """

    def __init__(self, model: nn.Module):
        sorts = isinstance(model, DistributedDataParallel) and not model.find_unused_parameters
        self._wrapper: Any = model if sorts else None
        self._sorted = False  # whether the buckets of this process are
        self.names: List[str] = []

    def _parameters(self) -> dict:
        named = self._wrapper.module.named_parameters()
        return {name: p for name, p in named if p.requires_grad}

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Records the backward pass in the block, if it is the first one that ranks share."""
        if self._wrapper is None or self._sorted:
            yield
            return
        seen: List[str] = []
        handles = [
            parameter.register_hook(lambda gradient, name=name: seen.append(name))
            for name, parameter in self._parameters().items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        if seen:  # else the step was left out
            # Rank 0's order counts, as the checkpoint is rank 0's too.
            self.names, self._sorted = list(dict.fromkeys(seen)), True

    def replay(self) -> None:
        """Sort the buckets as the run did that this one goes on with. Every rank must call it."""
        if self._wrapper is None or self._sorted or not self.names:
            return
        parameters = self._parameters()
        if set(parameters) != set(self.names):
            return  # of another model: nothing can be exact
        module = self._wrapper.module

        def forward() -> torch.Tensor:
            # What was computed last is differentiated first.
            total = torch.zeros((), device=next(module.parameters()).device)
            for name in reversed(self.names):
                total = total + parameters[name].reshape(-1)[0] * 0
            return total

        module.forward = forward
        try:
            self._wrapper().backward()
        finally:
            del module.forward
        for parameter in parameters.values():
            parameter.grad = None
        self._sorted = True
