"""The sigmoid losses of detectors with index labels: BCE, focal, quality focal, EFL and EQFL.

Each class is a binary problem of its own, and all but a handful of the M x C entries are negatives.
So every entry is computed as a negative, over contiguous rows and in chunks that stay in cache, and
only the at most M positive entries are put right by one gather and one scatter. There is no
one-hot target and no (M, C) exponent. The gradient is written down in the forward pass, because it
shares every term with the loss, and it is all that is kept for the backward pass.

For a logit z of class j, with p = sigmoid(z), u = -log(1 - p) and v = -log p:

    negative      l = (1 - alpha) w_j p^gamma_j u
              dl/dz = (1 - alpha) w_j p^gamma_j [p + gamma_j (1 - p) u]
    positive      l = alpha w_j (1 - p)^gamma_j v, that is, a negative at -z
    positive      l = w_j BCE(z, q) |q - p|^gamma_j with a quality q (QFL, EQFL)

The focal loss is gamma_j = gamma and w_j = 1; BCE is gamma_j = 0. The equalized focal loss (Li et
al., CVPR 2022) has gamma_j = gamma_b + scale (1 - g_j) and w_j = gamma_j / gamma_b.

Shapes: M rows (samples), C classes. Labels are 0..C-1, C for background and -1 for ignored rows,
which contribute nothing. All losses are sums; half precision is computed in float32.
"""

import math
from typing import Optional, Tuple, Union

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = [
    "equalized_focal_loss",
    "equalized_quality_focal_loss",
    "negative_terms",
    "quality_focal_loss",
    "sigmoid_bce_loss",
    "sigmoid_focal_loss",
    "sigmoid_loss_per_row",
]

# Entries per chunk. On CPU a chunk's temporaries (0.5 MiB each in float32) stay in cache; on
# other devices a launch costs more than a trip to memory.
_CHUNK_CPU = 2**17
_CHUNK_DEVICE = 2**23
# A logit at which a negative entry has exactly no loss and no gradient, in both precisions.
_HIDDEN = -1e4
_LOG2_E = math.log2(math.e)

_Factor = Union[float, torch.Tensor]


def sigmoid_bce_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross entropy over all classes of all valid rows.

    Args:
        logits: (M, C).
        labels: (M,) class of each row; C is background, -1 ignored.

    Returns:
        The sum, a scalar.
    """
    return _apply(logits, labels, gamma=0.0)[0]


def sigmoid_focal_loss(
    logits: torch.Tensor, labels: torch.Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> torch.Tensor:
    """Focal loss (Lin et al., 2017), summed.

    Args:
        logits: (M, C).
        labels: (M,) class of each row; C is background, -1 ignored.
        alpha: weight of positives, ``1 - alpha`` of negatives; below 0: no weights.
        gamma: focusing exponent.
    """
    return _apply(logits, labels, gamma=float(gamma), alpha=alpha)[0]


def quality_focal_loss(
    logits: torch.Tensor, labels: torch.Tensor, quality: torch.Tensor, *, gamma: float = 2.0
) -> torch.Tensor:
    """Quality focal loss (Li et al., 2020), summed: a positive's target is its quality, not 1.

    Args:
        logits: (M, C).
        labels: (M,) class of each row; C is background, -1 ignored.
        quality: (M,) target in [0, 1] of the positives, usually the IoU of the predicted box.
            Values of other rows are not used. It gets no gradient.
        gamma: focusing exponent.
    """
    return _apply(logits, labels, quality=quality, gamma=float(gamma))[0]


def equalized_focal_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    grad_ratio: torch.Tensor,
    *,
    alpha: float = 0.25,
    gamma_b: float = 2.0,
    scale: float = 8.0,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Equalized focal loss, summed, and the gradients each class received.

    Args:
        logits: (M, C).
        labels: (M,) class of each row; C is background, -1 ignored.
        grad_ratio: (C,) g_j in [0, 1], accumulated positive over negative gradient; a constant.
        alpha: weight of positives, ``1 - alpha`` of negatives; below 0: no weights.
        gamma_b: focusing exponent of a balanced class (g_j = 1).
        scale: s, what is added to the exponent of a class that gets no positive gradient (g_j = 0).

    Returns:
        The sum (a scalar) and two (C,) tensors, not differentiable: sums of ``|d sum / d logits|``
        over the positive entries of each class and over its negative entries.
    """
    gamma, weight = _equalized_factors(logits, grad_ratio, gamma_b, scale)
    return _apply(logits, labels, gamma=gamma, weight=weight, alpha=alpha, with_sums=True)


