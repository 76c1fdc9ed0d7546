"""Tools for tests, ours and yours: counts of what is dispatched and allocated, and a peer.

Counts are the same on every machine and at every load, unlike times, so a test can hold them.
"""

from collections import Counter
from typing import Any, Callable

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["OpCounts", "count_ops", "peak_bytes", "upstream_fcos"]

# Operations whose result, or its shape, takes a host-device sync.
_WAITING = {
    "_local_scalar_dense",
    "_unique2",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "nonzero_numpy",
    "unique_consecutive",
    "unique_dim",
}
# Views cost nothing and are not counted as operations.
_VIEWS = {
    "_reshape_alias",
    "_unsafe_view",
    "alias",
    "as_strided",
    "detach",
    "expand",
    "permute",
    "select",
    "slice",
    "split",
    "split_with_sizes",
    "squeeze",
    "t",
    "transpose",
    "unbind",
    "unsqueeze",
    "view",
}


# Reads that a CPU tensor answers without dispatching anything, and a GPU tensor with a sync.
_READS = {torch.Tensor.cpu: "cpu", torch.Tensor.numpy: "numpy", torch.Tensor.tolist: "tolist"}


class _Reads(TorchFunctionMode):
    """Counts the calls of ``_READS``."""

    def __init__(self, syncs: Counter):
        super().__init__()
        self.syncs = syncs

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in _READS:
            self.syncs[_READS[func]] += 1
        return func(*args, **(kwargs or {}))


class OpCounts(TorchDispatchMode):
    """What was dispatched while the mode was active.

    Attributes:
        by_name: how often each operation was dispatched, views included.
        syncs: how often each operation was called that takes a host-device sync.
        largest: the most elements that any result had.
    """

    def __init__(self):
        super().__init__()
        self.by_name: Counter = Counter()
        self.syncs: Counter = Counter()
        self.largest = 0
        self._reads = _Reads(self.syncs)

    def __enter__(self):
        self._reads.__enter__()
        return super().__enter__()

    def __exit__(self, *exception):
        result = super().__exit__(*exception)
        self._reads.__exit__(*exception)
        return result

    @property
    def total(self) -> int:
        """Operations without views."""
        return sum(n for name, n in self.by_name.items() if name not in _VIEWS)

    @property
    def num_syncs(self) -> int:
        return sum(self.syncs.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        self.by_name[name] += 1
        if _waits(name, args, kwargs or {}):
            self.syncs[name] += 1
        if name not in _VIEWS:
            for x in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(x, torch.Tensor):
                    self.largest = max(self.largest, x.numel())
        return result


def _waits(name: str, args: Any, kwargs: Any) -> bool:
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        masks = (i for i in args[1] if isinstance(i, torch.Tensor))
        # Writing one number under a mask needs no indices of it: PyTorch calls masked_fill.
        fills = name != "index" and args[2].numel() == 1
        return not fills and any(i.dtype in (torch.bool, torch.uint8) for i in masks)
    return name in _WAITING


def count_ops() -> OpCounts:
    """A context manager that counts operations, host-device syncs and the largest result.

    Example::

        with count_ops() as counts:
            loss = criterion(predictions, targets)
        assert counts.num_syncs <= 1
    """
    return OpCounts()


def peak_bytes(function: Callable[[], Any]) -> int:
    """The most bytes of CPU tensors that a call holds at a time, above what there was before.

    Every allocation counts, also those inside of an operation, and its result, if it has one.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        result = function()
    changes = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes.sort(key=lambda e: e.start_ns() if hasattr(e, "start_ns") else e.start_us())
    held = peak = 0
    for change in changes:
        held += change.nbytes()
        peak = max(peak, held)
    del result
    return peak


def upstream_fcos(cfg: Any) -> torch.nn.Module:
    """Detectron2's FCOS, which has no YAML, of the sizes in a config of :class:`ExtFCOS`.

    It is the model of Detectron2's LazyConfig file, and has the state-dict keys of ours.
    """
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import build_resnet_backbone
    from detectron2.modeling.backbone.fpn import FPN, LastLevelP6P7
    from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead

    node, channels = cfg.MODEL.FCOS, cfg.MODEL.FPN.OUT_CHANNELS
    backbone = FPN(
        bottom_up=build_resnet_backbone(cfg, ShapeSpec(channels=3)),
        in_features=["res3", "res4", "res5"],
        out_channels=channels,
        top_block=LastLevelP6P7(channels, channels, in_feature="p5"),
    )
    shapes = backbone.output_shape()
    head = FCOSHead(
        input_shape=[shapes[f] for f in node.IN_FEATURES],
        num_classes=node.NUM_CLASSES,
        conv_dims=[channels] * node.NUM_CONVS,
        norm="GN",
    )
    return FCOS(
        backbone=backbone,
        head=head,
        head_in_features=list(node.IN_FEATURES),
        num_classes=node.NUM_CLASSES,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
    )
