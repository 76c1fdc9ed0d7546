"""Online hard example mining (Shrivastava et al., CVPR 2016): hard sampling by the loss itself.

Shapes: N images, R samples, K of them positive.
"""

from typing import Sequence

import torch
from torchvision.ops import batched_nms

from d2ext.losses import Criterion, Positives
from d2ext.ops.precision import full_precision

__all__ = ["hard_proposals", "hardest_of_rows", "loss_of_samples"]


@torch.no_grad()
def loss_of_samples(
    criterion: Criterion, logits: torch.Tensor, labels: torch.Tensor, positives: Positives
) -> torch.Tensor:
    """Class loss plus box loss of each sample: (R,), in float32 or float64.

    Args:
        criterion: its class loss needs a per-sample form.
        logits: (R, C), or (R, C + 1) for softmax.
        labels: (R,); C background, -1 ignored.
        positives: boxes of the rows whose label is a class.
    """
    with torch.autocast(device_type=logits.device.type, enabled=False):
        logits = full_precision(logits)
        loss = criterion.cls_loss.per_row(logits, labels)
        box = criterion.box_loss(positives)
        box = box if box.dim() == 1 else box.sum(dim=1)
        return loss.index_add(0, positives.index, box.to(loss.dtype))


@torch.no_grad()
def hard_proposals(
    loss: torch.Tensor,
    boxes: torch.Tensor,
    counts: Sequence[int],
    num_per_image: int,
    nms_thresh: float,
) -> torch.Tensor:
    """The proposals of largest loss in each image, without near duplicates: their rows, ascending.

    Proposals that overlap have nearly the same loss, which would be counted many times; so of
    those that overlap more than ``nms_thresh`` only the one of largest loss is kept.

    Args:
        loss: (R,) of all images, image after image.
        boxes: (R, 4).
        counts: proposals of each image, N numbers with sum R.
        num_per_image: how many to take.
        nms_thresh: IoU; 1 or more: no suppression.
    """
    repeats = torch.tensor(list(counts))
    image = torch.arange(len(counts)).repeat_interleave(repeats).to(loss.device)
    if nms_thresh < 1:
        kept = batched_nms(boxes.float(), loss.float(), image, nms_thresh)
    else:
        kept = loss.argsort(descending=True, stable=True)
    # Image after image, the largest loss of each first.
    kept = kept[image[kept].argsort(stable=True)]
    sizes = torch.bincount(image[kept], minlength=len(counts))
    rank = torch.arange(len(kept), device=loss.device) - (sizes.cumsum(0) - sizes)[image[kept]]
    return kept[rank < num_per_image].sort().values


@torch.no_grad()
def hardest_of_rows(loss: torch.Tensor, labels: torch.Tensor, count: int) -> torch.Tensor:
    """Labels with all but the ``count`` samples of largest loss in each row ignored.

    Args:
        loss: (N, R).
        labels: (N, R), -1 ignored.
        count: samples to keep in each row.
    """
    loss = loss.masked_fill(labels < 0, float("-inf"))
    index = loss.topk(min(count, loss.shape[1]), dim=1).indices
    return torch.full_like(labels, -1).scatter(1, index, labels.gather(1, index))
