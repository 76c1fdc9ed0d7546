"""What sigmoid losses multiply and raise their terms by.

Shapes: M rows (samples), C classes.
"""

from typing import Optional, Tuple

import torch

from .sigmoid_kernel import Factor, compute_dtype

__all__ = ["alphas", "checked_weights", "equalized_factors", "require_quality", "weighted"]


def require_quality(quality: Optional[torch.Tensor]) -> torch.Tensor:
    """The (M,) targets of a soft loss, which is refused without them."""
    if quality is None:
        raise ValueError("This loss needs quality, the (M,) targets of the positives.")
    return quality


def alphas(alpha: float) -> Tuple[float, float]:
    """Weights of positives and of negatives in a focal loss; below 0: none."""
    return (alpha, 1.0 - alpha) if alpha >= 0 else (1.0, 1.0)


def weighted(
    class_weights: Optional[torch.Tensor], logits: torch.Tensor, *factors: Factor
) -> Tuple[Factor, ...]:
    """Factors of a loss times the weights of the classes."""
    if class_weights is None:
        return factors
    weights = checked_weights(class_weights, logits)
    return tuple(factor * weights for factor in factors)


def checked_weights(class_weights: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """(C,) constants that fit the logits."""
    if class_weights.shape != logits.shape[1:]:
        raise ValueError(
            f"class_weights must hold one value a class, ({logits.shape[-1]},), "
            f"not {tuple(class_weights.shape)}."
        )
    return class_weights.detach().to(device=logits.device, dtype=compute_dtype(logits))


def equalized_factors(
    logits: torch.Tensor, grad_ratio: torch.Tensor, gamma_b: float, scale: float
) -> Tuple[torch.Tensor, torch.Tensor]:
    """gamma_j and w_j of EFL: two (C,) constants."""
    if gamma_b <= 0:
        raise ValueError(
            f"gamma_b must be above 0, not {gamma_b}: the weight is gamma_j / gamma_b."
        )
    if grad_ratio.shape != logits.shape[1:]:
        raise ValueError(
            f"grad_ratio must hold one value a class, ({logits.shape[-1]},), "
            f"not {tuple(grad_ratio.shape)}."
        )
    ratio = grad_ratio.detach().to(device=logits.device, dtype=compute_dtype(logits))
    gamma = gamma_b + scale * (1.0 - ratio)
    return gamma, gamma / gamma_b
