"""Harmonic loss, task-contrastive loss and harmonic IoU loss (Wang and Zhang, ICCV 2021).

Shapes: K positive samples, C outputs of a sample's classifier.

All functions work on single positive samples, before any normaliser: applied to a batch's mean
losses the same formulas are a different and much weaker method.
"""

import math
import warnings
from typing import Optional, Tuple

import torch
from torch.nn import functional as F

from .precision import full_precision

__all__ = [
    "check_gamma",
    "class_entropy",
    "harmonic_factors",
    "harmonic_iou_loss",
    "literal_slopes",
    "task_contrastive_loss",
]


def _same_shape(**tensors: torch.Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"One value per positive sample is needed in each argument, not {listed}.")


def harmonic_factors(
    cls_loss: torch.Tensor,
    loc_loss: torch.Tensor,
    *,
    cls_exponent: Optional[torch.Tensor] = None,
    detach: bool = True,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """The harmonic factors of each positive sample.

    The harmonic loss is ``(1 + beta_r) * cls_loss + (1 + beta_c) * loc_loss``. Both factors come
    from the unweighted losses; weighting one loss before the other's factor is computed makes the
    result depend on the order.

    Args:
        cls_loss: (K,) classification losses CE, summed over classes.
        loc_loss: (K,) localisation losses L, summed over the four coordinates.
        cls_exponent: (K,) what stands for CE in beta_c, e.g. the plain cross entropy or
            ``-log(p)`` where CE is a focal loss, whose exponential hardly varies.
        detach: treat the factors as constants. False gives the gradient of the literal formula,
            which pushes a well localised but badly classified box away from its object (see
            :func:`literal_slopes`).

    Returns:
        ``beta_r = exp(-L)``, which weighs the class loss, and ``beta_c = exp(-CE)``, which weighs
        the box loss; both (K,), in [0, 1].
    """
    exponent = cls_loss if cls_exponent is None else cls_exponent
    _same_shape(cls_loss=cls_loss, loc_loss=loc_loss, cls_exponent=exponent)
    if detach:
        loc_loss, exponent = loc_loss.detach(), exponent.detach()
    return torch.exp(-full_precision(loc_loss)), torch.exp(-full_precision(exponent))


@torch.no_grad()
def literal_slopes(
    cls_loss: torch.Tensor, loc_loss: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Derivatives of the literal harmonic loss in CE and in L; a negative one is a wrong direction.

    Args:
        cls_loss: (K,) CE. loc_loss: (K,) L.

    Returns:
        ``m_c = 1 + exp(-L) - L exp(-CE)`` and ``m_l = 1 + exp(-CE) - CE exp(-L)``, both (K,).
    """
    beta_r, beta_c = harmonic_factors(cls_loss, loc_loss)
    return 1 + beta_r - loc_loss * beta_c, 1 + beta_c - cls_loss * beta_r


def check_gamma(gamma: float) -> None:
    """Refuse a gamma outside [0, inf) and warn above 1; call it where a loss is built.

    Raises:
        ValueError: if ``gamma`` is negative, infinite or not a number.
    """
    if not 0 <= gamma < math.inf:
        raise ValueError(
            f"The gamma of the harmonic IoU loss must be 0 or a positive number, not {gamma}."
        )
    if gamma > 1:
        warnings.warn(
            f"Harmonic IoU loss with gamma {gamma}: above 1 it rises with the IoU of badly "
            "overlapping boxes, so it drives them apart; use a gamma in [0, 1].",
            stacklevel=2,
        )


def harmonic_iou_loss(iou: torch.Tensor, gamma: float = 0.8) -> torch.Tensor:
    """Harmonic IoU loss ``(1 + IoU)^gamma * (1 - IoU)`` of each sample.

    Its slope grows from ``1 - gamma`` at IoU 0 to ``2^gamma`` at IoU 1, so well localised samples
    weigh more than with the plain IoU loss, which is the case gamma = 0.

    Args:
        iou: (K,) IoU of predicted and true boxes, with graph.
        gamma: exponent; up to 1 the loss falls with the IoU everywhere.

    Returns:
        (K,) losses.
    """
    if not 0 <= gamma < math.inf:
        check_gamma(gamma)
    iou = full_precision(iou)
    return (1 + iou) ** gamma * (1 - iou)


def class_entropy(logits: torch.Tensor, *, sigmoid: bool) -> torch.Tensor:
    """``-sum_k p_k log p_k`` in nats of each sample's class scores.

    Args:
        logits: (K, C) outputs; a softmax classifier's include the background.
        sigmoid: the scores are C independent sigmoids. The sum is still over ``p log p`` alone, not
            the binary entropy, which has a ``(1 - p) log (1 - p)`` as well.

    Returns:
        (K,) entropies.
    """
    logits = full_precision(logits)
    # p log p from the logarithm: with p rounded to 0, 0 * log(0) would be NaN.
    if sigmoid:
        return -(torch.sigmoid(logits) * F.logsigmoid(logits)).sum(dim=-1)
    return -(F.softmax(logits, dim=-1) * F.log_softmax(logits, dim=-1)).sum(dim=-1)


def task_contrastive_loss(
    score: torch.Tensor,
    iou: torch.Tensor,
    entropy: torch.Tensor,
    *,
    margin: float = 0.2,
    mode: str = "subtract",
    detach_entropy: bool = False,
    detach_iou: bool = False,
    detach_score: bool = False,
) -> torch.Tensor:
    """Task-contrastive loss: score and IoU of a positive sample should not differ by much.

    ``1 / (1 + e^H) * max(0, |p - IoU| - margin)``: confident samples (small entropy H) weigh most.

    Args:
        score: (K,) score p of the sample's class.
        iou: (K,) IoU of its predicted and true box.
        entropy: (K,) entropy H of its class scores.
        margin: difference that costs nothing.
        mode: "subtract" takes the margin off the difference; "hard" keeps the difference whole
            where it reaches the margin, with a jump of ``margin`` there.
        detach_entropy: no gradient through the weight; otherwise flat scores lower the loss.
        detach_iou: no gradient into the box branch; otherwise an IoU above the score is lowered.
        detach_score: no gradient into the class branch from ``score``.

    Returns:
        (K,) losses.
    """
    if mode not in ("subtract", "hard"):
        raise ValueError(
            f"The task-contrastive loss has the margin modes 'subtract' and 'hard', not '{mode}'."
        )
    _same_shape(score=score, iou=iou, entropy=entropy)
    score = full_precision(score.detach() if detach_score else score)
    iou = full_precision(iou.detach() if detach_iou else iou)
    entropy = full_precision(entropy.detach() if detach_entropy else entropy)
    difference = (score - iou).abs()
    if mode == "subtract":
        difference = F.relu(difference - margin)
    else:
        # In this direction NaN, which is neither below nor above, stays NaN.
        difference = torch.where(difference < margin, torch.zeros_like(difference), difference)
    # sigmoid(-H) is 1 / (1 + e^H) without the overflow: 80 sigmoids can reach H = 29.
    return torch.sigmoid(-entropy) * difference
