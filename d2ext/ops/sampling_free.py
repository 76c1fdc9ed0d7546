"""Training without sampling heuristics: optimal bias, guided loss scale, thresholds.

Chen et al., "Is Heuristic Sampling Necessary in Training Deep Object Detectors?" (TIP 2021).

Shapes and symbols: C foreground classes, N samples (anchors, points or proposals) that enter the
classification loss, N_f the foreground ones among them, pi the initial score of every class.
"""

import math
from typing import List, Sequence, Tuple

import torch

from .precision import full_precision

__all__ = [
    "class_adaptive_thresholds",
    "frozen_ratio",
    "guided_ratio",
    "guided_scale",
    "initial_gradient_mass",
    "initial_loss",
    "optimal_prior",
    "prior_to_bias",
    "sigma_weighted",
    "softmax_prior_bias",
]


def optimal_prior(num_foreground: float, num_samples: float, num_classes: int = 1) -> float:
    """The initial score that minimises the class loss: ``pi = N_f / (C N)``.

    Args:
        num_foreground: N_f, samples matched to an object.
        num_samples: N, foreground and background samples, without the ignored ones.
        num_classes: C; 1 for a region proposal network.

    Raises:
        ValueError: if the counts give no probability strictly between 0 and 1.
    """
    counts_fit = 0 < num_foreground <= num_samples < math.inf
    if not (counts_fit and 1 <= num_classes < math.inf):
        raise ValueError(
            f"A prior needs 0 < foreground <= samples and at least one class, not "
            f"{num_foreground} of {num_samples} samples and {num_classes} classes; "
            "are there annotated images in the training set?"
        )
    if num_foreground == num_samples and num_classes == 1:
        raise ValueError(
            f"All {num_samples} samples are foreground, so there is no background to balance; "
            "check the matcher's thresholds."
        )
    return num_foreground / (num_classes * num_samples)


def _check_prior(prior: float) -> None:
    if not 0 < prior < 1:
        raise ValueError(f"The prior must lie strictly between 0 and 1, not at {prior}.")


def _negatives(num_foreground: float, num_samples: float, num_classes: int) -> float:
    """Background entries of the loss for each foreground one."""
    if not 0 < num_foreground <= num_classes * num_samples < math.inf:
        raise ValueError(
            f"The loss per foreground sample needs 0 < foreground <= classes x samples, not "
            f"{num_foreground} of {num_samples} samples and {num_classes} classes."
        )
    return num_classes * num_samples / num_foreground - 1


def prior_to_bias(prior: float) -> float:
    """The bias at which a sigmoid classifier starts with score ``prior``: ``-log((1-pi)/pi)``."""
    _check_prior(prior)
    return math.log(prior) - math.log1p(-prior)


def initial_loss(
    prior: float, num_foreground: float, num_samples: float, num_classes: int
) -> float:
    """Class loss per foreground sample with every score at ``prior`` (equation 3 of the paper)."""
    _check_prior(prior)
    negatives = _negatives(num_foreground, num_samples, num_classes)
    return -math.log(prior) - negatives * math.log1p(-prior)


def initial_gradient_mass(
    prior: float, num_foreground: float, num_samples: float, num_classes: int
) -> Tuple[float, float]:
    """Sum and sum of magnitudes of d loss / d logit per foreground sample, all scores at ``prior``.

    The sum is zero exactly at the optimal prior; the magnitudes then add up to ``2 (1 - pi)``,
    half of it from the foreground.
    """
    _check_prior(prior)
    positive = 1 - prior
    negative = _negatives(num_foreground, num_samples, num_classes) * prior
    return negative - positive, negative + positive


def softmax_prior_bias(
    class_counts: torch.Tensor, num_samples: float, *, uniform: bool = False
) -> torch.Tensor:
    """Biases at which a softmax classifier starts with the labels' frequencies as scores.

    Args:
        class_counts: (C,) foreground samples of each class.
        num_samples: N, with the background.
        uniform: give all classes the same frequency, N_f / C.

    Returns:
        (C + 1,) biases with the background last, float64. ``uniform``: 0 for the classes;
        otherwise centred on zero, since a softmax ignores a common shift.
    """
    counts = torch.as_tensor(class_counts).to(torch.float64)
    foreground = counts.sum()
    background = num_samples - foreground
    if (
        counts.dim() != 1
        or not bool((counts >= 0).all())
        or not (0 < foreground < num_samples < math.inf)
    ):
        raise ValueError(
            f"Softmax biases need one count per class, none negative, with a sum between 0 and "
            f"{num_samples} samples, not {counts.tolist()[:5]} with sum {float(foreground)}."
        )
    if uniform:
        last = torch.log(counts.numel() * background / foreground)
        return torch.cat([torch.zeros_like(counts), last[None]])
    if not bool((counts > 0).all()):
        raise ValueError(
            "A class without samples would get the bias -inf; use the uniform form instead."
        )
    bias = torch.log(torch.cat([counts, background[None]]) / num_samples)
    return bias - bias.mean()


