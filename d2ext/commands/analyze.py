"""``d2ext analyze``: what is behind the AP of a file of detections."""

import argparse
from pathlib import Path
from typing import Any

from .._arguments import at_least, share
from ..run_index import note_in_run
from .common import (
    Done,
    add_output_argument,
    add_results_arguments,
    default_output,
    new_parser,
    write_json,
)

__all__ = ["add_analyze", "run_analyze"]


def add_analyze(commands: Any) -> None:
    """``d2ext analyze RESULTS``."""
    parser = new_parser(
        commands,
        "analyze",
        "consistency of score and IoU, calibration, kinds of error, long tail, sizes",
        "d2ext analyze output/inference/d2ext_shapes_val/coco_instances_results.json "
        "--dataset d2ext_shapes_val",
    )
    add_results_arguments(parser)
    parser.add_argument(
        "--train", metavar="DATA", help="the training set, which says how frequent classes are"
    )
    parser.add_argument(
        "--min-score",
        type=share,
        default=0.05,
        help="consistency and calibration leave detections below it out (default: 0.05)",
    )
    parser.add_argument(
        "--max-detections",
        type=at_least(1),
        help="of an image and class (default: 100), or of an image in LVIS' form (default: 300)",
    )
    add_output_argument(parser, "analyze")
    parser.set_defaults(func=run_analyze)


def run_analyze(args: argparse.Namespace) -> Done:
    from ..analysis import results_report
    from ..analysis.score_pictures import draw_scores
    from ..evaluation.sources import annotation_source, read_results, require_same_set
    from ..evaluation.thresholds import Thresholds

    output = default_output(args.output, "analyze", args.results)
    results = read_results(args.results)
    data = annotation_source(args.dataset)
    require_same_set(results, data, args.results, args.dataset)
    train = annotation_source(args.train) if args.train else None
    report = results_report.analyze_results(
        results, data, train, min_score=args.min_score, max_detections=args.max_detections
    )
    picture = output / "analysis.png"
    title = f"{Path(args.results).name} on {Path(args.dataset).name}"
    results_report.draw_analysis(report, title, picture)
    scores = draw_scores(report, title, output / "scores.png")
    _print(report)
    thresholds = Thresholds(**report.pop("threshold_file"), source=title)
    note_in_run(args.results, "analysis", output)
    files = [picture, scores, thresholds.save(output / "thresholds.json")]
    return Done(report, [write_json(output / "analysis.json", report), *files])


def _print(report: Any) -> None:
    from ..analysis.results_report import explain_errors

    errors, consistency = report["errors"], report["consistency"]
    print(f"AP {report['AP']:.2f}, AP50 {report['AP50']:.2f}, AP75 {report['AP75']:.2f}")
    best = report["thresholds"]
    if "f1" in best:
        print(
            f"F1 is highest, {best['f1']:.3f}, from score {best['overall']:.3f} on: precision "
            f"{best['precision']:.3f}, recall {best['recall']:.3f}"
        )
    print(
        f"Score and IoU of {consistency['detections_hit']} hits: Pearson "
        f"{consistency['pearson_hit']:.3f}, Spearman {consistency['spearman_hit']:.3f}"
    )
    for name, row in report["calibration"].items():
        print(f"Expected calibration error against '{name}': {row['error']:.3f}")
    costs = ", ".join(f"{k} {v:.2f}" for k, v in errors["cost"].items())
    print(f"AP50 that correcting a kind of error adds: {costs}")
    print(explain_errors())
