"""``d2ext val``: evaluate weights on a data set."""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

from .._arguments import add_import_argument, add_pickle_argument
from .._files import mistakes_in_sentences
from ..run_index import note_in_run
from .common import (
    Done,
    add_data_arguments,
    add_output_argument,
    data_set,
    evaluate,
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
    add_import_argument(parser)
    add_pickle_argument(parser)
    add_output_argument(parser, "val")
    parser.set_defaults(func=run_val)


def run_val(args: argparse.Namespace) -> Done:
    from ..engine import choose_device
    from ..engine.class_checks import check_checkpoint_classes
    from ..export import is_exported
    from ..predictor import describe_weights
    from .show import load_model

    with quiet():
        cfg = _config(args)
        name = data_set(args, cfg)
        choose_device(cfg)
        # Beside the weights, where a report of the run finds it.
        output = args.output or Path(os.path.dirname(args.weights)) / "val" / name
        output.mkdir(parents=True, exist_ok=True)
        model = load_model(cfg, args.weights, args.allow_pickle, whole=True)
        known = describe_weights(args.weights).get("class_names")
        check_checkpoint_classes(args.weights, known, [name])
        timed = _Timed(model)
        results = evaluate(cfg, model, name, output)
        figures: Dict[str, Any] = {**_flat(results), **timed.figures()}
        if not is_exported(args.weights):
            figures.update(_cost(cfg, model, name))
    figures = {"weights": args.weights, "dataset": name, **figures}
    row = {"iteration": 0, **{k: v for k, v in figures.items() if isinstance(v, (int, float))}}
    (output / "config.yaml").write_text(cfg.dump())
    files = [write_json(output / "figures.json", figures), output / "metrics.json"]
    _write_row(output / "metrics.json", row)
    files += _draw(output, name, Path(args.weights))
    note_in_run(args.weights, "evaluation", output / "inference" / name)
    _print(figures)
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


def _draw(output: Path, name: str, weights: Path) -> List[Path]:
    """The analysis of the detections; the files that it wrote."""
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
    # Beside the weights, where "predict --threshold auto" looks for them.
    beside = thresholds.save(weights.with_suffix(".thresholds.json"))
    written = write_json(output / "analysis.json", report)
    return [written, beside, output / "analysis.png", output / "scores.png"]


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
    cost = ""
    if "parameters" in figures:
        cost = (
            f", {figures['parameters'] / 1e6:.2f} million parameters, "
            f"{figures['gflops']:.2f} GFLOPs at {figures['gflops_of']}"
        )
    print(f"{figures['images_per_second']:.1f} images a second{cost}")
