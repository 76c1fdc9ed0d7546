"""The training losses on a validation set, without touching anything the training uses."""

import contextlib
from typing import Any, Callable, Dict, Iterable, Iterator, List, Tuple

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from ..random_state import isolated_random_state, seed_cpu
from .base import MeasuringHook

__all__ = ["ValidationLoss", "untouched"]


class ValidationLoss(MeasuringHook):
    """Logs "val/{loss name}" and "val/total_loss" every ``period`` steps and after the last one.

    The model runs in training mode, because only then it computes losses, but without gradients.
    Afterwards buffers (batch norm, running normalisers, class statistics), plain attributes of
    modules, training modes and random states are what they were. Hooks on losses do not run: the
    figures are those of the model itself.

    Args:
        period: steps between two measurements.
        model: the model without a wrapper.
        batches: returns an iterable of (batch, weight); the same number of them on each rank,
            because a model may reduce over ranks in its losses. A weight is the number of images
            that count.
    """

    def __init__(
        self, period: int, model: nn.Module, batches: Callable[[], Iterable], seed: int = 0
    ):
        super().__init__()
        self.period, self._model, self._batches, self._seed = period, model, batches, seed

    def after_step(self) -> None:
        if self.trainer.is_due(self.period):
            self.last_figures = {f"val/{name}": value for name, value in self.measure().items()}
            self.measured_at = self.trainer.iter
            for name, value in self.last_figures.items():
                self.trainer.storage.put_scalar(name, value, smoothing_hint=False)

    def measure(self) -> Dict[str, float]:
        """Mean losses over the set and over all ranks."""
        sums: Dict[str, torch.Tensor] = {}
        count = 0.0
        with untouched(self._model), isolated_random_state(), EventStorage(), torch.no_grad():
            # Sampling of proposals is random: the same samples each time make values comparable.
            seed_cpu(self._seed)
            self._model.train()
            _draw_nothing(self._model)
            for batch, weight in self._batches():
                losses = self._model(batch)
                for name, loss in losses.items():
                    term = loss.detach().double() * weight
                    sums[name] = sums[name] + term if name in sums else term
                count += weight
        parts = comm.all_gather(({name: float(s) for name, s in sums.items()}, count))
        total = sum(n for _, n in parts)
        names = dict.fromkeys(name for part, _ in parts for name in part)
        means = {name: sum(p.get(name, 0.0) for p, _ in parts) / max(total, 1) for name in names}
        return {**means, "total_loss": sum(means.values())}


def _draw_nothing(model: nn.Module) -> None:
    """Pictures are for the training's storage: one that stays at step 0 would keep every image."""
    for module in model.modules():
        if isinstance(getattr(module, "vis_period", None), int):
            module.vis_period = 0  # type: ignore[assignment]


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Whatever the block does to buffers, simple attributes and modes of modules is undone."""
    saved: List[Any] = []
    for module in model.modules():
        buffers = {k: (b, b.detach().clone()) for k, b in module._buffers.items() if b is not None}
        attributes: Dict[str, Tuple[Any, Any]] = {}
        for key, value in vars(module).items():
            if isinstance(value, torch.Tensor):
                attributes[key] = (value, value.detach().clone())
            elif value is None or isinstance(value, (bool, int, float, str)):
                attributes[key] = (value, None)
            elif isinstance(value, dict) and not key.startswith("_"):
                attributes[key] = (value, dict(value))
        saved.append((module, buffers, attributes))
    try:
        yield
    finally:
        for module, buffers, attributes in saved:
            _restore(module, buffers, attributes)


@torch.no_grad()
def _restore(module: nn.Module, buffers: Dict, attributes: Dict) -> None:
    for key, (tensor, copy) in buffers.items():
        tensor.copy_(copy)
        module._buffers[key] = tensor
    for key in [k for k in vars(module) if k not in attributes and _is_simple(vars(module)[k])]:
        del module.__dict__[key]
    for key, (value, copy) in attributes.items():
        if isinstance(value, torch.Tensor):
            value.copy_(copy)
        elif isinstance(value, dict):
            value.clear()
            value.update(copy)
        module.__dict__[key] = value


def _is_simple(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, torch.Tensor))
