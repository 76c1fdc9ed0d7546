"""One entry for all sources: unwrap, rename, check against the model of a config."""

import re
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Tuple

import torch

from .dual_weighting import DUAL_WEIGHTING
from .maskrcnn_benchmark import MASKRCNN_BENCHMARK
from .mmdet import MMDET, one_channel_rpn
from .names import ConvertError, Source, Tensors, rename
from .united_perception import IMPROVED_BASELINE, anchor_first, united_perception
from .yolox import MMDET_YOLOX

__all__ = ["SOURCES", "ConvertReport", "convert_checkpoint"]

Chooser = Callable[[Tensors], Tuple[Source, Tensors]]


def _always(source: Source) -> Chooser:
    return lambda tensors: (source, tensors)


SOURCES: Dict[str, Chooser] = {
    "dw": _always(DUAL_WEIGHTING),
    "efl": united_perception,
    "eqlv2": _always(MMDET),
    "maskrcnn-benchmark": _always(MASKRCNN_BENCHMARK),
    "mmdet": _always(MMDET),
    "sampling-free": _always(MASKRCNN_BENCHMARK),
    "yolox": _always(MMDET_YOLOX),
}
"""Who wrote a checkpoint, by the words of ``--from``."""


class ConvertReport(NamedTuple):
    """What became of a checkpoint.

    Attributes:
        source: the word of ``--from``.
        model: whose detector it is.
        renamed: old to new names are not kept one by one; how many tensors were taken over.
        dropped: names of the checkpoint that the model has no use for.
        kept: names of the model that are not in the checkpoint and keep their values.
    """

    source: str
    model: str
    renamed: int
    dropped: List[str]
    kept: List[str]


def convert_checkpoint(
    state_dict: Mapping[str, Any],
    source: str,
    cfg: Any,
    *,
    class_first: bool = False,
    rpn_background: str = "",
) -> Tuple[Dict[str, torch.Tensor], ConvertReport]:
    """A checkpoint under the names of the detector that a config builds.

    Args:
        state_dict: what the file holds: tensors by name, or a checkpoint with such an entry.
        source: one of :data:`SOURCES`.
        cfg: the config of the detector.
        class_first: the class and box maps of an improved baseline of EFL have the class, or the
            number of the box, first and the anchor last, as United-Perception trains since 2022-05.
        rpn_background: of the two channels an anchor has in an RPN with a softmax, "first" or
            "last" is the background: first in mmdetection before 2.5, last since then.

    Returns:
        The state dict and a report.

    Raises:
        ConvertError: for a name that is not the source's, or a model that it does not fill.
    """
    if source not in SOURCES:
        raise ConvertError(
            f"No checkpoints are known from '{source}'; choose one of {', '.join(SOURCES)}."
        )
    shapes = _model_shapes(cfg)
    found, tensors = SOURCES[source](_unwrap(state_dict))
    counts = [name for name in tensors if name.endswith(".num_batches_tracked")]
    converted = rename(tensors, found.rules(cfg), found.model)
    if class_first:
        if found.model != IMPROVED_BASELINE.model:
            raise ConvertError(
                f"class_first is for {IMPROVED_BASELINE.model}, and this is {found.model}; leave "
                "it out."
            )
        converted = anchor_first(converted, cfg)
    converted = one_channel_rpn(converted, shapes, rpn_background)
    if found.finish is not None:
        converted = found.finish(converted, cfg)
    # Frozen normalisations count no batches.
    converted = {
        name: value
        for name, value in converted.items()
        if name in shapes or not name.endswith(".num_batches_tracked")
    }
    optional = re.compile(rf"{_OURS_ALONE}|{found.optional}")
    dropped = [n for n in converted if n not in shapes and n.startswith("criterion.")]
    for name in dropped:
        del converted[name]
    _check(converted, shapes, optional)
    kept = [name for name in shapes if name not in converted]
    dropped += counts if len(counts) and not any(n in shapes for n in counts) else []
    return converted, ConvertReport(source, found.model, len(converted), dropped, kept)


# Numbers that a detector measures itself: they are the same whatever the weights.
_OURS_ALONE = (
    r"(?:.*\.)?(?:prior|fg_ratio|class_counts)|.*\.num_batches_tracked|normalizer\..*"
    r"|(?:.*\.)?criterion\..*|.*cell_anchors.*"
)


def _unwrap(checkpoint: Mapping[str, Any]) -> Tensors:
    """The tensors of a model, without what surrounds them in a file and in front of their names."""
    for path in (("ema", "ema_state_dict"), ("model",), ("state_dict",)):
        entry: Any = checkpoint
        for key in path:
            entry = entry.get(key) if isinstance(entry, Mapping) else None
        if isinstance(entry, Mapping):
            checkpoint = entry
            break
    tensors = {
        name[len("module.") :] if name.startswith("module.") else name: value
        for name, value in checkpoint.items()
        if isinstance(value, torch.Tensor)
    }
    if not tensors:
        raise ConvertError(
            "The checkpoint holds no tensors by name; pass a state dict, or a checkpoint whose "
            "entry 'state_dict', 'model' or 'ema' is one."
        )
    return tensors


def _model_shapes(cfg: Any) -> Dict[str, torch.Size]:
    from detectron2.modeling import build_model

    import d2ext.modeling  # noqa: F401  (registers what the config names)

    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    return {name: value.shape for name, value in build_model(cfg).state_dict().items()}


def _check(
    converted: Mapping[str, torch.Tensor],
    shapes: Mapping[str, torch.Size],
    optional: "re.Pattern[str]",
) -> None:
    """Refuse a converted checkpoint that does not fill a model, or has more than it."""
    left = sorted(n for n in converted if n not in shapes)
    missing = sorted(n for n in shapes if n not in converted and not optional.fullmatch(n))
    wrong = sorted(n for n in converted if n in shapes and converted[n].shape != shapes[n])
    for names, what in (
        (left, "has no place in the model"),
        (missing, "is not in the checkpoint"),
        (wrong, "has another shape in the model"),
    ):
        if names:
            sizes = ""
            if names is wrong:
                theirs, ours = tuple(converted[names[0]].shape), tuple(shapes[names[0]])
                sizes = f": {theirs}, and the model has {ours}"
            raise ConvertError(
                f"{names[0]} {what} ({len(names)} such){sizes}; choose the config of this "
                f"checkpoint: {_advice(names[0])}."
            )


def _advice(name: str) -> str:
    """Which keys most likely differ, judged by one of our names."""
    for pattern, advice in (
        (r"cls_score|class_counts|mask_head\.predictor", "the same number of classes and anchors"),
        (r"bottom_up\.res\d|bottom_up\.stage", "the same depth and width of the backbone"),
        (r"conv2_offset|reg_offset", "with or without deformable convolutions and refinement"),
        (r"mask_head", "with or without masks"),
        (r"fpn_|top_block|reduce_layers|_blocks", "the same feature pyramid and its levels"),
    ):
        if re.search(pattern, name):
            return advice
    return "the same head, depth and number of classes"
