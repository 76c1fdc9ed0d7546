"""The pass of :mod:`d2ext.ops.sigmoid_kernel` as one Triton kernel, for CUDA.

The torch form reads and writes each chunk of logits some fifteen times. Here a tile is loaded once
and its gradient stored once; everything between stays in registers.

The kernel adds nothing with atomics, whose order is chance: every program writes its own partial
sums, in float64, and torch adds them up. So a step gives the same bits each time, which an exact
resume needs. For the same reason tile sizes follow from the shape alone and nothing is autotuned.

Importing this module imports Triton; only :mod:`d2ext.ops.sigmoid_kernel` does it, on first use.

Shapes: M rows (samples), C classes. A tile is (BLOCK_M, BLOCK_C); a program takes TILES tiles below
one another. P is the number of programs of a column of tiles, Q of a row of tiles.
"""

import contextlib
from typing import Any, Optional, Tuple

import torch
import triton
import triton.language as tl

from .precision import smallest_gradient
from .sigmoid_kernel import LossTerms

__all__ = ["fused_pass", "tile_shape"]

_TILE_ENTRIES = 2048  # 16 a thread: what a thread holds of z, p, u, ... fits into its registers
_TILES = 4
_WARPS = 4


@triton.jit
def _log1p(x):
    """log(1 + x) for x in [0, 1], to rounding: what 1 + x rounds off is divided out again."""
    y = 1.0 + x
    rounded = y - 1.0
    quotient = x / tl.where(rounded == 0.0, 1.0, rounded)
    return tl.where(rounded == 0.0, x, tl.log(y) * quotient)


@triton.jit
def _halves(z):
    """sigmoid(z), sigmoid(-z) and log(1 + e^-|z|), without a difference from 1."""
    decay = tl.exp2(-1.4426950408889634 * tl.abs(z))
    larger = 1.0 / (1.0 + decay)
    smaller = decay * larger
    return (
        tl.where(z >= 0.0, larger, smaller),
        tl.where(z >= 0.0, smaller, larger),
        _log1p(decay),
    )


@triton.jit
def _negative_terms(z, gamma, POWER: tl.constexpr, DETACH: tl.constexpr):
    """``negative_terms`` of the torch form. POWER: 0 and 2 for these exponents, 1 for any other."""
    p, not_p, tail = _halves(z)
    # Not maximum and minimum, which may drop a NaN.
    u = tl.where(z < 0.0, 0.0, z) + tail
    if POWER == 0:
        return u, p
    if POWER == 2:
        modulation = p * p
    else:
        log_p = tl.where(z > 0.0, 0.0, z) - tail
        modulation = tl.exp2(1.4426950408889634 * gamma * log_p)
    if DETACH:
        return u * modulation, p * modulation
    return u * modulation, (not_p * u * gamma + p) * modulation


@triton.jit
def _quality_terms(z, quality, gamma):
    """``_quality_terms`` of the torch form."""
    p, not_p, tail = _halves(z)
    bce = tl.where(z < 0.0, 0.0, z) - quality * z + tail
    miss = (1.0 - quality) * p - quality * not_p
    size = tl.abs(miss)
    log_size = tl.log2(tl.where(size == 0.0, 1.0, size))
    at_zero = tl.where(gamma == 0.0, 1.0, 0.0)
    modulation = tl.where(size == 0.0, at_zero, tl.exp2(gamma * log_size))
    lever = tl.where(size == 0.0, 0.0, tl.exp2((gamma - 1.0) * log_size))
    lever = tl.where(miss < 0.0, -lever, lever)
    return bce * modulation, lever * (size * size + gamma * p * not_p * bce)


