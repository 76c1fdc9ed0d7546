"""Studies: grids of configs and seeds, run as ``train_net.py`` runs, and what came of them."""

from .checks import check_study
from .comparison import compare
from .definition import Run, Study, load_study
from .lock import Busy, locked
from .page import fill_tables, marked_tables
from .plot import draw_study
from .results import Results, last_figures, learning_curves
from .runner import Runner
from .slurm import SlurmLauncher
from .table import default_figures, markdown_table
from .versions import version_notes

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
    "version_notes",
]
