"""The criterion of Detectron2's heads: what its parts record goes into the event storage.

Numbers live on the device, and reading them is a host-device sync. So they are read once in a log
period, all at once, and just before the writers write: a record has one line with all its numbers.
"""

from typing import Any, Dict, List

import torch
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import nn

from d2ext import losses
from d2ext.losses import CoupledTerms, Recording

__all__ = ["CoupledTerms", "Criterion", "put_record", "record_is_due", "set_log_period"]


class Criterion(losses.Criterion):
    """As its base, and it logs what coupling and guide record.

    Args:
        log_period: iterations between two records; 0: none.
        kwargs: arguments of the base.
    """

    def __init__(self, *, log_period: int = 20, **kwargs: Any):
        super().__init__(**kwargs)
        self.log_period = log_period

    def forward(self, *args: Any, **kwargs: Any) -> Dict[str, torch.Tensor]:
        """As the base's."""
        due = record_is_due(self)
        parts: List[Any] = [x for x in (self.coupling, self.guide) if isinstance(x, Recording)]
        for part in parts:
            part.recording = due
        result = super().forward(*args, **kwargs)
        if due:
            put_record({name: x for part in parts for name, x in part.record.items()})
        return result


def set_log_period(model: nn.Module, period: int) -> None:
    """Make every part of a model log with the same period, for models without a config's."""
    module: Any
    for module in model.modules():
        if hasattr(module, "log_period"):
            module.log_period = period


def record_is_due(part: nn.Module) -> bool:
    """Whether a part is to log this pass: a training pass of the step before the writers write.

    A validation pass computes losses too, but is not what is logged here.

    Args:
        part: its ``log_period`` is the number of steps between two records; 0: none.
    """
    learns = part.training and torch.is_grad_enabled()
    if not (learns and part.log_period and has_event_storage()):
        return False
    return (get_event_storage().iter + 1) % part.log_period == 0


def put_record(record: Dict[str, torch.Tensor]) -> None:
    """Put scalars into the event storage, with one transfer from the device for all of them."""
    if not record:
        return
    storage = get_event_storage()
    for name, value in zip(record, torch.stack(list(record.values())).tolist()):
        storage.put_scalar(name, value, smoothing_hint=False)