@triton.jit
def _sigmoid_loss_kernel(
    logits_ptr,
    labels_ptr,
    quality_ptr,
    gamma_ptr,  # three factors: (C,), or one number that is read with stride 0
    pos_weight_ptr,
    neg_weight_ptr,
    grad_ptr,
    loss_ptr,  # (P, Q), (P, C), (P, C): the partial sums
    pos_ptr,
    neg_ptr,
    num_rows,
    num_classes,
    logits_row,  # strides
    logits_col,
    grad_row,
    grad_col,
    gamma_stride,
    pos_weight_stride,
    neg_weight_stride,
    DTYPE: tl.constexpr,
    POWER: tl.constexpr,
    DETACH: tl.constexpr,
    HAS_QUALITY: tl.constexpr,
    NEED_GRAD: tl.constexpr,
    WITH_SUMS: tl.constexpr,
    SMALLEST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TILES: tl.constexpr,
):
    program_m = tl.program_id(0)
    program_c = tl.program_id(1)
    cols = program_c * BLOCK_C + tl.arange(0, BLOCK_C)
    col_exists = cols < num_classes
    gamma = tl.load(gamma_ptr + cols * gamma_stride, mask=col_exists, other=1.0)[None, :]
    pos_weight = tl.load(pos_weight_ptr + cols * pos_weight_stride, mask=col_exists, other=0.0)
    neg_weight = tl.load(neg_weight_ptr + cols * neg_weight_stride, mask=col_exists, other=0.0)
    loss_sum = tl.zeros((BLOCK_C,), dtype=tl.float64)
    pos_sum = tl.zeros((BLOCK_C,), dtype=tl.float64)
    neg_sum = tl.zeros((BLOCK_C,), dtype=tl.float64)

    for tile in range(TILES):
        # 64 bits: (M, C) may have more entries than 32 bits count.
        rows = (program_m * TILES + tile).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
        row_exists = rows < num_rows
        label = tl.load(labels_ptr + rows, mask=row_exists, other=-1)
        exists = row_exists[:, None] & col_exists[None, :]
        counts = exists & (label >= 0)[:, None]
        is_pos = counts & (label[:, None] == cols[None, :])
        place = rows[:, None] * logits_row + cols[None, :] * logits_col
        z = tl.load(logits_ptr + place, mask=counts, other=0.0).to(DTYPE)

        # A positive is a negative at -z, so that both cost one evaluation.
        loss, slope = _negative_terms(tl.where(is_pos, -z, z), gamma, POWER, DETACH)
        slope = tl.where(is_pos, -slope, slope)
        if HAS_QUALITY:
            # At most one entry a row: its terms are computed a row, not an entry.
            column = tl.where((label >= 0) & (label < num_classes), label, 0)
            has_own = row_exists & (label >= 0) & (label < num_classes)
            own_place = rows * logits_row + column * logits_col
            own = tl.load(logits_ptr + own_place, mask=has_own, other=0.0).to(DTYPE)
            quality = tl.load(quality_ptr + rows, mask=has_own, other=0.0)
            own_gamma = tl.load(gamma_ptr + column * gamma_stride, mask=has_own, other=1.0)
            own_loss, own_slope = _quality_terms(own, quality, own_gamma)
            loss = tl.where(is_pos, own_loss[:, None], loss)
            slope = tl.where(is_pos, own_slope[:, None], slope)
        weight = tl.where(is_pos, pos_weight[None, :], neg_weight[None, :])
        # where, not a product: what does not count may be infinite.
        loss = tl.where(counts, loss * weight, 0.0)
        slope = tl.where(counts, slope * weight, 0.0)

        loss_sum += tl.sum(loss, axis=0).to(tl.float64)
        if WITH_SUMS:
            size = tl.abs(slope)
            pos_sum += tl.sum(tl.where(is_pos, size, 0.0), axis=0).to(tl.float64)
            neg_sum += tl.sum(tl.where(is_pos, 0.0, size), axis=0).to(tl.float64)
        if NEED_GRAD:
            place = rows[:, None] * grad_row + cols[None, :] * grad_col
            slope = tl.where(tl.abs(slope) <= SMALLEST, 0.0, slope)  # a NaN stays
            tl.store(grad_ptr + place, slope.to(grad_ptr.dtype.element_ty), mask=exists)

    tl.store(loss_ptr + program_m * tl.num_programs(1) + program_c, tl.sum(loss_sum, axis=0))
    if WITH_SUMS:
        place = program_m.to(tl.int64) * num_classes + cols
        tl.store(pos_ptr + place, pos_sum, mask=col_exists)
        tl.store(neg_ptr + place, neg_sum, mask=col_exists)


