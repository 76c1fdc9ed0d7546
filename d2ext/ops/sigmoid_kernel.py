"""A sigmoid loss, its gradient and the column sums of the gradient in one pass over the logits.

Each class is a binary problem of its own, and all but a handful of the M x C entries are negatives.
So every entry is computed as a negative, over contiguous rows and in chunks that stay in cache, and
only the positive entries, at most M, are corrected by one gather and one scatter. There is no
one-hot target and no (M, C) exponent. The gradient is written down in the forward pass, because it
shares every term with the loss, and it is all that is kept for the backward pass.

For a logit z of class j, with p = sigmoid(z), u = -log(1 - p) and v = -log p:

    negative      l = w_j p^gamma_j u
              dl/dz = w_j p^gamma_j [p + gamma_j (1 - p) u]
    positive      l = w'_j (1 - p)^gamma_j v, that is, a negative at -z
    positive      l = w'_j BCE(z, q) |q - p|^gamma_j with a quality q

Two forms compute this. The torch form, here, runs everywhere and is the reference. On CUDA, where
Triton can be imported and builds for the device, :mod:`d2ext.ops.sigmoid_triton` does the same in
one kernel. ``D2EXT_SIGMOID_KERNEL=torch`` in the environment, or :func:`set_sigmoid_kernel`, keeps
to the torch form.

Shapes: M rows (samples), C classes. Labels are 0..C-1, C for background and -1 for ignored rows,
which contribute nothing. Half precision is computed in float32.
"""

import functools
import importlib.util
import logging
import math
import os
from typing import Any, NamedTuple, Optional, Tuple, Union

import torch
from torch.autograd.function import once_differentiable

from . import host
from .precision import drop_negligible, smallest_gradient

__all__ = [
    "Factor",
    "check_shapes",
    "compute_dtype",
    "fused_sigmoid_loss",
    "negative_terms",
    "set_sigmoid_kernel",
    "sigmoid_kernel_of",
    "split_labels",
]

logger = logging.getLogger(__name__)

# Entries per chunk. On CPU a chunk's temporaries (0.5 MiB each in float32) stay in cache; on
# other devices a launch costs more than a trip to memory.
_CHUNK_CPU = 2**17
_CHUNK_DEVICE = 2**23
# A logit at which a negative entry has exactly no loss and no gradient, in both precisions.
_HIDDEN = -1e4
_LOG2_E = math.log2(math.e)

_KERNELS = ("auto", "torch", "triton")
_chosen: Optional[str] = None

Factor = Union[float, torch.Tensor]
"""A constant of all classes, or (C,) one of each."""

# Sum, gradient or None, and the (C,) positive and negative sums.
PassTerms = Tuple[torch.Tensor, Optional[torch.Tensor], torch.Tensor, torch.Tensor]


class LossTerms(NamedTuple):
    """What is asked of a pass over the logits.

    Attributes:
        labels, quality, gamma, pos_weight, neg_weight, with_sums: those of
            :func:`fused_sigmoid_loss`.
        need_grad: whether the gradient is wanted.
        detach: whether the modulating factor is a constant.
    """

    labels: torch.Tensor
    quality: Optional[torch.Tensor] = None
    gamma: Factor = 2.0
    pos_weight: Factor = 1.0
    neg_weight: Factor = 1.0
    need_grad: bool = True
    with_sums: bool = True
    detach: bool = False


