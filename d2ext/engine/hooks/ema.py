"""Exponential moving average of a model's parameters and buffers."""

import contextlib
import math
from typing import Any, Dict, Iterator, List, Optional, Set, Tuple

import torch
from detectron2.utils import comm
from torch import nn

from ..module_state import buffer_names
from .base import HookBase

__all__ = ["ModelEMA"]


class ModelEMA(HookBase):
    """Keeps e <- e + (1 - decay) (x - e) over parameters and floating-point buffers.

    Other buffers (counters) are copied. The average is held in float32 or wider, beside the
    model; :meth:`applied` lends it to the model. At the end it is written as
    ``model_final_ema.pth``, which serves as MODEL.WEIGHTS.

    Args:
        model: the model without a wrapper.
        decay: how much of the average stays in a step.
        warmup: step t uses min(decay, (1 + t) / (warmup + t)), so that the random first weights
            are forgotten soon; 0 uses ``decay`` from the first step.
        rule: "exp" for ``decay (1 - exp(-t / warmup))`` instead, whose first step copies the model.
    """

    def __init__(
        self, model: nn.Module, decay: float = 0.9998, warmup: int = 10, rule: str = "ratio"
    ):
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"ENGINE.EMA.DECAY is {decay}; it must be at least 0 and below 1.")
        if rule not in ("ratio", "exp"):
            raise ValueError(f"rule must be ratio or exp, not '{rule}'.")
        self.model, self.decay, self.warmup, self.rule = model, decay, warmup, rule
        self.updates = 0
        self.average: Dict[str, torch.Tensor] = {}
        self._reset()

    def _reset(self) -> None:
        self.average = {k: _widened(v) for k, v in self.model.state_dict().items()}
        self._places: Optional[List[Tuple[str, Dict, str]]] = None

    def before_train(self) -> None:
        # Weights are loaded after the hook is built; a restored average has updates.
        if self.updates == 0:
            self._reset()

    def after_step(self) -> None:
        self.update()

    def after_train(self) -> None:
        if self.trainer.finished:
            weights = {"model": self.model_state_dict()}
            self.trainer.checkpointer.write("model_final_ema", weights, tag=False)

    @torch.no_grad()
    def update(self) -> None:
        """Take the model's present weights into the average."""
        decay = self.decay
        if self.warmup > 0 and self.rule == "exp":
            decay *= 1 - math.exp(-self.updates / self.warmup)
        elif self.warmup > 0:
            decay = min(decay, (1 + self.updates) / (self.warmup + self.updates))
        self.updates += 1
        averages, sources, copies = self._tensors()
        # lerp leaves a constant exactly unchanged, which e * d + x * (1 - d) does not.
        if averages:
            torch._foreach_lerp_(averages, [s.to(a) for a, s in zip(averages, sources)], 1 - decay)
        for average, source in copies:
            average.copy_(source)

    def _tensors(self) -> Tuple[List[torch.Tensor], List[torch.Tensor], List[Tuple]]:
        """(averages, the model's tensors in that order, pairs that are only copied)."""
        if self._places is None:
            self._places = list(_places(self.model, set(self.average)))
        averages, sources, copies = [], [], []
        # Looked up in each step: PreciseBN, for one, puts new tensors in place of buffers.
        for name, holder, key in self._places:
            value = holder[key].detach()
            if value.is_floating_point():
                averages.append(self.average[name])
                sources.append(value)
            else:
                copies.append((self.average[name], value))
        return averages, sources, copies

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside of the block the model has the averaged weights; afterwards its own again."""
        own = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self._copy_into_model(self.average)
        try:
            yield
        finally:
            self._copy_into_model(own)

    @torch.no_grad()
    def _copy_into_model(self, values: Dict[str, torch.Tensor]) -> None:
        for name, tensor in self.model.state_dict().items():
            # The normaliser of a dense detector's losses joins the state dict when it first moves,
            # after the average began. No prediction depends on it.
            if name in values:
                tensor.copy_(values[name])

    def model_state_dict(self) -> Dict[str, torch.Tensor]:
        """The average under the model's own keys and types: a checkpoint for any program."""
        model = self.model.state_dict()
        return {k: v.to(model[k].dtype) for k, v in self.average.items()}

    def state_dict(self) -> Dict[str, Any]:
        return {"updates": self.updates, "average": dict(self.average)}

    @property
    def per_rank_state(self) -> bool:  # type: ignore[override]
        """Ranks have the same parameters, but each its own batch-norm statistics."""
        return comm.get_world_size() > 1

    def rank_state_dict(self) -> Dict[str, Any]:
        """The averages of buffers, on the CPU: they are sent to rank 0."""
        # A buffer that joined the state dict after the average began, as a normaliser, has none.
        names = [name for name in buffer_names(self.model) if name in self.average]
        return {"average": {name: self.average[name].cpu() for name in names}}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        self.updates = state_dict.get("updates", self.updates)  # not in the part of a rank
        for name, value in state_dict["average"].items():
            if name in self.average:
                self.average[name].copy_(value)


def _widened(value: torch.Tensor) -> torch.Tensor:
    value = value.detach().clone()
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _places(model: nn.Module, names: Set[str]) -> Iterator[Tuple[str, Dict, str]]:
    """Where the tensors of a state dict live: (name, a module's dictionary, key in it)."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for holder in (module._parameters, module._buffers):
            for key in holder:
                name = f"{prefix}.{key}" if prefix else key
                if name in names:
                    yield name, holder, key
