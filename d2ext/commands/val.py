"""``d2ext val``: evaluate weights on a data set."""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from .._arguments import add_import_argument, add_pickle_argument, share_or_auto
from .._files import mistakes_in_sentences
from ..run_index import note_in_run
from .common import (
    Done,
    add_data_arguments,
    add_output_argument,
    data_set,
    evaluate,
    is_validation,
    new_parser,
    quiet,
    write_json,
)

__all__ = ["add_val", "run_val"]


def add_val(commands: Any) -> None:
    """``d2ext val --weights FILE``."""
    parser = new_parser(
        commands,
        "val",
        "evaluate weights on a data set: figures, speed, parameters, FLOPs",
        "d2ext val --weights output/model_final.pth --data my_photos --split test",
    )
    add = parser.add_argument
    add("--weights", required=True, metavar="FILE", help="a checkpoint of the trainer")
    add_data_arguments(parser)
    add("--config-file", metavar="CONFIG", help="default: the config that the checkpoint holds")
    add("--opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides of config keys")
    add(
        "--threshold",
        type=share_or_auto,
        metavar="SCORE",
        help="also what is seen from this score on: precision, recall, F1 and LRP of each class; "
        "auto: from those chosen before, which are then left as they are",
    )
    add(
        "--write-thresholds",
        action="store_true",
        help="choose the scores for 'predict --threshold auto' on these images, although they are "
        "no validation split",
    )
    add_import_argument(parser)
    add_pickle_argument(parser)
    add_output_argument(parser, "val")
    parser.set_defaults(func=run_val)


def run_val(args: argparse.Namespace) -> Done:
    from ..engine import choose_device
    from ..engine.class_checks import check_checkpoint_classes
    from ..export import is_exported
    from ..predictor import describe_weights
    from ..safe_load import weights_file
    from .show import load_model

    args.weights = weights_file(args.weights)
    with quiet():
        cfg = _config(args)
        name = data_set(args, cfg)
        choose_device(cfg)
        # Beside the weights, where a report of the run finds it.
        output = args.output or Path(os.path.dirname(args.weights)) / "val" / name
        output.mkdir(parents=True, exist_ok=True)
        model = load_model(cfg, args.weights, args.allow_pickle, whole=True)
        about = describe_weights(args.weights)
        check_checkpoint_classes(args.weights, about.get("class_names"), [name])
        timed = _Timed(model)
        results = evaluate(cfg, model, name, output)
        figures: Dict[str, Any] = {**_flat(results), **timed.figures()}
        if not is_exported(args.weights):
            figures.update(_cost(cfg, model, name))
        figures.update(_seen(args, about, output, name))
    figures = {"weights": args.weights, "dataset": name, **figures}
    row = {"iteration": 0, **{k: v for k, v in figures.items() if isinstance(v, (int, float))}}
    (output / "config.yaml").write_text(cfg.dump())
    files = [write_json(output / "figures.json", figures), output / "metrics.json"]
    _write_row(output / "metrics.json", row)
    chosen = args.write_thresholds or (args.threshold is None and is_validation(name))
    files += _draw(output, name, Path(args.weights) if chosen else None)
    note_in_run(args.weights, "evaluation", output / "inference" / name)
    _print(figures)
    if not chosen and args.threshold is None:
        print(
            f"No thresholds are written: {name} is not known as a validation split. Choose them on "
            "one, or give --write-thresholds."
        )
    print(f"Next: d2ext report {output}")
    return Done(figures, files)


def _config(args: argparse.Namespace) -> Any:
    from ..config import validate
    from ..predictor import load_config

    with mistakes_in_sentences(args.config_file or args.weights):
        cfg = load_config(args.config_file, args.weights)
        cfg.merge_from_list(args.opts)
        validate(cfg)
    return cfg


class _Timed:
    """Seconds and images of a model's forward passes."""

    def __init__(self, model: Any):
        self.seconds, self.images, self._start = 0.0, 0, 0.0
        self._handles = [
            model.register_forward_pre_hook(self._begin),
            model.register_forward_hook(self._end),
        ]

    def _begin(self, model: Any, inputs: Tuple[Any, ...]) -> None:
        self._wait(model)
        self._start = time.perf_counter()

    def _end(self, model: Any, inputs: Tuple[Any, ...], output: Any) -> None:
        self._wait(model)
        self.seconds += time.perf_counter() - self._start
        self.images += len(inputs[0])

    @staticmethod
    def _wait(model: Any) -> None:
        import torch

        if any(p.is_cuda for p in model.parameters()):
            torch.cuda.synchronize()

    def figures(self) -> Dict[str, float]:
        for handle in self._handles:
            handle.remove()
        return {"images": self.images, "images_per_second": self.images / max(self.seconds, 1e-9)}