def fused_sigmoid_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    gamma: Factor,
    pos_weight: Factor = 1.0,
    neg_weight: Factor = 1.0,
    quality: Optional[torch.Tensor] = None,
    with_sums: bool = False,
    detach_modulation: bool = False,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A sigmoid loss summed over all valid rows and all classes.

    Args:
        logits: (M, C).
        labels: (M,).
        gamma: exponents; a tensor holds no zeros.
        pos_weight, neg_weight: w' and w of the formulas above.
        quality: (M,) targets of the positives; None: 1.
        with_sums: whether the column sums are wanted.
        detach_modulation: whether p^gamma (without a quality, 1 - p of positives too) is a constant
            for the gradient.

    Returns:
        The sum, differentiable once, and the (C,) sums of the gradient's size over the positive and
        over the negative entries, which are zeros unless wanted.
    """
    check_shapes(logits, labels, quality)
    asked = LossTerms(
        labels=labels,
        quality=None if quality is None else quality.detach(),
        gamma=gamma,
        pos_weight=pos_weight,
        neg_weight=neg_weight,
        need_grad=logits.requires_grad and torch.is_grad_enabled(),
        with_sums=with_sums,
        detach=detach_modulation,
    )
    sums: Tuple[torch.Tensor, torch.Tensor, torch.Tensor] = _FusedSigmoidLoss.apply(logits, asked)
    return sums


def set_sigmoid_kernel(name: Optional[str]) -> None:
    """Choose the form of the losses in this process.

    Args:
        name: "torch", "triton" (for any device; on the CPU only Triton's interpreter,
            ``TRITON_INTERPRET=1``, can run it) or "auto", Triton where it works on CUDA. None: what
            ``D2EXT_SIGMOID_KERNEL`` says, else "auto".
    """
    global _chosen
    _chosen = None if name is None else _checked(name, "set_sigmoid_kernel takes")


def sigmoid_kernel_of(tensor: torch.Tensor) -> str:
    """The form that logits like ``tensor`` are computed in: "torch" or "triton"."""
    name = _chosen
    if name is None:
        name = os.environ.get("D2EXT_SIGMOID_KERNEL", "auto")
        _checked(name, "D2EXT_SIGMOID_KERNEL must be")
    if name != "auto":
        return name
    if not tensor.is_cuda:
        return "torch"
    return "triton" if _triton_works(tensor.device, tensor.dtype) else "torch"


def _checked(name: str, who: str) -> str:
    if name not in _KERNELS:
        raise ValueError(f"{who} one of {', '.join(_KERNELS)}, not '{name}'.")
    return name


@functools.cache
def _triton_works(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether Triton is there and builds for a device, tried once on one row.

    Triton also needs a C compiler and a recent GPU. This is tried before the first loss, because
    the arithmetic must not change in the middle of a training.
    """
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        logits = torch.zeros((1, 1), device=device, dtype=dtype)
        labels = torch.zeros(1, device=device, dtype=torch.int64)
        _one_pass("triton", logits, LossTerms(labels))
        torch.cuda.synchronize(device)
    except Exception as error:  # whatever a compiler or a driver may raise
        logger.warning(
            f"Triton does not work on {device} ({type(error).__name__}: {error}); the sigmoid "
            "losses use their slower torch form. Repair Triton, or silence this with "
            "D2EXT_SIGMOID_KERNEL=torch."
        )
        return False
    return True


