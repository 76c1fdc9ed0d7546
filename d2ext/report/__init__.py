"""The page a person opens: where a model fails, how runs differ, what is in the data."""

from .page import collect, make_page, numbers_of_runs
from .run import Run, load_run

__all__ = ["Run", "collect", "load_run", "make_page", "numbers_of_runs"]