def _cost(cfg: Any, model: Any, name: str) -> Dict[str, float]:
    """Parameters, and floating-point operations for the first image."""
    import torch
    from detectron2.utils.analysis import FlopCountAnalysis

    from ..engine import Trainer

    batch = next(iter(Trainer.build_test_loader(cfg, name)))
    with torch.no_grad():
        counted = FlopCountAnalysis(model, batch[:1]).unsupported_ops_warnings(False)
        counted = counted.uncalled_modules_warnings(False)
        flops = counted.total()
    height, width = batch[0]["image"].shape[-2:]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "gflops": flops / 1e9,
        "gflops_of": f"{width} x {height}",
    }


def _flat(results: Dict[str, Any]) -> Dict[str, float]:
    return {f"{task}/{key}": v for task, part in results.items() for key, v in part.items()}


def _write_row(path: Path, row: Dict[str, Any]) -> None:
    path.write_text(json.dumps(row) + "\n")


def _seen(
    args: argparse.Namespace, about: Dict[str, Any], output: Path, name: str
) -> Dict[str, Any]:
    """The figures of the detections that --threshold shows, by class.

    Args:
        args: the command line.
        about: what the weights say about themselves.
        output, name: where detections are, and what they are of.
    """
    from ..evaluation.results import judge, truth_of
    from ..evaluation.sources import annotation_source, read_results
    from ..evaluation.thresholds import figures_at, thresholds_of

    results = sorted((output / "inference").rglob("coco_instances_results.json"))
    if args.threshold is None or not results:
        return {}
    data = annotation_source(name)
    truth = truth_of(data)
    names = truth.category_names
    if args.threshold == "auto":
        chosen = thresholds_of(args.weights, about, names)
        least, source = chosen.of(names), chosen.source
    else:
        least, source = [args.threshold] * len(names), ""
    verdict = judge(read_results(str(results[0])), data)
    rows = figures_at(verdict, truth.category_ids, least)
    classes = {n: {"score": s, **row} for n, s, row in zip(names, least, rows)}
    return {"seen": {"chosen_on": source, "classes": classes}}


def _draw(output: Path, name: str, weights: Optional[Path]) -> List[Path]:
    """The analysis of the detections; the files that it wrote.

    Args:
        output, name: where detections are, and what they are of.
        weights: thresholds chosen here are written beside them; None: nowhere.
    """
    from ..analysis import results_report
    from ..analysis.score_pictures import draw_scores
    from ..evaluation.sources import annotation_source, read_results
    from ..evaluation.thresholds import Thresholds

    found = sorted((output / "inference").rglob("coco_instances_results.json"))
    if not found:
        return []
    report = results_report.analyze_results(read_results(str(found[0])), annotation_source(name))
    results_report.draw_analysis(report, name, output / "analysis.png")
    draw_scores(report, name, output / "scores.png")
    thresholds = Thresholds(**report.pop("threshold_file"), source=name)
    written = [write_json(output / "analysis.json", report)]
    if weights is not None:
        # Beside the weights, where "predict --threshold auto" looks for them.
        written.append(thresholds.save(weights.with_suffix(".thresholds.json")))
    return [*written, output / "analysis.png", output / "scores.png"]


def _print(figures: Dict[str, Any]) -> None:
    rows = {k: v for k, v in figures.items() if "/" in k and isinstance(v, float)}
    tasks = sorted({key.split("/")[0] for key in rows})
    print(f"{figures['dataset']}: {figures['images']} images")
    for task in tasks:
        short = {k.split("/")[1]: v for k, v in rows.items() if k.startswith(f"{task}/")}
        parts = [f"{k} {v:.1f}" for k, v in short.items() if "-" not in k]
        print(f"{task}: {', '.join(parts)}")
        classes = [f"{k[3:]} {v:.1f}" for k, v in short.items() if k.startswith("AP-")]
        if classes:
            print(f"  AP by class: {', '.join(classes)}")
    if "seen" in figures:
        _print_seen(figures["seen"], figures["dataset"])
    cost = ""
    if "parameters" in figures:
        cost = (
            f", {figures['parameters'] / 1e6:.2f} million parameters, "
            f"{figures['gflops']:.2f} GFLOPs at {figures['gflops_of']}"
        )
    print(f"{figures['images_per_second']:.1f} images a second{cost}")


def _print_seen(seen: Dict[str, Any], name: str) -> None:
    source = seen["chosen_on"]
    print(f"Detections from a score on{f', chosen on {source}' if source else ''}:")
    for label, row in seen["classes"].items():
        print(
            f"  {label} from {row['score']:.2f}: precision {row['precision']:.3f}, recall "
            f"{row['recall']:.3f}, F1 {row['f1']:.3f}, LRP {row['lrp']:.3f}"
        )
    if source == name:
        print("  These scores were chosen on the same images: on others the figures are lower.")