def negative_terms(
    z: torch.Tensor, gamma: Factor, detach_modulation: bool = False
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Focal loss of negatives, p^gamma u, and its derivative with respect to z, elementwise.

    Exact to rounding at every finite logit: all comes from e^-|z|, nothing is 1 - (1 - p), and no
    logarithm is taken of a rounded probability.

    Args:
        z: logits of any shape, float32 or float64.
        gamma: exponent, a number or a tensor that broadcasts to ``z``; a tensor holds no zeros.
        detach_modulation: leave the slope of p^gamma out of the derivative.

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
    if detach_modulation:
        return u.mul_(modulation), p.mul_(modulation)
    slope = z.neg().sigmoid_().mul_(u).mul_(gamma).add_(p).mul_(modulation)
    return u.mul_(modulation), slope


def _quality_terms(
    z: torch.Tensor, quality: torch.Tensor, gamma: Factor
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Quality focal loss of positives, and its derivative with respect to z, elementwise."""
    p, not_p = torch.sigmoid(z), torch.sigmoid(-z)
    bce = z.clamp(min=0) - quality * z + torch.log1p(torch.exp(-z.abs()))
    miss = (1 - quality) * p - quality * not_p  # p - q without cancellation near 0 and 1
    size = miss.abs()
    # size^(gamma - 1) is infinite at 0 for gamma < 1, where the sign makes the derivative 0.
    lever = torch.where(size > 0, size.pow(gamma - 1), torch.zeros_like(size)) * miss.sign()
    return bce * size.pow(gamma), lever * (size.square() + gamma * p * not_p * bce)


class _FusedSigmoidLoss(torch.autograd.Function):
    """Loss, gradient and column sums of the whole family in one pass over the logits."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, asked: LossTerms
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with torch.autocast(device_type=logits.device.type, enabled=False):
            total, grad, pos_sum, neg_sum = _one_pass(sigmoid_kernel_of(logits), logits, asked)
        if asked.need_grad:
            ctx.save_for_backward(grad)
        ctx.dtype = logits.dtype
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(pos_sum, neg_sum)
        return total, pos_sum, neg_sum

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_output: Optional[torch.Tensor], _pos: None, _neg: None
    ) -> Tuple[Optional[torch.Tensor], None]:
        grad = None
        if grad_output is not None:
            (grad,) = ctx.saved_tensors
            freed = _graph_is_freed()
            if not host.asking_is_free(grad_output) or grad_output.item() != 1.0:
                grad = grad.mul_(grad_output) if freed else grad * grad_output
            elif not freed and grad.dtype == ctx.dtype:
                # The receiver may scale it in place, and another backward pass needs it unchanged.
                grad = grad.clone()
            grad = grad.to(ctx.dtype)
        return grad, None


def _graph_is_freed() -> bool:
    """Whether the running backward pass drops saved tensors, so that they may be overwritten."""
    keeps = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return keeps is not None and not keeps()


def _one_pass(kernel: str, logits: torch.Tensor, asked: LossTerms) -> PassTerms:
    """What :class:`_FusedSigmoidLoss` computes, in the form ``kernel``.

    Returns:
        The sum, the gradient or None, and the (C,) positive and negative sums.
    """
    dtype = compute_dtype(logits)
    if logits.numel() == 0:
        grad = torch.empty_like(logits) if asked.need_grad else None
        pos_sum, neg_sum = logits.new_zeros((2, logits.shape[1]), dtype=dtype)
        return logits.new_zeros((), dtype=dtype), grad, pos_sum, neg_sum
    # Kept as wide as float16's range demands: the factor of the backward pass (an AMP scale, one
    # over the positives) only comes later, and would come too late for what has underflowed.
    grad_dtype = dtype if logits.dtype == torch.float16 else logits.dtype
    if kernel == "triton":
        from .sigmoid_triton import fused_pass  # imports Triton, which not every machine has

        return fused_pass(logits, asked, dtype, grad_dtype)
    return _torch_pass(logits, asked, dtype, grad_dtype)


def _torch_pass(
    logits: torch.Tensor, asked: LossTerms, dtype: torch.dtype, grad_dtype: torch.dtype
) -> PassTerms:
    """:func:`_one_pass` in torch operations, for logits that are not empty."""
    labels, quality, gamma, pos_weight, neg_weight, need_grad, with_sums, detach = asked
    num_rows, num_classes = logits.shape
    grad = torch.empty_like(logits, dtype=grad_dtype) if need_grad else None
    loss_sum = logits.new_zeros(
        num_classes if torch.is_tensor(neg_weight) else (), dtype=torch.double
    )
    pos_sum = logits.new_zeros(num_classes, dtype=torch.double)
    neg_sum = torch.zeros_like(pos_sum)

    is_pos, ignored, column = split_labels(labels, num_classes)
    own = logits.gather(1, column[:, None])[:, 0].to(dtype)
    hidden = own.masked_fill(is_pos | ignored, _HIDDEN)[:, None]
    hide_rows = not host.asking_is_free(ignored) or bool(ignored.any())
    entries = _CHUNK_CPU if logits.device.type == "cpu" else _CHUNK_DEVICE
    step = max(1, entries // num_classes)
    smallest = smallest_gradient(dtype)
    plain = isinstance(neg_weight, (int, float)) and neg_weight == 1
    for start in range(0, num_rows, step):
        rows = slice(start, start + step)
        z = logits[rows].to(dtype, copy=True)
        if hide_rows:
            z.masked_fill_(ignored[rows, None], _HIDDEN)
        z.scatter_(1, column[rows, None], hidden[rows])
        loss, slope = negative_terms(z, gamma, detach)
        loss_sum += loss.sum(dim=0) if loss_sum.dim() else loss.sum()
        if with_sums:
            neg_sum += slope.sum(dim=0)
        if grad is not None:
            slope = slope if plain else slope.mul_(neg_weight)
            torch.threshold(slope, smallest, 0.0, out=grad[rows])  # a NaN stays

    gamma_own, weight_own = _pick(gamma, column), _pick(pos_weight, column)
    if quality is None:
        loss, slope = negative_terms(own.neg(), gamma_own, detach)
        slope = slope.neg_()
    else:
        loss, slope = _quality_terms(own, quality.to(dtype), gamma_own)
    # masked_fill, not a product: what a row without a positive holds here may be infinite.
    loss = (loss * weight_own).masked_fill_(~is_pos, 0.0)
    slope = (slope * weight_own).masked_fill_(~is_pos, 0.0)
    if grad is not None:
        kept = drop_negligible(slope).to(grad_dtype)
        grad.scatter_add_(1, column[:, None], kept[:, None])
    if with_sums:
        pos_sum.index_add_(0, column, slope.abs().double())
        neg_sum *= neg_weight
    total = (loss_sum * neg_weight).sum() + loss.sum(dtype=torch.double)
    return total.to(dtype), grad, pos_sum.to(dtype), neg_sum.to(dtype)


def check_shapes(
    logits: torch.Tensor, labels: torch.Tensor, quality: Optional[torch.Tensor] = None
) -> None:
    """Refuse what does not fit together."""
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            "Sigmoid losses take logits (M, C) and labels (M,), not "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}; flatten images and levels first."
        )
    if quality is not None and quality.shape != labels.shape:
        raise ValueError(
            f"quality must hold one value a row, {tuple(labels.shape)}, not {tuple(quality.shape)}."
        )


def compute_dtype(logits: torch.Tensor) -> torch.dtype:
    """float64 for float64, float32 for everything else."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def split_labels(
    labels: torch.Tensor, num_classes: int
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Masks of positive and of ignored rows (M,), and a column of each row that always exists."""
    is_pos = (labels >= 0) & (labels < num_classes)
    return is_pos, labels < 0, labels.long().clamp(0, num_classes - 1)


def _pick(factor: Factor, column: torch.Tensor) -> Factor:
    return factor[column] if torch.is_tensor(factor) else factor
