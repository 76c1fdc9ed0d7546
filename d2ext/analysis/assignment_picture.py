"""Pictures of what a detector learns from where: labels or weights, by level and object.

Shapes: P priors of all levels, G objects.
"""

from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
import torch

from .drawing import show_boxes
from .figures import (
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    SKY,
    VERMILION,
    YELLOW,
    new_figure,
    plain,
    save_figure,
)  # fmt: skip

__all__ = ["assign_image", "draw_assignments", "table_of_levels", "weigh_image"]

# One colour an object.
COLORS = (ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PINK)


@torch.no_grad()
def assign_image(model: Any, item: Dict[str, Any]) -> List[Dict[str, Any]]:
    """What a detector learns from one training image.

    Any model with ``label_anchors`` (Detectron2's and d2ext's FCOS, RetinaNet, ATSS), with dual
    weighting, or with an RPN.

    Args:
        model: the detector.
        item: ``image`` and ``instances``, as a dataset mapper makes them.

    Returns:
        One entry a picture: ``title``, ``strides`` (of each level), ``priors`` (their number on
        each level), ``ignored`` (likewise), and arrays with one entry a pair of a prior and an
        object: ``x``, ``y`` (pixels), ``level``, ``gt`` and ``weight``, 1 for a positive label.
    """
    if hasattr(model, "weighting_inputs"):
        return _dual_weights(model, item)
    part = getattr(model, "proposal_generator", model)
    label = getattr(part, "label_and_sample_anchors", getattr(part, "label_anchors", None))
    if label is None:
        raise ValueError(
            f"{type(model).__name__} labels no anchors, so there is nothing to show; use FCOS, "
            "RetinaNet, ATSS, DualWeightingFCOS or a detector with an RPN."
        )
    images = model.preprocess_image([item])
    maps = model.backbone(images.tensor)
    names = getattr(part, "head_in_features", None) or part.in_features
    features = [maps[name] for name in names]
    anchors = part.anchor_generator(features)
    instances = [item["instances"].to(model.device)]
    if hasattr(part, "label_features"):
        labels, boxes, *_ = part.label_features(features, instances)
    else:
        labels, boxes = label(anchors, instances)
    labels, boxes = labels[0].cpu(), boxes[0].cpu()
    background = 0 if part is not model else model.num_classes
    positive = (labels >= 0) & (labels != background)
    gt = _nearest_object(boxes[positive], item["instances"].gt_boxes.tensor)
    level = torch.cat([torch.full((len(a),), i) for i, a in enumerate(anchors)])
    corners = torch.cat([a.tensor for a in anchors]).cpu()
    centers = (corners[:, :2] + corners[:, 2:]) / 2
    counts = [len(a) for a in anchors]
    rpn = ", proposals" if part is not model else ""
    return [
        {
            "title": f"{type(model).__name__}{rpn}: positive priors",
            "strides": _strides(images, features),
            "priors": counts,
            "ignored": [int((x < 0).sum()) for x in labels.split(counts)],
            "x": centers[positive, 0].numpy(),
            "y": centers[positive, 1].numpy(),
            "level": level[positive].numpy(),
            "gt": gt.numpy(),
            "weight": np.ones(int(positive.sum())),
        }
    ]


@torch.no_grad()
def weigh_image(model: Any, item: Dict[str, Any]) -> Dict[str, np.ndarray]:
    """Weights that a ``DualWeightingFCOS`` gives the points of one training image.

    Args:
        model: the detector.
        item: ``image`` and ``instances``, as a dataset mapper makes them.

    Returns:
        arrays with one entry a pair of a point and an object: ``x`` and ``y`` in pixels of the
        image, ``level`` and ``gt`` (indices), ``pos_weight``, and ``relaxed``, how much less than a
        full negative of the object's class the point is, 0 to 1.
    """
    from d2ext.ops.dual_weighting import dual_weights

    images = model.preprocess_image([item])
    maps = model.backbone(images.tensor)
    features = [maps[name] for name in model.head_in_features]
    instances = [item["instances"].to(model.device)]
    inputs = model.weighting_inputs(features, model.head(features), instances)
    weights = dual_weights(**inputs, **vars(model.constants))
    level = torch.cat([torch.full((f.shape[2] * f.shape[3],), i) for i, f in enumerate(features)])
    x, y = inputs["points"][weights.point].cpu().numpy().T
    return {
        "x": x,
        "y": y,
        "level": level[weights.point.cpu()].numpy(),
        "gt": weights.gt.cpu().numpy(),
        "pos_weight": weights.pos_weight.cpu().numpy(),
        "relaxed": 1 - weights.neg_metric.cpu().numpy(),
    }


