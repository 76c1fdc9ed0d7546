"""What the numerics campaign shares: its table, its strategies and its comparisons.

``@covers(f, ...)`` marks a property test as one of the public functions ``f`` of ``d2ext.ops`` and
counts its examples. Special values are drawn often: an example of ten entries holds some of them.
"""

import functools
from collections import Counter

import torch
from hypothesis import strategies as st

#: Public functions (or classes) of d2ext.ops by how many examples were run.
EXAMPLES = Counter()
#: Public functions that a property test covers.
COVERED = {}

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
HALF = (torch.float16, torch.bfloat16)
NAN, INF = float("nan"), float("inf")
# What a result may be off by, relative to its size and to that of what it is summed of. Half
# precision is computed in float32, but its gradients are rounded to it.
TOLERANCE = {
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
    torch.float32: 1e-5,
    torch.float64: 1e-12,
}

dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 2**32 - 1)
#: Classes: one, a few, as many as a large vocabulary has.
classes = st.sampled_from([1, 1, 2, 3, 7, 80, 5000])
rows = st.sampled_from([0, 1, 2, 5, 17])
bad_values = st.sampled_from([NAN, INF, -INF])


def covers(*functions):
    """Mark a test function, below ``@given``, as a property test of public functions of ops."""

    def decorate(test):
        for function in functions:
            COVERED.setdefault(function, []).append(test.__name__)

        @functools.wraps(test)
        def counted(*args, **kwargs):
            for function in functions:
                EXAMPLES[function.__name__] += 1
            return test(*args, **kwargs)

        return counted

    return decorate


def generator(seed):
    return torch.Generator().manual_seed(seed)


def draw_logits(shape, seed, dtype, extreme=True):
    """Normal logits, some of them at the ends of what a network puts out: 0, +-20, +-90, +-1e4."""
    g = generator(seed)
    logits = torch.randn(shape, generator=g, dtype=torch.float64) * 3
    if extreme:
        ends = torch.tensor([0.0, 20.0, -20.0, 90.0, -90.0, 1e4, -1e4], dtype=torch.float64)
        chosen = ends[torch.randint(0, len(ends), shape, generator=g)]
        logits = torch.where(torch.rand(shape, generator=g) < 0.3, chosen, logits)
    return logits.to(dtype)


def draw_labels(num_rows, num_classes, seed):
    """Classes, background and ignored rows."""
    g = generator(seed + 1)
    labels = torch.randint(0, num_classes, (num_rows,), generator=g)
    kind = torch.rand(num_rows, generator=g)
    labels[kind < 0.4] = num_classes
    labels[kind < 0.2] = -1
    return labels


def draw_boxes(count, seed, dtype, size=500.0):
    """Valid boxes: most of some size, others a point, a line, a sliver or the whole plane."""
    g = generator(seed)
    corner = torch.rand(count, 2, generator=g, dtype=torch.float64) * size
    side = torch.rand(count, 2, generator=g, dtype=torch.float64) * size
    kind = torch.rand(count, 2, generator=g)
    side = torch.where(kind < 0.15, torch.zeros_like(side), side)
    side = torch.where((kind > 0.15) & (kind < 0.25), side / size, side)
    corner = torch.where((kind > 0.9).all(1, keepdim=True), corner - 1e4, corner)
    side = torch.where((kind > 0.9).all(1, keepdim=True), torch.full_like(side, 2e4), side)
    # Rounded before the corners are compared, so that no box is inside out.
    low, high = corner.to(dtype), (corner + side).to(dtype)
    return torch.cat([low, torch.maximum(low, high)], dim=1)


def leaf(tensor):
    return tensor.detach().clone().requires_grad_()


def as_leaf64(tensor):
    """The same numbers in float64, for the plain form."""
    return tensor.detach().double().requires_grad_()


def gradient(value, of):
    """The gradient, zeros where there is none."""
    (grad,) = torch.autograd.grad(value, of, allow_unused=True, retain_graph=True)
    return torch.zeros_like(of) if grad is None else grad


def assert_close(actual, expected, dtype, scale=None):
    """Equal within the tolerance of the type, relative to ``scale`` or the largest entry."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    if not expected.numel():
        return
    expected, actual = expected.detach().double(), actual.detach().double()
    scale = float(expected.abs().max()) if scale is None else float(scale)
    error = float((actual - expected).abs().max())
    # float16 has no numbers between 0 and 6e-8.
    least = 6e-8 if dtype == torch.float16 else 0.0
    limit = TOLERANCE[dtype] * max(scale, 1e-12) + least
    assert error <= limit, (error, scale, actual, expected)


def assert_finite(*tensors):
    for tensor in tensors:
        assert torch.isfinite(tensor).all(), tensor
