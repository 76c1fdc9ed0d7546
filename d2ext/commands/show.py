"""``d2ext show assign`` and ``d2ext show predict``: pictures of targets and of predictions."""

import argparse
import os
from pathlib import Path
from typing import Any, Dict, List

from .._arguments import at_least, share
from .._files import RunError
from ..run_index import note_in_run
from .common import (
    Done,
    add_config_arguments,
    add_output_argument,
    add_results_arguments,
    default_output,
    load_config,
    new_group,
    new_parser,
    quiet,
    require_data,
    write_json,
)
from .show_batch import add_batch

__all__ = ["add_show", "load_model"]


def add_show(commands: Any) -> None:
    """``d2ext show assign|batch|predict``."""
    kinds = new_group(
        commands,
        "show",
        "draw what a detector learns from, or what it predicts",
        "d2ext show assign Demo/fcos_shapes Demo/atss_shapes",
    )
    _add_assign(kinds)
    add_batch(kinds)
    _add_predict(kinds)


def _add_assign(kinds: Any) -> None:
    parser = new_parser(
        kinds,
        "assign",
        "draw which priors learn which object, by level; several configs below each other",
        "d2ext show assign Demo/fcos_shapes Demo/atss_shapes --images 2",
    )
    add_config_arguments(parser, nargs="+")
    add_output_argument(parser, "show_assign")
    parser.add_argument(
        "--weights",
        nargs="+",
        default=[],
        metavar="FILE",
        help="a checkpoint for each config; without them MODEL.WEIGHTS is loaded",
    )
    parser.add_argument(
        "--images", type=at_least(1), default=1, help="how many images (default: 1)"
    )
    parser.add_argument(
        "--image", action="append", default=[], metavar="NAME",
        help="an image of the training set by its file name or the end of it; may be repeated",
    )  # fmt: skip
    parser.set_defaults(func=run_assign)


def _add_predict(kinds: Any) -> None:
    parser = new_parser(
        kinds,
        "predict",
        "draw predictions beside the ground truth, the worst images first",
        "d2ext show predict output/inference/d2ext_shapes_val/coco_instances_results.json "
        "--dataset d2ext_shapes_val",
    )
    add_results_arguments(parser)
    parser.add_argument("--image-root", help="folder of the images, if DATA is a file")
    parser.add_argument(
        "--images", type=at_least(1), default=8, help="how many to draw (default: 8)"
    )
    parser.add_argument("--score", type=share, default=0.5, help="lowest score (default: 0.5)")
    add_output_argument(parser, "show_predict")
    parser.set_defaults(func=run_predict)


def load_model(
    cfg: Any, weights: str = "", allow_pickle: bool = False, *, whole: bool = False
) -> Any:
    """The model of a config in evaluation mode, with the weights given or those of the config.

    Args:
        cfg: the config.
        weights: a checkpoint; "": MODEL.WEIGHTS.
        allow_pickle: read one that is a pickle.
        whole: refuse weights that fill a part of the model only.
    """
    from detectron2.modeling import build_model

    from ..engine import Checkpointer
    from ..engine.class_checks import check_trained
    from ..export import ExportedModel, is_exported
    from ..safe_load import weights_file

    path = weights_file(weights or cfg.MODEL.WEIGHTS)
    if path and "://" not in path and not os.path.isfile(path):
        raise RunError(f"The weights {path} do not exist; correct --weights or MODEL.WEIGHTS.")
    try:
        if is_exported(path):
            return ExportedModel(path)
        model = build_model(cfg)
        checkpointer = Checkpointer(model, allow_pickle=allow_pickle)
        checkpointer.load(path)
        if whole:
            check_trained(model, path, checkpointer.last_incompatible)
    # What a model refuses its config with, and the checkpointer a file.
    except (OSError, ValueError) as error:
        raise RunError(str(error)) from error
    return model.eval()


def run_assign(args: argparse.Namespace) -> Done:
    if args.weights and len(args.weights) != len(args.config):
        raise RunError("Give --weights one file for each config, in their order.")
    output = default_output(args.output, "show_assign", args.config[0])
    with quiet():
        configs = [load_config(name, args.opts) for name in args.config]
        models = [
            load_model(cfg, weights, args.allow_pickle)
            for cfg, weights in zip(configs, args.weights or [""] * len(configs))
        ]
        items = _choose_items(configs[0], args.images, args.image)
        report = [_draw_item(args.config, models, configs, item, output) for item in items]
    return Done({"images": report}, [write_json(output / "assignments.json", report)])


