"""Studies: grids of configs and seeds, run as ``train_net.py`` runs, and what came of them."""

from .definition import Run, Study, check_study, load_study
from .lock import Busy, locked
from .page import fill_tables, marked_tables
from .plot import draw_study
from .results import Results, last_figures, learning_curves
from .runner import Runner
from .slurm import SlurmLauncher
from .table import compare, default_figures, markdown_table

__all__ = [
    "Busy",
    "Results",
    "Run",
    "Runner",
    "SlurmLauncher",
    "Study",
    "check_study",
    "compare",
    "default_figures",
    "draw_study",
    "fill_tables",
    "last_figures",
    "learning_curves",
    "load_study",
    "locked",
    "markdown_table",
    "marked_tables",
]
