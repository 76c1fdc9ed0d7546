"""Sigmoid losses to be computed twice: in the torch form, and by Triton's interpreter.

Triton decides on import whether it interprets, so that needs a process of its own:

    TRITON_INTERPRET=1 python tests/ops/triton_kit.py results.pt
"""

import sys

import torch

from d2ext.ops.sigmoid_kernel import fused_sigmoid_loss, set_sigmoid_kernel

FLOAT16, BFLOAT16 = torch.float16, torch.bfloat16

# name -> gamma (None: one a class), pos_weight and neg_weight (None: one a class), quality
FAMILY = {
    "bce": (0.0, 1.0, 1.0, False),
    "focal": (2.0, 0.25, 0.75, False),
    "focal_1.5": (1.5, 0.3, 0.7, False),
    "qfl": (2.0, 1.0, 1.0, True),
    "qfl_0.5": (0.5, 1.0, 1.0, True),
    "qfl_0": (0.0, 1.0, 1.0, True),
    "efl": (None, None, None, False),
    "eqfl": (None, None, None, True),
    "eqlv2": (0.0, None, None, False),
}

# rows, classes: several tiles and programs each, of every width, with and without empty columns
SHAPES = [(1500, 1), (150, 7), (70, 80), (33, 300), (1, 1)]
LAYOUTS = ("transposed", "every_second_row", "int32_labels")
EDGES = ("all_ignored", "all_background", "no_rows", "steep", "extreme", "infinite", "nan")

# An exponent below 1 has an infinite slope where a prediction meets its quality, so that rounding
# there is not small: it is compared in float64.
TAME = [kind for kind in FAMILY if kind != "qfl_0.5"]

CASES = [
    *((kind, shape, torch.float32, "plain") for kind in TAME for shape in SHAPES[:2]),
    *((kind, (40, 21), torch.float64, "plain") for kind in FAMILY),
    *((kind, (40, 21), FLOAT16, "plain") for kind in ("focal", "eqfl")),
    *((kind, (40, 21), BFLOAT16, "plain") for kind in ("focal", "eqfl")),
    *((kind, shape, torch.float32, "plain") for kind in ("focal", "eqfl") for shape in SHAPES[2:]),
    *((kind, (60, 9), torch.float32, how) for kind in ("focal", "eqfl") for how in LAYOUTS),
    *(
        (kind, (60, 9), torch.float32, how)
        for kind in ("bce", "focal_1.5", "eqfl")
        for how in EDGES
    ),
]


def name_of(case) -> str:
    kind, (rows, classes), dtype, how = case
    return f"{kind}-{rows}x{classes}-{str(dtype).split('.')[1]}-{how}"


def make_logits(rows, classes, how, g):
    logits = torch.randn(rows, classes, generator=g, dtype=torch.float64) * 3 - 1
    if how == "steep":  # gradients at both ends of float32
        logits *= 15
    if how == "extreme":
        logits *= 400
    if how == "infinite":
        logits[::3] = float("inf")
        logits[1::3] = -float("inf")
    if how == "nan":
        logits[:: rows // 4] = float("nan")
    return logits


def compute(case, kernel, device="cpu"):
    """Loss, gradient, positive and negative sums, and the loss without a gradient."""
    kind, (rows, classes), dtype, how = case
    gamma, pos_weight, neg_weight, has_quality = FAMILY[kind]
    rows = 0 if how == "no_rows" else rows
    g = torch.Generator().manual_seed(rows + classes)
    logits = make_logits(rows, classes, how, g)
    labels = torch.randint(-1, classes + 1, (rows,), generator=g)
    if how.startswith("all_"):
        labels.fill_(-1 if how == "all_ignored" else classes)
    quality = torch.rand(rows, generator=g, dtype=torch.float64)
    quality[::5] = 0.0
    per_class = torch.rand(3, classes, generator=g, dtype=torch.float64) * 6 + 0.5
    logits, quality, per_class = (x.to(device, dtype) for x in (logits, quality, per_class))
    if dtype in (FLOAT16, BFLOAT16):
        quality, per_class = quality.float(), per_class.float()
    labels = labels.to(device, torch.int32 if how == "int32_labels" else torch.int64)
    leaf = logits.requires_grad_()
    logits = leaf
    if how == "transposed":
        logits = leaf.t().contiguous().t()
    if how == "every_second_row":
        logits, labels, quality = leaf[::2], labels[::2], quality[::2]
    arguments = {
        "gamma": per_class[0] if gamma is None else gamma,
        "pos_weight": per_class[1] if pos_weight is None else pos_weight,
        "neg_weight": per_class[2] if neg_weight is None else neg_weight,
        "quality": quality if has_quality else None,
    }
    set_sigmoid_kernel(kernel)
    try:
        loss, pos_sum, neg_sum = fused_sigmoid_loss(logits, labels, with_sums=True, **arguments)
        (grad,) = torch.autograd.grad(loss, leaf)
        alone, *_ = fused_sigmoid_loss(logits.detach(), labels, **arguments)
    finally:
        set_sigmoid_kernel(None)
    return [x.detach().cpu() for x in (loss, grad, pos_sum, neg_sum, alone)]


if __name__ == "__main__":
    from d2ext.ops import sigmoid_triton

    # Small tiles, or inputs that need several programs would take the interpreter minutes.
    sigmoid_triton._TILE_ENTRIES, sigmoid_triton._TILES = 512, 2
    torch.set_num_threads(1)
    torch.save({name_of(case): compute(case, "triton") for case in CASES}, sys.argv[1])
