"""ROI heads that learn from every proposal instead of a random sample.

Shapes: R proposals of an image, G objects of it, K rows of either.
"""

from typing import Any, List, Tuple, Union

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.roi_heads.roi_heads import select_foreground_proposals
from detectron2.structures import BitMasks, Instances

__all__ = ["MaskRows", "UnsampledMixin"]


class MaskRows:
    """Some rows of the masks of an image's objects, which are not gathered before they are used.

    A thousand proposals with a full-resolution mask each would need about 1 GB an image. Here they
    share the G masks, and only those of the foreground are ever cropped.

    Args:
        masks: ``BitMasks``, ``PolygonMasks`` or the like, G of them.
        rows: (K,) indices.
    """

    def __init__(self, masks: Any, rows: torch.Tensor):
        self.masks = masks
        self.rows = rows

    @classmethod
    def whole(cls, masks: Any, device: torch.device) -> "MaskRows":
        return cls(masks, torch.arange(len(masks), device=device))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: Union[int, slice, torch.Tensor]) -> "MaskRows":
        rows = self.rows[item]
        return MaskRows(self.masks, rows[None] if rows.dim() == 0 else rows)

    def to(self, *args: Any, **kwargs: Any) -> "MaskRows":
        return MaskRows(self.masks.to(*args, **kwargs), self.rows.to(*args, **kwargs))

    def gather(self) -> Any:
        """The rows as masks of the original kind."""
        return self.masks[self.rows]

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        """(K, mask_size, mask_size) bool, as ``BitMasks.crop_and_resize`` gives for the rows."""
        if not isinstance(self.masks, BitMasks):
            return self.gather().crop_and_resize(boxes, mask_size)
        masks = self.masks.tensor
        rows = self.rows.to(masks.device)[:, None].to(boxes.dtype)
        rois = torch.cat([rows, boxes.to(masks.device)], dim=1)
        align = ROIAlign((mask_size, mask_size), 1.0, 0, aligned=True)
        return align(masks[:, None].float(), rois).squeeze(1) >= 0.5

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("masks", "rows"):
            raise AttributeError(name)
        # A head that needs more than crops works too, on gathered masks.
        return getattr(self.gather(), name)


class UnsampledMixin:
    """For a subclass of Detectron2's ``StandardROIHeads``.

    Attributes:
        use_all_proposals: keep every proposal that the matcher does not ignore.
        mask_max_foreground: most foreground proposals of an image in the mask head; 0: all.
    """

    num_classes: int
    mask_on: bool
    training: bool
    use_all_proposals = False
    mask_max_foreground = 0

    def _sample_proposals(
        self, matched_idxs: torch.Tensor, matched_labels: torch.Tensor, gt_classes: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        if not self.use_all_proposals:
            upstream: Any = super()
            return upstream._sample_proposals(matched_idxs, matched_labels, gt_classes)
        if gt_classes.numel():
            labels = gt_classes[matched_idxs]
            labels = labels.masked_fill(matched_labels == 0, self.num_classes)
            labels = labels.masked_fill(matched_labels == -1, -1)
        else:
            labels = torch.full_like(matched_idxs, self.num_classes)
        kept = (labels >= 0).nonzero().squeeze(1)
        return kept, labels[kept]

    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: List[Instances], targets: List[Instances]
    ) -> List[Instances]:
        if self.use_all_proposals:
            targets = [_defer_masks(x) for x in targets]
        upstream: Any = super()
        return upstream.label_and_sample_proposals(proposals, targets)

    def _forward_mask(self, features, instances: List[Instances]):
        if self.training and self.mask_on and self.mask_max_foreground > 0:
            instances, _ = select_foreground_proposals(instances, self.num_classes)
            instances = [self._at_most(x) for x in instances]
        upstream: Any = super()
        return upstream._forward_mask(features, instances)

    def _at_most(self, instances: Instances) -> Instances:
        """A random choice among the foreground of an image."""
        if len(instances) <= self.mask_max_foreground:
            return instances
        order = torch.randperm(len(instances), device=instances.gt_classes.device)
        return instances[order[: self.mask_max_foreground]]


def _defer_masks(targets: Instances) -> Instances:
    if not (targets.has("gt_masks") and len(targets)):
        return targets
    fields = targets.get_fields()
    masks = MaskRows.whole(fields["gt_masks"], targets.gt_boxes.device)
    return Instances(targets.image_size, **{**fields, "gt_masks": masks})
