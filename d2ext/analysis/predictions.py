"""Pictures of predictions beside the ground truth."""

from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
import torch

from d2ext._files import open_image

__all__ = ["draw_boxes", "draw_sheet", "match_detections", "predict_examples"]

# Colours of Okabe and Ito, told apart also with impaired colour vision.
GREEN, BLUE, VERMILION = "#009E73", "#0072B2", "#D55E00"


def predict_examples(
    model: torch.nn.Module, loader: Any, count: int, score_thresh: float
) -> List[Dict[str, Any]]:
    """Run a model on the first ``count`` images of a test loader.

    Args:
        model: any Detectron2 detector.
        loader: a Detectron2 test loader; each image comes with its ``file_name``.
        count: how many images.
        score_thresh: boxes below this score are left out.

    Returns:
        For each image: ``file_name``, ``boxes`` (K, 4), ``classes`` (K,) and ``scores`` (K,), the
        boxes in pixels of the file.
    """
    examples: List[Dict[str, Any]] = []
    model.eval()
    with torch.no_grad():
        for inputs in loader:
            for item, output in zip(inputs, model(inputs)):
                found = output["instances"].to("cpu")
                found = found[found.scores >= score_thresh]
                examples.append(
                    {
                        "file_name": item["file_name"],
                        "boxes": found.pred_boxes.tensor.numpy(),
                        "classes": found.pred_classes.numpy(),
                        "scores": found.scores.numpy(),
                    }
                )
                if len(examples) == count:
                    return examples
    return examples


def match_detections(
    boxes: np.ndarray, classes: np.ndarray, gt_boxes: np.ndarray, gt_classes: np.ndarray
) -> Tuple[np.ndarray, np.ndarray]:
    """Which detections are right at IoU 0.5, best score first, each object found at most once.

    Args:
        boxes, classes: detections, (K, 4) and (K,), in falling order of score.
        gt_boxes, gt_classes: objects, (G, 4) and (G,).

    Returns:
        (K,) whether a detection is right, and (G,) whether an object is found.
    """
    right, found = np.zeros(len(boxes), bool), np.zeros(len(gt_boxes), bool)
    if not len(boxes) or not len(gt_boxes):
        return right, found
    left_top = np.maximum(boxes[:, None, :2], gt_boxes[None, :, :2])
    right_bottom = np.minimum(boxes[:, None, 2:], gt_boxes[None, :, 2:])
    overlap = np.clip(right_bottom - left_top, 0, None).prod(axis=2)
    area = lambda b: (b[:, 2:] - b[:, :2]).prod(axis=1)  # noqa: E731
    iou = overlap / np.maximum(area(boxes)[:, None] + area(gt_boxes)[None] - overlap, 1e-9)
    iou = np.where(classes[:, None] == gt_classes[None], iou, 0)
    for k in range(len(boxes)):
        free = np.where(found, 0, iou[k])
        best = int(free.argmax())
        if free[best] >= 0.5:
            right[k] = found[best] = True
    return right, found


def draw_boxes(
    axes: Any, image: np.ndarray, boxes: np.ndarray, labels: Sequence[str], colors: Sequence[str]
) -> None:
    """Draw an image and labelled boxes into matplotlib axes."""
    import matplotlib.pyplot as plt

    axes.imshow(image)
    axes.set_axis_off()
    for (x1, y1, x2, y2), label, color in zip(boxes, labels, colors):
        axes.add_patch(
            plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, linewidth=1.4)
        )
        axes.text(
            max(x1, 0), max(y1 - 2, 7), label, fontsize=5.5, color="white",
            bbox={"facecolor": color, "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
        )  # fmt: skip


def draw_sheet(
    examples: List[Dict[str, Any]], truth: Dict[str, Dict[str, Any]], names: List[str], path: Path
) -> Dict[str, float]:
    """Draw ground truth (left) and predictions (right) of each example into one PNG.

    Args:
        examples: from :func:`predict_examples`.
        truth: Detectron2 dataset dicts by ``file_name``, boxes as XYXY in ``boxes`` and class
            indices in ``classes``.
        names: class names.
        path: the PNG to write.

    Returns:
        Counts over all examples: ``objects``, ``found``, ``detections`` and ``right``.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = 2 if len(examples) > 1 else 1
    rows = (len(examples) + columns - 1) // columns
    figure, grid = plt.subplots(
        rows, 2 * columns, figsize=(5.4 * columns, 2.75 * rows + 0.5), squeeze=False, dpi=150
    )
    for axes in grid.flat:
        axes.set_axis_off()
    totals = {"objects": 0, "found": 0, "detections": 0, "right": 0}
    for i, example in enumerate(examples):
        with open_image(example["file_name"]) as image:
            image = np.asarray(image.convert("RGB"))
        gt = truth[example["file_name"]]
        right, found = match_detections(
            example["boxes"], example["classes"], gt["boxes"], gt["classes"]
        )
        left_axes, right_axes = grid[i // columns, 2 * (i % columns) : 2 * (i % columns) + 2]
        gt_labels = [names[c] for c in gt["classes"]]
        colors = [GREEN if hit else VERMILION for hit in found]
        draw_boxes(left_axes, image, gt["boxes"], gt_labels, colors)
        labels = [f"{names[c]} {s:.2f}" for c, s in zip(example["classes"], example["scores"])]
        colors = [BLUE if hit else VERMILION for hit in right]
        draw_boxes(right_axes, image, example["boxes"], labels, colors)
        for key, values in (("objects", found), ("detections", right)):
            totals[key] += len(values)
        totals["found"] += int(found.sum())
        totals["right"] += int(right.sum())
    figure.suptitle(
        "Left: ground truth (green found, orange missed).  "
        "Right: predictions (blue right at IoU 0.5, orange wrong).",
        fontsize=9,
    )
    figure.tight_layout(rect=(0, 0, 1, 0.985), pad=0.4)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
    return totals
