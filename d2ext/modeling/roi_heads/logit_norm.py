"""Normalised logits at inference, LogN (Zhao et al., IJCV 2024): see :mod:`d2ext.ops.logit_norm`.

Shapes: M proposals, C classes; logits have C + 1 columns, the background last.
"""

from typing import Any, Dict, Iterable

import torch
from torch import nn

from d2ext.ops.logit_norm import normalize_logits
from d2ext.ops.reduce import reduce_sum

__all__ = ["LogitNorm", "collect_logits"]


class LogitNorm(nn.Module):
    """Standardises the logits of the classes by their statistics in the training set.

    The statistics are exact sums in buffers, which checkpoints hold. Until they are filled, by
    :func:`collect_logits`, logits pass unchanged.

    Args:
        num_classes: C.
    """

    sums: torch.Tensor

    def __init__(self, num_classes: int):
        super().__init__()
        self.collecting = False
        # Sums of 1, of the logits and of their squares.
        self.register_buffer("sums", torch.zeros(3, num_classes + 1, dtype=torch.float64))

    @torch.no_grad()
    def collect(self, logits: torch.Tensor) -> None:
        """Take in the logits (M, C + 1) of a batch, while ``collecting``."""
        if self.collecting:
            x = logits.double()
            self.sums += torch.stack([torch.ones_like(x), x, x.square()]).sum(dim=1)

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """Normalised logits, (M, C + 1)."""
        count, total, squares = self.sums
        mean = total / count.clamp(min=1)
        var = (squares - total * mean) / (count - 1).clamp(min=1)
        # Decided on the device: a host-device sync would delay inference.
        return torch.where(count[0] > 1, normalize_logits(logits, mean, var), logits.float())


def collect_logits(model: nn.Module, batches: Iterable[Any], num_images: int) -> Dict[str, int]:
    """Fill the statistics of every :class:`LogitNorm` of a model, over all ranks.

    The model runs as in training, so that its proposals are those it learnt from, but without
    gradients. Every rank must call it.

    Args:
        model: in any mode; its modes and everything else in it should be put back by the caller.
        batches: training batches, as many as are needed.
        num_images: images on all ranks together, about.

    Returns:
        ``{"images": ..., "proposals": ...}``, over all ranks.
    """
    norms = [m for m in model.modules() if isinstance(m, LogitNorm)]
    for norm in norms:
        norm.sums.zero_()
        norm.collecting = True
    seen = torch.zeros((), dtype=torch.int64)
    device = norms[0].sums.device if norms else seen.device
    with torch.no_grad():
        for batch in batches:
            model(batch)
            # Ranks take equally many batches, so that all of them end together.
            if int(seen.add_(reduce_sum(torch.tensor(len(batch), device=device)).cpu())) >= (
                num_images
            ):
                break
    for norm in norms:
        norm.collecting = False
        norm.sums.copy_(reduce_sum(norm.sums))
    proposals = int(norms[0].sums[0, 0]) if norms else 0
    return {"images": int(seen), "proposals": proposals}
