"""The style that all figures share: one palette, one way to make a figure and to write it."""

from pathlib import Path
from typing import Any, Sequence, Tuple, Union

from d2ext._text import plain

__all__ = [
    "BLACK",
    "BLUE",
    "CYCLE",
    "GREEN",
    "GREY",
    "ORANGE",
    "PINK",
    "SKY",
    "VERMILION",
    "YELLOW",
    "color_of",
    "new_figure",
    "plain",
    "save_figure",
    "title",
]

# Okabe and Ito's colours, told apart also with impaired colour vision.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PINK = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#808080"
#: Colours of lines, runs or objects, in turn.
CYCLE = (BLUE, VERMILION, GREEN, PINK, ORANGE, SKY, BLACK)


def new_figure(
    size: Tuple[float, float], rows: int = 1, columns: int = 1, *, dpi: float = 100, **grid: Any
) -> Tuple[Any, Any]:
    """A figure and its axes, independent of pyplot and of any display.

    Args:
        size: width and height in inches.
        rows, columns: of the axes.
        dpi: pixels an inch.
        grid: more arguments of ``Figure.subplots``.

    Returns:
        the figure, and the axes: one, or an array as ``Figure.subplots`` returns it
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **grid)


def title(axes: Any, text: str, x: str = "", y: str = "", *, size: float = 9) -> None:
    """Name a panel and its axes; whatever is in the texts is not read as mathematics."""
    axes.set_title(plain(text, 100), fontsize=size, loc="left")
    if x:
        axes.set_xlabel(plain(x, 100))
    if y:
        axes.set_ylabel(plain(y, 100))


def save_figure(figure: Any, path: Union[str, Path]) -> Path:
    """Write a figure as PNG, into a folder that is made if it is not there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def color_of(index: int, colors: Sequence[str] = CYCLE) -> str:
    """The colour of the line, run or object ``index``."""
    return colors[index % len(colors)]
