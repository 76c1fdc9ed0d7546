"""Loss and slope of the equalized focal loss for classes in and out of balance, as a picture.

    python tools/figures/equalized_focal_plots.py --output docs/images/equalized_focal_loss.png

Symbols of the paper: g_j the ratio of positive to negative gradient of a class, gamma_j its
focusing factor. No detector is trained: the curves are the operation that trains, and its gradient.
"""

import argparse
from pathlib import Path
from typing import Optional, Sequence, Tuple

import torch

from d2ext.analysis.figures import CYCLE, new_figure, save_figure
from d2ext.ops.sigmoid_losses import equalized_focal_loss

__all__ = ["draw_equalized_focal", "equalized_focal_curve"]


def equalized_focal_curve(
    probability: torch.Tensor,
    ratio: float,
    *,
    positive: bool,
    gamma_b: float = 2.0,
    scale: float = 8.0,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Loss of single entries of a class and the size of its slope, without alpha.

    Args:
        probability: (M,) scores of the class.
        ratio: g_j.
        positive: whether the entries are positives of the class.
        gamma_b, scale: of the loss.

    Returns:
        two tensors (M,): the loss, and the size of its derivative with respect to the logit
    """
    logits = torch.logit(probability.double())[:, None].requires_grad_()
    labels = torch.full((len(logits),), 0 if positive else 1)
    losses = []
    for row, label in zip(logits, labels):  # the operation returns sums
        losses.append(
            equalized_focal_loss(
                row[None],
                label[None],
                torch.tensor([ratio], dtype=torch.float64),
                alpha=-1.0,
                gamma_b=gamma_b,
                scale=scale,
            )[0]
        )
    (slope,) = torch.autograd.grad(torch.stack(losses).sum(), logits)
    return torch.stack(losses).detach(), slope[:, 0].abs()


def draw_equalized_focal(output: Path, ratios: Sequence[float] = (1.0, 0.5, 0.0)) -> Path:
    """Draw two panels, negatives and positives: the loss's slope over the score, for each ratio."""
    figure, panels = new_figure((11, 4.2), 1, 2, sharey=True)
    probability = torch.linspace(0.005, 0.995, 199)
    for axes, positive in zip(panels, (False, True)):
        for ratio, color in zip(ratios, CYCLE):
            _, slope = equalized_focal_curve(probability, ratio, positive=positive)
            label = f"g = {ratio:g}, gamma = {2 + 8 * (1 - ratio):g}"
            axes.plot(probability, slope, color=color, label=label)
        axes.set_xlabel("score of the class")
        axes.set_title("a positive" if positive else "a negative")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("size of the gradient at the logit")
    figure.axes[0].legend(title="class in balance (g = 1) to out of it")
    return save_figure(figure, output)


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/equalized_focal_loss.png"))
    print(draw_equalized_focal(parser.parse_args(argv).output))


if __name__ == "__main__":
    main()
