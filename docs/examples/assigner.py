"""An assigner of your own: a point is responsible for the object whose inner part it lies in.

    PYTHONPATH=docs/examples python train_net.py --import assigner \
        --config-file configs/Demo/fcos_shapes.yaml \
        MODEL.DENSE.ASSIGNER inner_part
"""

import torch

from d2ext.modeling.assigners import ASSIGNER_REGISTRY, Assigner, Assignment


@ASSIGNER_REGISTRY.register("inner_part")
class InnerPartAssigner(Assigner):
    """Points within the middle ``share`` of a box are positive; the smallest box wins."""

    def __init__(self, share: float = 0.5):
        self.share = share

    @torch.no_grad()
    def __call__(self, priors, targets, num_classes):
        centers = priors.centers  # (R, 2)
        labels, matched, first = [], [], 0
        for count in targets.counts:  # clear, not fast: one image at a time
            boxes = targets.boxes[first : first + count]
            middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
            inside = ((centers[:, None] - middle).abs() < self.share * half).all(dim=2)  # (R, G)
            cost = torch.where(inside, half.prod(dim=1), torch.inf)
            best = cost.argmin(dim=1) if count else cost.new_zeros(len(centers)).long()
            found = inside.any(dim=1)
            index = (first + best) if count else best
            kinds = targets.classes[index] if count else index
            labels.append(torch.where(found, kinds, num_classes))
            matched.append(index)
            first += count
        return Assignment(torch.stack(labels), torch.stack(matched))