def _choose_items(cfg: Any, count: int, wanted: List[str]) -> List[Dict[str, Any]]:
    """Dataset dicts of the training set, by name or the first with objects."""
    from detectron2.data import get_detection_dataset_dicts

    require_data(cfg.DATASETS.TRAIN)
    dicts = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=True)
    if not wanted:
        return dicts[:count]
    found = [d for name in wanted for d in dicts if d["file_name"].endswith(name)]
    if not found:
        raise RunError(f"No training image ends with {' or '.join(wanted)}.")
    return found


def _draw_item(
    names: List[str], models: List[Any], configs: List[Any], item: Dict[str, Any], output: Path
) -> Dict[str, Any]:
    import numpy as np
    from detectron2.data import MetadataCatalog, detection_utils

    from ..analysis.assignment_picture import assign_image, draw_assignments, table_of_levels

    cfg = configs[0]
    shown = _sample(cfg, item)
    pixels = detection_utils.convert_image_to_rgb(
        np.ascontiguousarray(shown["image"].permute(1, 2, 0).numpy()), cfg.INPUT.FORMAT
    )
    objects = shown["instances"]
    labels = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes")
    classes = [labels[c] if labels else str(c) for c in objects.gt_classes.tolist()]
    rows, tables = [], []
    for name, model, own in zip(names, models, configs):
        data = _sample(own, item)
        for assignment in assign_image(model, data):
            rows.append((Path(name).stem, _moved(assignment, data, shown)))
            tables.append(
                {
                    "config": name,
                    "title": assignment["title"],
                    "strides": assignment["strides"],
                    "priors": assignment["priors"],
                    "ignored": assignment["ignored"],
                    "levels": table_of_levels(assignment, len(objects)),
                }
            )
    path = output / f"{Path(item['file_name']).stem}.png"
    draw_assignments(pixels, objects.gt_boxes.tensor.numpy(), classes, rows, path)
    print(path)
    return {"image": item["file_name"], "picture": path.name, "objects": classes, "rows": tables}


def _sample(cfg: Any, item: Dict[str, Any]) -> Dict[str, Any]:
    """A model's input for an image, in the size and channel order of its own config."""
    from detectron2.data import DatasetMapper
    from detectron2.data import transforms as T

    short, long = min(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN
    mapper = DatasetMapper(
        is_train=True,
        augmentations=[T.ResizeShortestEdge(short, long)],  # no flip: the picture is the file
        image_format=cfg.INPUT.FORMAT,
    )
    return mapper(item)


def _moved(
    assignment: Dict[str, Any], data: Dict[str, Any], shown: Dict[str, Any]
) -> Dict[str, Any]:
    """An assignment of the image ``data``, with its priors where they are in the one ``shown``."""
    sizes = zip(shown["image"].shape[-2:], data["image"].shape[-2:])
    height, width = (new / old for new, old in sizes)
    return {**assignment, "x": assignment["x"] * width, "y": assignment["y"] * height}


def run_predict(args: argparse.Namespace) -> Done:
    from ..analysis.prediction_sheet import draw_sheet
    from ..evaluation.results import judge
    from ..evaluation.sources import annotation_source, read_results, require_same_set

    output = default_output(args.output, "show_predict", args.results)
    results = read_results(args.results)
    data = annotation_source(args.dataset)
    require_same_set(results, data, args.results, args.dataset)
    verdict = judge(results, data, min_score=args.score)
    root = args.image_root or _image_root(args.dataset)
    report = draw_sheet(verdict, data, root, output / "worst.png", args.images)
    note_in_run(args.results, "pictures", output)
    print(report["summary"])
    return Done(report, [output / "worst.png", write_json(output / "predictions.json", report)])


def _image_root(dataset: str) -> str:
    if os.path.isfile(dataset):
        raise RunError("Say where the images are with --image-root.")
    from detectron2.data import MetadataCatalog

    return MetadataCatalog.get(dataset).get("image_root") or ""
