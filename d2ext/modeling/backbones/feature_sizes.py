"""Sizes of a backbone's feature maps, known without running it."""

import logging
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from detectron2.modeling.backbone import FPN, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.structures import ImageList
from torch import nn

__all__ = ["FeatureSizes", "fake_features"]

logger = logging.getLogger(__name__)


class FeatureSizes:
    """Sizes of a backbone's feature maps, for a batch of images, without running it.

    In a pyramid on a ResNet every layer of stride 2 maps n to ceil(n / 2), so that a map of stride
    s is exactly ceil(n / s) large. Another backbone is run once on zeros: if the rule holds for it,
    it is trusted, otherwise the backbone is run once for each new image size.

    Args:
        backbone: a Detectron2 backbone.
        channels: of its input.
    """

    def __init__(self, backbone: nn.Module, channels: int = 3):
        self.backbone: Any = backbone
        self.channels = channels
        self.forwards = 0
        self._follows_rule: Optional[bool] = True if _is_known(backbone) else None
        self._seen: Dict[Tuple[int, int], Dict[str, Tuple[int, int]]] = {}

    def __call__(self, image_sizes: Sequence[Tuple[int, int]]) -> Dict[str, Tuple[int, int]]:
        """Height and width of each feature map for images of these sizes in one batch."""
        padded = ImageList.from_tensors(
            [torch.empty(size, device="meta") for size in image_sizes],
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )
        height, width = padded.tensor.shape[-2:]
        by_rule = {
            name: (-(-height // shape.stride), -(-width // shape.stride))
            for name, shape in self.backbone.output_shape().items()
        }
        if self._follows_rule:
            return by_rule
        if (height, width) not in self._seen:
            self._seen[height, width] = self._run(height, width)
            if self._follows_rule is None:
                self._follows_rule = self._seen[height, width] == by_rule
                if not self._follows_rule:
                    logger.warning(
                        f"The feature maps of {type(self.backbone).__name__} are not of size "
                        "ceil(image / stride); it is run once for each image size."
                    )
        return self._seen[height, width]

    @torch.no_grad()
    def _run(self, height: int, width: int) -> Dict[str, Tuple[int, int]]:
        self.forwards += 1
        device = next(self.backbone.parameters()).device
        was_training = self.backbone.training
        self.backbone.eval()
        features = self.backbone(torch.zeros(1, self.channels, height, width, device=device))
        self.backbone.train(was_training)
        return {name: tuple(feature.shape[-2:]) for name, feature in features.items()}


def _is_known(backbone: nn.Module) -> bool:
    if type(backbone) is not FPN:
        return type(backbone) is ResNet
    blocks = (type(None), LastLevelMaxPool, LastLevelP6P7)
    return type(backbone.bottom_up) is ResNet and type(backbone.top_block) in blocks


def fake_features(
    sizes: Dict[str, Tuple[int, int]], names: Sequence[str], device: torch.device
) -> List[torch.Tensor]:
    """Feature maps without channels: anchor generators look at heights and widths only."""
    return [torch.empty(1, 0, *sizes[name], device=device) for name in names]