def tile_shape(num_classes: int) -> Tuple[int, int]:
    """(BLOCK_M, BLOCK_C), powers of 2: wide tiles, unless many of their columns were empty."""
    if num_classes < 16:
        columns = triton.next_power_of_2(num_classes)
    else:
        padding = {width: -num_classes % width for width in (128, 64, 32, 16)}
        fits = [width for width, empty in padding.items() if empty <= num_classes / 10]
        columns = fits[0] if fits else min(padding, key=lambda width: padding[width])
    return _TILE_ENTRIES // columns, columns


def fused_pass(
    logits: torch.Tensor, asked: LossTerms, dtype: torch.dtype, grad_dtype: torch.dtype
) -> Tuple[torch.Tensor, Optional[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Sum, gradient or None, and the (C,) positive and negative sums, as the torch form returns.

    Args:
        logits: (M, C), not empty.
        asked: labels, factors and what is wanted.
        dtype: type of the arithmetic, float32 or float64.
        grad_dtype: type of the gradient.
    """
    labels, quality, gamma, pos_weight, neg_weight, need_grad, with_sums, detach = asked
    num_rows, num_classes = logits.shape
    block_m, block_c = tile_shape(num_classes)
    tiles = min(_TILES, triton.cdiv(num_rows, block_m))
    grid = (triton.cdiv(num_rows, block_m * tiles), triton.cdiv(num_classes, block_c))
    grad = torch.empty_like(logits, dtype=grad_dtype) if need_grad else None
    grad_strides = (0, 0) if grad is None else grad.stride()
    loss = logits.new_empty(grid, dtype=torch.double)
    sums = logits.new_empty((2, grid[0] if with_sums else 0, num_classes), dtype=torch.double)
    power = 1
    if not torch.is_tensor(gamma) and gamma in (0, 2):
        power = int(gamma)
    factors = [_factor(x, logits, dtype) for x in (gamma, pos_weight, neg_weight)]
    # Triton launches on the current device, whatever device the tensors are on.
    on_device = torch.cuda.device(logits.device) if logits.is_cuda else contextlib.nullcontext()
    with on_device:
        _sigmoid_loss_kernel[grid](
            logits,
            labels.contiguous(),
            logits if quality is None else quality.to(dtype).contiguous(),
            *(values for values, _ in factors),
            grad if need_grad else logits,
            loss,
            sums[0],
            sums[1],
            num_rows,
            num_classes,
            *logits.stride(),
            *grad_strides,
            *(stride for _, stride in factors),
            DTYPE=tl.float64 if dtype == torch.float64 else tl.float32,
            POWER=power,
            DETACH=detach,
            HAS_QUALITY=quality is not None,
            NEED_GRAD=need_grad,
            WITH_SUMS=with_sums,
            SMALLEST=smallest_gradient(dtype),
            BLOCK_M=block_m,
            BLOCK_C=block_c,
            TILES=tiles,
            num_warps=_WARPS,
        )
    pos_sum, neg_sum = sums.sum(dim=1).to(dtype)
    return loss.sum().to(dtype), grad, pos_sum, neg_sum


def _factor(value: Any, like: torch.Tensor, dtype: torch.dtype) -> Tuple[torch.Tensor, int]:
    """A factor in memory and its stride; a number would reach the kernel in float32 only."""
    if torch.is_tensor(value):
        return value.to(device=like.device, dtype=dtype).contiguous(), 1
    return like.new_full((1,), float(value), dtype=dtype), 0