@torch.no_grad()
def guided_ratio(cls_loss: torch.Tensor, guides: Sequence[torch.Tensor]) -> torch.Tensor:
    """``r = mean(guides) / cls_loss``, a constant for autograd.

    It is 0 where the ratio would be infinite or undefined, i.e. for a class loss of (nearly) 0 and
    for a quotient that does not fit the data type. The authors' code divides by zero there.

    Args:
        cls_loss: scalar class loss, under any normaliser (it cancels).
        guides: scalar losses that the class loss should follow; most often the box loss alone.

    Returns:
        A scalar tensor; no host synchronisation.
    """
    if not guides:
        raise ValueError("The guided scale needs at least one guiding loss, e.g. the box loss.")
    guide = torch.stack([full_precision(g.detach()) for g in guides]).mean()
    loss = full_precision(cls_loss.detach())
    usable = loss > torch.finfo(loss.dtype).tiny
    ratio = guide / torch.where(usable, loss, torch.ones_like(loss))
    return torch.where(usable & torch.isfinite(ratio), ratio, torch.zeros_like(ratio))


def guided_scale(
    cls_loss: torch.Tensor, guides: Sequence[torch.Tensor], weight: float = 1.0
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Scale the class loss to the size of the losses that guide it (equations 5 and 6).

    The value becomes ``weight * mean(guides)``; the gradient is that of the class loss times the
    constant ``weight * r``. Nothing flows into the guides. Without positives the guides are 0, and
    so are value and gradient, with the graph kept.

    Args:
        cls_loss: scalar class loss.
        guides: scalar guiding losses.
        weight: 1 for dense heads and region proposals, 2 for ROI heads in the authors' code.

    Returns:
        The scaled class loss, and the ratio r before ``weight``.
    """
    ratio = guided_ratio(cls_loss, guides)
    return weight * ratio * full_precision(cls_loss), ratio


@torch.no_grad()
def frozen_ratio(
    ratio: torch.Tensor, iters: torch.Tensor, losses: Sequence[torch.Tensor], warmup_iters: int
) -> Tuple[torch.Tensor, torch.Tensor]:
    """One step of the ratio that follows the losses for ``warmup_iters`` steps and then stays.

    It keeps the last warm-up step's value, not an average over the steps. A step whose ratio is 0
    (a batch without objects, a loss that is not finite) is counted but leaves the ratio unchanged:
    were it the last one of the warm-up, there would be no class loss in the whole training. In the
    authors' code there is none then.

    Args:
        ratio: scalar, the ratio so far.
        iters: integer scalar, steps taken.
        losses: the class loss, then its guides.
        warmup_iters: steps that update the ratio.

    Returns:
        New ratio and new count, decided on the device.
    """
    warm = iters < warmup_iters
    now = guided_ratio(losses[0], losses[1:]).to(ratio.dtype)
    return torch.where(warm & (now > 0), now, ratio), iters + warm.to(iters.dtype)


def sigma_weighted(
    losses: Sequence[torch.Tensor], sigmas: torch.Tensor
) -> Tuple[List[torch.Tensor], torch.Tensor]:
    """Weigh losses by learned uncertainties: ``L_i / (2 sigma_i^2)`` and ``log prod sigma_i``.

    Args:
        losses: k scalar losses.
        sigmas: (k,) learned, with graph; 1 halves a loss.

    Returns:
        The k weighted losses, and the term that keeps sigma from growing (it may be negative).
    """
    if sigmas.shape != (len(losses),):
        raise ValueError(
            f"{len(losses)} losses need as many sigmas, not a tensor of shape "
            f"{tuple(sigmas.shape)}."
        )
    weighted = [loss / (2 * sigma**2) for loss, sigma in zip(losses, sigmas)]
    return weighted, sigmas.prod().log()


def class_adaptive_thresholds(class_counts: torch.Tensor, foreground_ratio: float) -> torch.Tensor:
    """Score threshold of each class, ``theta_j = (N_f / N) * N_j / sum N_j`` (equation 7).

    Args:
        class_counts: (C,) annotated objects N_j of each class.
        foreground_ratio: N_f / N.

    Returns:
        (C,) thresholds in the type of ``class_counts``, float32 if that is an integer type. A class
        without objects gets 0.
    """
    counts = torch.as_tensor(class_counts)
    counts = full_precision(counts) if counts.is_floating_point() else counts.float()
    total = float(counts.sum())
    if counts.dim() != 1 or not bool((counts >= 0).all()) or not 0 < total < math.inf:
        raise ValueError(
            "Class-adaptive thresholds need one object count per class, none negative and not all "
            f"zero, not a tensor of shape {tuple(counts.shape)} with sum {total}."
        )
    if not 0 < foreground_ratio <= 1:
        raise ValueError(f"The foreground ratio must lie in (0, 1], not at {foreground_ratio}.")
    return foreground_ratio * counts / counts.sum()
