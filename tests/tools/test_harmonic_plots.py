"""The harmonic loss' gradients as its pictures show them."""

import math

import numpy as np
import pytest
from figures.harmonic_plots import descend, draw_gradients, harmonic_iou_curve


def test_literal_descent_moves_a_good_box_away_first_and_detached_does_not():
    start = ([math.log(81)], [0.8])
    _, literal = descend(*start, detach=False)
    _, detached = descend(*start, detach=True)
    assert literal[50, 0] > 0.8 and literal[-1, 0] < 0.8
    assert np.all(np.diff(detached[:, 0]) <= 0)


def test_both_forms_lower_every_loss_in_the_end():
    for detach in (True, False):
        cls, loc = descend([3.0, 0.1], [0.4, 2.2], detach=detach, steps=800)
        assert cls[-1].max() < 0.2 and loc[-1].max() < 0.2


@pytest.mark.parametrize("gamma", [0.0, 0.8, 1.0])
def test_curve(gamma):
    iou, loss, slope = harmonic_iou_curve(gamma, points=11)
    assert loss[0] == 1 and loss[-1] == 0
    np.testing.assert_allclose(slope[[0, -1]], [1 - gamma, 2**gamma], atol=1e-12)
    assert np.all(np.diff(loss) < 0)


def test_picture(tmp_path):
    path = draw_gradients(tmp_path / "sub" / "gradients.png")
    assert path.read_bytes()[:4] == b"\x89PNG"