def _dual_weights(model: Any, item: Dict[str, Any]) -> List[Dict[str, Any]]:
    images = model.preprocess_image([item])
    maps = model.backbone(images.tensor)
    features = [maps[name] for name in model.head_in_features]
    weights = weigh_image(model, item)
    counts = [f.shape[2] * f.shape[3] for f in features]
    shared = {
        "strides": _strides(images, features),
        "priors": counts,
        "ignored": [0] * len(counts),
        **{key: weights[key] for key in ("x", "y", "level", "gt")},
    }
    name = type(model).__name__
    return [
        {"title": f"{name}: positive weight", "weight": weights["pos_weight"], **shared},
        {"title": f"{name}: negatives let off, 1 - P_neg", "weight": weights["relaxed"], **shared},
    ]


def _strides(images: Any, features: Sequence[torch.Tensor]) -> List[int]:
    return [round(images.tensor.shape[-1] / f.shape[-1]) for f in features]


def _nearest_object(boxes: torch.Tensor, objects: torch.Tensor) -> torch.Tensor:
    """(K,), for each matched box (K, 4) the index of the object (G, 4) that it is."""
    if len(boxes) == 0:
        return torch.zeros(0, dtype=torch.int64)
    return torch.cdist(boxes.double(), objects.cpu().double(), p=1.0).argmin(dim=1)


def table_of_levels(assignment: Dict[str, Any], num_objects: int) -> List[List[Dict[str, float]]]:
    """By level and object: ``count`` of priors with a weight and ``weight``, their sum."""
    shape = (len(assignment["strides"]), num_objects)
    count, total = np.zeros(shape, dtype=int), np.zeros(shape)
    where = (assignment["level"], assignment["gt"])
    np.add.at(count, where, assignment["weight"] > 0)
    np.add.at(total, where, assignment["weight"])
    return [
        [{"count": int(c), "weight": float(t)} for c, t in zip(*rows)] for rows in zip(count, total)
    ]


def draw_assignments(
    image: np.ndarray,
    boxes: np.ndarray,
    names: Sequence[str],
    rows: List[Tuple[str, Dict[str, Any]]],
    path: Path,
) -> None:
    """Draw an image's objects and, a row an assignment and a column a level, what is learnt.

    A marker has the colour of its object and an area like its weight; a row shares one scale.

    Args:
        image: (H, W, 3) uint8, RGB.
        boxes: (G, 4) objects.
        names: their classes' names.
        rows: a heading (such as the config's name) and an entry of :func:`assign_image` each.
        path: the PNG to write.
    """
    used = sorted({int(v) for _, a in rows for v in np.unique(a["level"])}) or [0]
    height, width = image.shape[:2]
    size = (3.0 * (len(used) + 1), len(rows) * (2.75 * height / width + 0.5) + 0.4)
    figure, grid = new_figure(size, len(rows), len(used) + 1, dpi=110, squeeze=False)
    colors = [COLORS[i % len(COLORS)] for i in range(len(boxes))]
    # Paler, so that the markers stand out.
    pale = (255 - (255 - image.astype(np.float32)) * 0.35).astype(np.uint8)
    for panels, (heading, assignment) in zip(grid, rows):
        show_boxes(panels[0], image, boxes, names, colors)
        panels[0].set_title(f"{plain(heading)}\n{assignment['title']}", fontsize=8, loc="left")
        largest = max(float(np.max(assignment["weight"], initial=0)), 1e-12)
        for panel, level in zip(panels[1:], used):
            show_boxes(panel, pale, boxes, [""] * len(boxes), colors)
            _draw_level(panel, assignment, level, largest, colors)
            panel.set_xlim(-0.5, width - 0.5)
            panel.set_ylim(height - 0.5, -0.5)
    figure.suptitle(
        "Left: objects.  Then by level: priors that learn an object, in its colour; the area of a "
        "circle is the weight.",
        fontsize=9,
    )
    save_figure(figure, path)


def _draw_level(
    panel: Any, assignment: Dict[str, Any], level: int, largest: float, colors: List[str]
) -> None:
    if level >= len(assignment["strides"]):
        panel.set_title("no such level", fontsize=8)
        return
    weight = assignment["weight"]
    # Weights of a thousandth would be circles of less than a pixel.
    here = (assignment["level"] == level) & (weight > 1e-3 * largest)
    stride = assignment["strides"][level]
    panel.scatter(
        assignment["x"][here],
        assignment["y"][here],
        s=70 * weight[here] / largest,
        c=[colors[g] for g in assignment["gt"][here]],
        alpha=0.85,
        edgecolors="black",
        linewidths=0.4,
    )
    text = f"stride {stride} px: {int(here.sum())} of {assignment['priors'][level]} priors"
    panel.set_title(f"{text}\nsum of weights {weight[here].sum():.1f}", fontsize=8)