def equalized_quality_focal_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    quality: torch.Tensor,
    grad_ratio: torch.Tensor,
    *,
    gamma_b: float = 2.0,
    scale: float = 8.0,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Equalized quality focal loss, summed, and the gradients each class received.

    Arguments and results are those of :func:`quality_focal_loss` and :func:`equalized_focal_loss`.
    There is no alpha. A positive counts as positive in the sums whatever its quality.
    """
    gamma, weight = _equalized_factors(logits, grad_ratio, gamma_b, scale)
    return _apply(logits, labels, quality=quality, gamma=gamma, weight=weight, with_sums=True)


def sigmoid_loss_per_row(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    kind: str = "focal",
    alpha: float = 0.25,
    gamma: float = 2.0,
    grad_ratio: Optional[torch.Tensor] = None,
    gamma_b: float = 2.0,
    scale: float = 8.0,
    quality: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """Loss of each row summed over its classes, in plain differentiable operations.

    Meant for a few rows, such as the positives that a coupling of losses looks at: it keeps several
    (M, C) tensors for the backward pass. Rows sum to what the fused functions return.

    Args:
        logits: (M, C).
        labels: (M,) class of each row; C is background, -1 ignored (its loss is 0).
        kind: "bce", "focal", "qfl", "efl" or "eqfl".
        alpha, gamma, grad_ratio, gamma_b, scale, quality: those of the function of that kind.

    Returns:
        (M,) losses, in float32 or float64.
    """
    if kind not in ("bce", "focal", "qfl", "efl", "eqfl"):
        raise ValueError(f"kind must be bce, focal, qfl, efl or eqfl, not '{kind}'.")
    _check(logits, labels, quality if kind in ("qfl", "eqfl") else None, kind in ("qfl", "eqfl"))
    with torch.autocast(device_type=logits.device.type, enabled=False):
        z = logits.to(_compute_dtype(logits))
        power, weight = gamma, 1.0
        if kind == "bce":
            power = 0.0
        elif kind in ("efl", "eqfl"):
            if grad_ratio is None:
                raise ValueError(f"kind '{kind}' needs grad_ratio, the (C,) ratios of gradients.")
            power, weight = _equalized_factors(logits, grad_ratio, gamma_b, scale)
        alpha_pos, alpha_neg = _alphas(alpha if kind in ("focal", "efl") else -1.0)

        is_pos, ignored, column = _split_labels(labels, z.shape[1])
        terms = alpha_neg * weight * torch.exp(power * F.logsigmoid(z)) * -F.logsigmoid(-z)
        own = z.gather(1, column[:, None])[:, 0]
        power, weight = _pick(power, column), _pick(weight, column)
        if kind in ("qfl", "eqfl"):
            target = quality.detach().to(z.dtype)
            bce = F.binary_cross_entropy_with_logits(own, target, reduction="none")
            positive = weight * bce * (target - own.sigmoid()).abs().pow(power)
        else:
            positive = alpha_pos * weight * torch.exp(power * F.logsigmoid(-own))
            positive = positive * -F.logsigmoid(own)
        kept = terms.gather(1, column[:, None])[:, 0]
        terms = terms.scatter(1, column[:, None], torch.where(is_pos, positive, kept)[:, None])
        return terms.sum(dim=1).masked_fill(ignored, 0.0)


def negative_terms(z: torch.Tensor, gamma: _Factor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Focal loss of negatives, p^gamma u, and its derivative with respect to z, elementwise.

    Exact to rounding at every finite logit: all comes from e^-|z|, nothing is 1 - (1 - p), and no
    logarithm is taken of a rounded probability.

    Args:
        z: logits of any shape, float32 or float64.
        gamma: exponent, a number or a tensor that broadcasts to ``z``; a tensor holds no zeros.

    Returns:
        Two tensors like ``z``.
    """
    # exp2: several times faster than exp on CPUs, where exp also slows down tenfold once its result
    # underflows, as it does for most entries of rare classes, whose exponent is 10.
    decay = z.abs().mul_(-_LOG2_E).exp2_().log1p_()
    u = z.clamp(min=0).add_(decay)
    p = torch.sigmoid(z)
    if isinstance(gamma, (int, float)) and gamma == 0:
        return u, p
    if isinstance(gamma, (int, float)) and gamma == 2:
        modulation = p.square()
    else:
        modulation = z.clamp(max=0).sub_(decay).mul_(gamma * _LOG2_E).exp2_()  # e^(-gamma v)
    slope = z.neg().sigmoid_().mul_(u).mul_(gamma).add_(p).mul_(modulation)
    return u.mul_(modulation), slope


