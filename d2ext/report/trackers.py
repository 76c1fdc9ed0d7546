"""The figures of a report in TensorBoard, Weights & Biases or MLflow, as scalars and images."""

import contextlib
import math
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Tuple

import numpy as np

from d2ext._files import RunError
from d2ext._text import printable
from d2ext.analysis.score_pictures import score_figure

from .evaluation import Evaluation

__all__ = ["TRACKERS", "scalars_of", "write_tracker"]


def scalars_of(evaluation: Evaluation) -> Dict[str, float]:
    """The scalars of an evaluation by name; classes are below the figure."""
    figures, name = evaluation.figures, printable(evaluation.data.name, 60)
    found = {key: figures[key] for key in ("AP", "AP50", "AP75")}
    found.update({f"best_score/{k}": v for k, v in figures["thresholds"].items()})
    found.update({f"lost_AP50/{k}": v for k, v in figures["errors"]["cost"].items()})
    found.update({f"AP_by_size/{k}": v["AP"] for k, v in figures["sizes"].items()})
    found["score_IoU_correlation"] = figures["consistency"]["pearson_hit"]
    found["ECE"] = figures["calibration"]["right at IoU 0.5"]["error"]
    for row in figures["classes"]:
        for key in ("AP", "f1", "precision", "recall", "threshold", "ECE"):
            found[f"{key}_of/{printable(row['name'], 60)}"] = row.get(key)
    return {f"{name}/{k}": float(v) for k, v in found.items() if v is not None and math.isfinite(v)}


def write_tracker(tracker: str, run: Any, evaluations: Any, title: str) -> str:
    """Write a run's evaluations to a tracker; returns where they are, for a message.

    Args:
        tracker: a key of :data:`TRACKERS`.
        run: a :class:`~d2ext.report.Run`.
        evaluations: the run's.
        title: what to call the experiment.
    """
    series = run.series("total_loss")[0]
    step = int(series[-1]) if len(series) else 0
    with TRACKERS[tracker](run, title) as (write, place):
        for evaluation in evaluations:
            name = printable(evaluation.data.name, 60)
            picture = _pixels(score_figure(evaluation.figures, f"{run.name} on {name}"))
            write(scalars_of(evaluation), {f"{name}/scores": picture}, step)
    return place


def _pixels(figure: Any) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


Writer = Tuple[Callable[[Dict[str, float], Dict[str, np.ndarray], int], None], str]


@contextlib.contextmanager
def _tensorboard(run: Any, title: str) -> Iterator[Writer]:
    from torch.utils.tensorboard import SummaryWriter

    folder = Path(run.folder) / "report_events"
    with SummaryWriter(str(folder)) as writer:

        def write(scalars: Dict[str, float], images: Dict[str, np.ndarray], step: int) -> None:
            for key, value in scalars.items():
                writer.add_scalar(key, value, step)
            for key, image in images.items():
                writer.add_image(key, image, step, dataformats="HWC")

        yield write, str(folder)


@contextlib.contextmanager
def _wandb(run: Any, title: str) -> Iterator[Writer]:
    wandb = _need("wandb")
    with wandb.init(project=title, name=run.name, dir=str(run.folder)) as started:

        def write(scalars: Dict[str, float], images: Dict[str, np.ndarray], step: int) -> None:
            pictures = {key: wandb.Image(value) for key, value in images.items()}
            started.log({**scalars, **pictures}, step=step)

        yield write, f"W&B's project {title}"


@contextlib.contextmanager
def _mlflow(run: Any, title: str) -> Iterator[Writer]:
    mlflow = _need("mlflow")
    mlflow.set_experiment(title)
    with mlflow.start_run(run_name=run.name):

        def write(scalars: Dict[str, float], images: Dict[str, np.ndarray], step: int) -> None:
            mlflow.log_metrics({_mlflow_name(k): v for k, v in scalars.items()}, step=step)
            for key, value in images.items():
                mlflow.log_image(value, f"{_mlflow_name(key)}.png")

        yield write, f"MLflow's experiment {title}"


def _mlflow_name(name: str) -> str:
    """MLflow takes letters, digits, and a few signs."""
    return "".join(ch if ch.isalnum() or ch in "/_-. " else "_" for ch in name)


def _need(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RunError(
            f"--trackers {module} needs the package '{module}'; run 'pip install {module}'."
        ) from error


#: Name -> what opens it.
TRACKERS = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
