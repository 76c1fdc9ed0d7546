"""Box refinement against the authors' numbers, and beside the map's borders."""

import pytest
import torch
from golden_kit import golden

from d2ext.ops.dual_weighting import refine_boxes


def near(actual, expected, tolerance):
    expected = torch.as_tensor(expected)
    return float((actual.double() - expected).abs().max() / expected.abs().max()) <= tolerance


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 5e-4)])
@pytest.mark.parametrize("level", range(3))
def test_authors_numbers(level, dtype, tolerance):
    data = golden("dw", "g_refine_f64")
    assert int(data["num_levels"]) == 3

    def stored(key):
        return torch.tensor(data[f"lvl{level}_{key}"])

    raw = stored("conv_reg_out").to(dtype).requires_grad_()
    offsets = stored("reg_offset_out").to(dtype).requires_grad_()
    scale = stored("scale").to(dtype).requires_grad_()
    stride = float(stored("stride"))
    refined = refine_boxes(stride * torch.relu(scale * raw), offsets, stride)
    assert near(refined.detach(), stored("refined_ltrb"), tolerance)
    (refined * stored("out_grad").to(dtype)).sum().backward()
    assert near(raw.grad, stored("grad_conv_reg_out"), tolerance)
    assert near(offsets.grad, stored("grad_reg_offset_out"), tolerance)
    assert near(scale.grad, stored("grad_scale"), tolerance)


def test_constant_boxes_stay():
    """Where every location predicts one and the same box, it does not matter where it is read."""
    h, w, stride = 6, 8, 8.0
    x = (torch.arange(w) + 0.5).expand(h, w) * stride
    y = (torch.arange(h)[:, None] + 0.5).expand(h, w) * stride
    box = (4.0, 4.0, 60.0, 44.0)  # its corners are the outermost cells' centres
    ltrb = torch.stack((x - box[0], y - box[1], box[2] - x, box[3] - y))[None]
    refined = refine_boxes(ltrb, torch.zeros(1, 8, h, w), stride)
    torch.testing.assert_close(refined, ltrb, rtol=0, atol=1e-3)


def test_sides_beyond_the_map():
    ltrb = torch.full((1, 4, 2, 2), 800.0)
    refined = refine_boxes(ltrb, torch.zeros(1, 8, 2, 2), 8.0)
    # The samples count as 0: right and bottom collapse, left and top reach the image's border.
    assert (refined[:, 2:] == 0).all()
    assert refined[0, 0].tolist() == [[4.0, 12.0], [4.0, 12.0]]


def test_one_cell_and_half_precision():
    ltrb = torch.full((1, 4, 1, 1), 2.0, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        refined = refine_boxes(ltrb, torch.zeros(1, 8, 1, 1, dtype=torch.bfloat16), 8.0)
    assert refined.dtype == torch.float32
    assert torch.isfinite(refined).all()
