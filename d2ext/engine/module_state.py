"""State that training changes outside of parameters: metrics, attributes, buffers of a rank."""

from collections import defaultdict
from typing import Any, Dict, Iterator, List, Tuple

import torch
from detectron2.utils.events import EventStorage
from fvcore.common.history_buffer import HistoryBuffer
from torch import nn

__all__ = [
    "ChangedAttributes",
    "buffers_of",
    "copy_into_buffers",
    "load_storage",
    "nonfinite_tensors",
    "recent_storage",
    "storage_state",
    "without_repeats",
]

# Longer than any window over which figures are smoothed (the time left uses 1000 steps).
_HISTORY = 1000


def recent_storage(start_iter: int) -> EventStorage:
    """A storage that keeps the recent history of each figure, as much as a checkpoint holds.

    Detectron2's keeps a million values of each: some 2 KB a step, half a GiB in a long run.
    """
    storage = EventStorage(start_iter)
    storage._history = defaultdict(lambda: HistoryBuffer(_HISTORY))
    return storage


def storage_state(storage: EventStorage) -> Dict[str, Any]:
    """The recent history of all figures, as plain values."""
    histories = {}
    for name, history in storage.histories().items():
        histories[name] = {
            "values": [[float(v), int(i)] for v, i in history.values()[-_HISTORY:]],
            "count": int(history._count),
            "average": float(history._global_avg),
        }
    return {
        "histories": histories,
        "latest": {k: [float(v), int(i)] for k, (v, i) in storage.latest().items()},
        "hints": dict(storage.smoothing_hints()),
    }


def load_storage(storage: EventStorage, state: Dict[str, Any]) -> None:
    """Restore what :func:`storage_state` returned."""
    for name, saved in state["histories"].items():
        history = storage._history[name]
        history._data = [(v, i) for v, i in saved["values"]]
        history._count, history._global_avg = saved["count"], saved["average"]
    storage._latest_scalars.update({k: (v, i) for k, (v, i) in state["latest"].items()})
    storage._smoothing_hints.update(state["hints"])


class ChangedAttributes:
    """Plain numbers on modules that training has changed.

    Detectron2's dense detectors keep the running normaliser of their losses in a Python float,
    which no state dict holds. Our own models have none of these.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self._initial = _numbers(model)

    def state_dict(self) -> Dict[str, Any]:
        now = _numbers(self._model)
        return {
            f"{name}:{attribute}": value
            for (name, attribute), value in now.items()
            if self._initial.get((name, attribute)) != value
        }

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        modules = dict(self._model.named_modules())
        for key, value in state.items():
            name, attribute = key.rsplit(":", 1)
            if name in modules:
                setattr(modules[name], attribute, value)


def _numbers(model: nn.Module) -> Dict[Tuple[str, str], Any]:
    return {
        (name, key): value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if type(value) in (int, float)
    }


@torch.no_grad()
def nonfinite_tensors(data: Any) -> List[str]:
    """The dotted names of tensors that are not finite, in nested dictionaries and lists.

    One host-device sync a device, however many tensors there are.
    """
    tensors: Dict[torch.device, List[Tuple[str, torch.Tensor]]] = defaultdict(list)
    for name, tensor in _tensors(data):
        if tensor.is_floating_point() and tensor.numel():
            tensors[tensor.device].append((name, tensor))
    bad: List[str] = []
    for named in tensors.values():
        finite = torch.stack([torch.isfinite(tensor).all() for _, tensor in named]).tolist()
        bad += [name for (name, _), good in zip(named, finite) if not good]
    return bad


def _tensors(data: Any, path: str = "") -> Iterator[Tuple[str, torch.Tensor]]:
    if isinstance(data, torch.Tensor):
        yield path, data
    elif isinstance(data, (dict, list, tuple)):
        items = data.items() if isinstance(data, dict) else enumerate(data)
        for key, value in items:
            yield from _tensors(value, f"{path}.{key}" if path else str(key))


def buffers_of(model: nn.Module) -> Dict[str, torch.Tensor]:
    """Copies on the CPU of the buffers that a checkpoint holds."""
    state = model.state_dict()
    return {name: state[name].detach().cpu().clone() for name in buffer_names(model)}


def buffer_names(model: nn.Module) -> List[str]:
    """The names of the buffers that a checkpoint holds."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return [name for name in model.state_dict() if name not in parameters]


@torch.no_grad()
def copy_into_buffers(model: nn.Module, values: Dict[str, torch.Tensor]) -> None:
    """Set some of a model's buffers."""
    state = model.state_dict()
    for name, value in values.items():
        if name in state:
            state[name].copy_(value)


def without_repeats(ranks: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Drop the buffers of a rank that equal rank 0's, which the model in the checkpoint has."""
    first = ranks[0]["buffers"]
    kept: Dict[int, Dict[str, torch.Tensor]] = defaultdict(dict)
    for rank, state in enumerate(ranks):
        for name, value in state["buffers"].items():
            if rank and not torch.equal(value, first[name]):
                kept[rank][name] = value
    return [{**state, "buffers": kept[rank]} for rank, state in enumerate(ranks)]
