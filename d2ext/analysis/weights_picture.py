"""A picture of dual weighting: points that pull an object up, and points let off as negatives."""

from pathlib import Path
from typing import Any, Dict

import numpy as np
import torch

from .drawing import show_boxes
from .figures import BLUE, GREEN, ORANGE, PINK, SKY, VERMILION, YELLOW, new_figure, save_figure

__all__ = ["draw_weights", "weigh_image"]

# One colour an object.
COLORS = (ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PINK)
# One marker a level, finest first.
MARKERS = ("o", "s", "D", "^", "P", "X", "v", "*")


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


def draw_weights(
    image: np.ndarray,
    boxes: np.ndarray,
    weights: Dict[str, np.ndarray],
    path: Path,
    *,
    dpi: int = 90,
) -> None:
    """Draw an image's objects, positive weights and relaxed negatives side by side.

    A marker has the colour of its object, the shape of its level and an area like its weight.

    Args:
        image: (H, W, 3) uint8, RGB.
        boxes: (G, 4) objects.
        weights: from :func:`weigh_image`.
        path: file to write.
        dpi: pixels an inch of the figure.
    """
    height, width = image.shape[:2]
    figure, panels = new_figure((12.6, 4.1 * height / width + 0.7), 1, 3, dpi=dpi)
    colors = [COLORS[i % len(COLORS)] for i in range(len(boxes))]
    show_boxes(panels[0], image, boxes, [""] * len(boxes), colors)
    panels[0].set_title("objects")
    # Paler, so that the markers stand out.
    pale = (255 - (255 - image.astype(np.float32)) * 0.35).astype(np.uint8)
    for panel, key, title in (
        (panels[1], "pos_weight", "positive weight"),
        (panels[2], "relaxed", "how much a negative is relaxed, 1 - P_neg"),
    ):
        show_boxes(panel, pale, boxes, [""] * len(boxes), colors)
        _scatter(panel, weights, weights[key], colors)
        panel.set_title(title)
        panel.set_xlim(-0.5, width - 0.5)
        panel.set_ylim(height - 0.5, -0.5)
    _legend(figure, weights["level"])
    save_figure(figure, path)


def _scatter(panel: Any, weights: Dict[str, np.ndarray], values: np.ndarray, colors: list) -> None:
    largest = max(float(values.max(initial=0)), 1e-12)
    for level, marker in enumerate(MARKERS):
        # Weights of a thousandth are markers of less than a pixel.
        here = (weights["level"] == level) & (values > 1e-3 * largest)
        panel.scatter(
            weights["x"][here],
            weights["y"][here],
            s=180 * values[here] / largest,
            c=[colors[g] for g in weights["gt"][here]],
            marker=marker,
            alpha=0.8,
            edgecolors="black",
            linewidths=0.5,
        )


def _legend(figure: Any, levels: np.ndarray) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", marker=MARKERS[i], color="white", markeredgecolor="black",
               label=f"level {i + 1}")
        for i in np.unique(levels)
    ]  # fmt: skip
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=len(handles), frameon=False
        )
