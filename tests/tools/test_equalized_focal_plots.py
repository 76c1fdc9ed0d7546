"""The curves of the equalized focal loss against its closed form."""

import torch
from figures.equalized_focal_plots import equalized_focal_curve, main
from PIL import Image


def test_curves_are_the_papers_formula():
    p = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    for ratio, gamma in ((1.0, 2.0), (0.25, 8.0), (0.0, 10.0)):
        loss, slope = equalized_focal_curve(p, ratio, positive=False)
        assert torch.allclose(loss, gamma / 2 * p**gamma * -(1 - p).log())
        expected = gamma / 2 * p**gamma * (p - gamma * (1 - p) * (1 - p).log())
        assert torch.allclose(slope, expected)
        loss, slope = equalized_focal_curve(1 - p, ratio, positive=True)
        assert torch.allclose(slope, expected)


def test_command_draws(tmp_path, capsys):
    file = tmp_path / "a" / "curves.png"
    main(["--output", str(file)])
    assert capsys.readouterr().out.strip() == str(file)
    assert Image.open(file).size == (1100, 420)