def _quality_terms(
    z: torch.Tensor, quality: torch.Tensor, gamma: _Factor
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Quality focal loss of positives, and its derivative with respect to z, elementwise."""
    p, not_p = torch.sigmoid(z), torch.sigmoid(-z)
    bce = z.clamp(min=0) - quality * z + torch.log1p(torch.exp(-z.abs()))
    miss = (1 - quality) * p - quality * not_p  # p - q without cancellation near 0 and 1
    size = miss.abs()
    # size^(gamma - 1) is infinite at 0 for gamma < 1, where the sign makes the derivative 0.
    lever = torch.where(size > 0, size.pow(gamma - 1), torch.zeros_like(size)) * miss.sign()
    return bce * size.pow(gamma), lever * (size.square() + gamma * p * not_p * bce)


class _SigmoidLosses(torch.autograd.Function):
    """Loss, gradient and column sums of the whole family in one pass over the logits."""

    @staticmethod
    def forward(ctx, logits, labels, quality, gamma, weight, alphas, need_grad, with_sums):
        with torch.autocast(device_type=logits.device.type, enabled=False):
            total, grad, pos_sum, neg_sum = _fused_pass(
                logits, labels, quality, gamma, weight, alphas, need_grad, with_sums
            )
        if need_grad:
            ctx.save_for_backward(grad)
        ctx.dtype = logits.dtype
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(pos_sum, neg_sum)
        return total, pos_sum, neg_sum

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output, _pos, _neg):
        grad = None
        if grad_output is not None:
            (grad,) = ctx.saved_tensors
            # Only the CPU may look at the value: on other devices that would wait for the device.
            if grad_output.device.type != "cpu" or grad_output.item() != 1.0:
                grad = grad.mul_(grad_output) if _graph_is_freed() else grad * grad_output
            grad = grad.to(ctx.dtype)
        return (grad,) + (None,) * 7


def _graph_is_freed() -> bool:
    """Whether the running backward pass drops saved tensors, so that they may be overwritten."""
    keeps = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return keeps is not None and not keeps()


def _fused_pass(logits, labels, quality, gamma, weight, alphas, need_grad, with_sums):
    """What :class:`_SigmoidLosses` computes; ``gamma`` and ``weight`` are numbers or (C,)."""
    num_rows, num_classes = logits.shape
    dtype = _compute_dtype(logits)
    alpha_pos, alpha_neg = alphas
    # Kept as wide as float16's range demands: the factor of the backward pass (an AMP scale, one
    # over the positives) only comes later, and would come too late for what has underflown.
    grad_dtype = dtype if logits.dtype == torch.float16 else logits.dtype
    grad = torch.empty_like(logits, dtype=grad_dtype) if need_grad else None
    loss_sum = logits.new_zeros(num_classes if torch.is_tensor(weight) else (), dtype=torch.double)
    pos_sum = logits.new_zeros(num_classes, dtype=torch.double)
    neg_sum = torch.zeros_like(pos_sum)
    if logits.numel() == 0:
        return loss_sum.sum().to(dtype), grad, pos_sum.to(dtype), neg_sum.to(dtype)

    is_pos, ignored, column = _split_labels(labels, num_classes)
    own = logits.gather(1, column[:, None])[:, 0].to(dtype)
    hidden = own.masked_fill(is_pos | ignored, _HIDDEN)[:, None]
    # Asking is free on the CPU and would wait for any other device.
    hide_rows = logits.device.type != "cpu" or bool(ignored.any())
    entries = _CHUNK_CPU if logits.device.type == "cpu" else _CHUNK_DEVICE
    step = max(1, entries // num_classes)
    for start in range(0, num_rows, step):
        rows = slice(start, start + step)
        z = logits[rows].to(dtype, copy=True)
        if hide_rows:
            z.masked_fill_(ignored[rows, None], _HIDDEN)
        z.scatter_(1, column[rows, None], hidden[rows])
        loss, slope = negative_terms(z, gamma)
        loss_sum += loss.sum(dim=0) if loss_sum.dim() else loss.sum()
        if with_sums:
            neg_sum += slope.sum(dim=0)
        if need_grad:
            torch.mul(slope, alpha_neg * weight, out=grad[rows])

    gamma_own, weight_own = _pick(gamma, column), alpha_pos * _pick(weight, column)
    if quality is None:
        loss, slope = negative_terms(own.neg(), gamma_own)
        slope = slope.neg_()
    else:
        loss, slope = _quality_terms(own, quality.to(dtype), gamma_own)
    # masked_fill, not a product: what a row without a positive holds here may be infinite.
    loss = (loss * weight_own).masked_fill_(~is_pos, 0.0)
    slope = (slope * weight_own).masked_fill_(~is_pos, 0.0)
    if need_grad:
        grad.scatter_add_(1, column[:, None], slope[:, None].to(grad_dtype))
    if with_sums:
        pos_sum.index_add_(0, column, slope.abs().double())
        neg_sum *= alpha_neg * weight
    total = (loss_sum * (alpha_neg * weight)).sum() + loss.sum(dtype=torch.double)
    return total.to(dtype), grad, pos_sum.to(dtype), neg_sum.to(dtype)


def _apply(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    gamma: _Factor,
    weight: _Factor = 1.0,
    alpha: float = -1.0,
    quality: Optional[torch.Tensor] = None,
    with_sums: bool = False,
):
    _check(logits, labels, quality, needs_quality=False)
    need_grad = logits.requires_grad and torch.is_grad_enabled()
    quality = None if quality is None else quality.detach()
    return _SigmoidLosses.apply(
        logits, labels, quality, gamma, weight, _alphas(alpha), need_grad, with_sums
    )


def _check(logits, labels, quality, needs_quality) -> None:
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            "Sigmoid losses take logits (M, C) and labels (M,), not "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}; flatten images and levels first."
        )
    if needs_quality and quality is None:
        raise ValueError("This loss needs quality, the (M,) targets of the positives.")
    if quality is not None and quality.shape != labels.shape:
        raise ValueError(
            f"quality must hold one value a row, {tuple(labels.shape)}, not {tuple(quality.shape)}."
        )


def _compute_dtype(logits: torch.Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _alphas(alpha: float) -> Tuple[float, float]:
    return (alpha, 1.0 - alpha) if alpha >= 0 else (1.0, 1.0)


def _split_labels(labels: torch.Tensor, num_classes: int):
    """Masks of positive and of ignored rows (M,), and a column of each row that always exists."""
    is_pos = (labels >= 0) & (labels < num_classes)
    return is_pos, labels < 0, labels.long().clamp(0, num_classes - 1)


def _pick(factor: _Factor, column: torch.Tensor) -> _Factor:
    return factor[column] if torch.is_tensor(factor) else factor


def _equalized_factors(logits, grad_ratio, gamma_b: float, scale: float):
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
    ratio = grad_ratio.detach().to(device=logits.device, dtype=_compute_dtype(logits))
    gamma = gamma_b + scale * (1.0 - ratio)
    return gamma, gamma / gamma_b
