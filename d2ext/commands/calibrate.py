"""``d2ext calibrate``: scores that are probabilities, fitted on one data set, tried on another."""

import argparse
import copy
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Tuple

from .._files import RunError, mistakes_in_sentences
from .common import (
    Done,
    add_data_arguments,
    add_model_arguments,
    data_set,
    evaluate,
    is_validation,
    new_parser,
    quiet,
)

__all__ = ["add_calibrate", "run_calibrate"]

# Of a probability, the score from which a detection is more likely right than wrong.
_EVEN = 0.5


def add_calibrate(commands: Any) -> None:
    """``d2ext calibrate --weights FILE``."""
    parser = new_parser(
        commands,
        "calibrate",
        "make scores into probabilities: fitted on validation images, tried on test images",
        "d2ext calibrate --weights output/model_final.pth --data photos",
        "d2ext calibrate --weights output/model_final.pth --dataset my_val --test my_test",
    )
    add_model_arguments(parser)
    add_data_arguments(parser, ("val",))
    parser.add_argument(
        "--test",
        metavar="NAME",
        help="the registered data set to try it on (default: the test split of --data)",
    )
    parser.add_argument(
        "--method",
        choices=("isotonic", "temperature"),
        default="isotonic",
        help="the one to keep; figures are printed of both (default isotonic)",
    )
    parser.set_defaults(func=run_calibrate)


def run_calibrate(args: argparse.Namespace) -> Done:
    from .. import Predictor
    from ..evaluation.recalibration import METHODS, fit
    from ..evaluation.results import judge, truth_of

    with quiet(), mistakes_in_sentences(args.config_file or args.weights):
        predictor = Predictor(args.config_file, args.weights, allow_pickle=args.allow_pickle)
        cfg, model = predictor.cfg, predictor.model
        name, test = data_set(args, cfg, ("val",)), data_set(_test_arguments(args), cfg, ("test",))
        if not (is_validation(name) or args.split or args.dataset):
            raise RunError(
                f"{name} is not known as a validation split; if scores shall be fitted on it all "
                f"the same, give --dataset {name}."
            )
        if name == test:
            raise RunError(
                f"{name} cannot say what a calibration fitted on it is worth; name other images "
                "with --test."
            )
        results, data = _detections(cfg, model, name)
        test_results, test_data = _detections(cfg, model, test)
    truth = truth_of(data)
    verdict, names = judge(results, data), truth.category_names
    maps = {
        method: fit(verdict, truth.category_ids, names, method=method, source=name)
        for method in METHODS
    }
    figures = {"before": _figures(test_results, test_data)}
    for method, how in maps.items():
        figures[method] = _figures(_applied(how, test_results, test_data), test_data)
    file = maps[args.method].save(predictor.weights)
    print(f"Fitted on {name}, figures on {test}:")
    print(f"{'':<12}{'ECE':>8}{'ECE, IoU':>10}{'LRP at 0.5':>12}{'AP':>8}")
    for key, row in figures.items():
        print(
            f"{key:<12}{row['ECE']:>8.3f}{row['ECE_IoU']:>10.3f}{row['LRP']:>12.3f}"
            f"{row['AP']:>8.2f}"
        )
    found = {"fitted_on": name, "tried_on": test, "method": args.method, "figures": figures}
    return Done(found, [file])


def _test_arguments(args: argparse.Namespace) -> argparse.Namespace:
    """The same command line with the test images as its data."""
    test = copy.copy(args)
    test.split, test.dataset, test.data = None, args.test, "" if args.test else args.data
    return test


def _detections(cfg: Any, model: Any, name: str) -> Tuple[List[Dict[str, Any]], Dict[str, Any]]:
    """Results in COCO's form and the annotations they belong to."""
    from ..evaluation.sources import annotation_source, read_results

    with tempfile.TemporaryDirectory() as folder:
        evaluate(cfg, model, name, folder)
        (path,) = Path(folder).rglob("coco_instances_results.json")
        return read_results(str(path)), annotation_source(name)


def _applied(how: Any, results: List[Dict[str, Any]], data: Dict[str, Any]) -> List[Dict[str, Any]]:
    import numpy as np

    names = {row["id"]: row["name"] for row in data["categories"]}
    ids = list(names)
    classes = np.array([ids.index(row["category_id"]) for row in results], dtype=int)
    scores = how.apply([row["score"] for row in results], classes, list(names.values()))
    return [{**row, "score": float(score)} for row, score in zip(results, scores)]


def _figures(results: List[Dict[str, Any]], data: Dict[str, Any]) -> Dict[str, float]:
    """Means over classes; LRP of the detections that are more likely right than wrong by score."""
    import numpy as np

    from ..analysis.results_report import analyze_results
    from ..evaluation.results import judge, truth_of
    from ..evaluation.thresholds import figures_at

    report = analyze_results(results, data, min_score=0.0)
    ids = truth_of(data).category_ids
    shown = figures_at(judge(results, data), ids, [_EVEN] * len(ids))
    return {
        "ECE": float(np.nanmean([row["ECE"] for row in report["classes"]])),
        "ECE_IoU": report["calibration"]["IoU"]["error"],
        "LRP": float(np.nanmean([row["lrp"] for row in shown])),
        "AP": report["AP"],
    }
