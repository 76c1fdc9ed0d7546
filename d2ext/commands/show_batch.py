"""``d2ext show batch``: training batches as the model sees them."""

import argparse
from typing import Any, Dict, List

from .._arguments import at_least
from .common import (
    Done,
    add_config_arguments,
    add_output_argument,
    default_output,
    load_config,
    new_parser,
    quiet,
    require_data,
    write_json,
)

__all__ = ["add_batch"]

_GAP = 8  # pixels between pictures


def add_batch(kinds: Any) -> None:
    """``d2ext show batch CONFIG``."""
    parser = new_parser(
        kinds,
        "batch",
        "draw training batches as the model sees them, with augmentation, boxes and masks",
        "d2ext show batch Demo/fcos_shapes --batches 2 --opts INPUT.AUGMENTATION strong",
    )
    add_config_arguments(parser)
    parser.add_argument("--data", metavar="PATH", help="labelled images instead of DATASETS.TRAIN")
    parser.add_argument(
        "--batches", type=at_least(1), default=1, help="how many to draw (default: 1)"
    )
    parser.add_argument(
        "--step", type=at_least(0), default=0, help="of the training, from which on (default: 0)"
    )
    add_output_argument(parser, "show_batch")
    parser.set_defaults(func=run_batch)


def run_batch(args: argparse.Namespace) -> Done:
    from ..engine import Trainer

    output = default_output(args.output, "show_batch", args.config)
    opts = [*args.opts, "DATASETS.DATA", args.data] if args.data else args.opts
    with quiet():
        cfg = load_config(args.config, opts)
        cfg.DATALOADER.NUM_WORKERS = 0
        require_data(cfg.DATASETS.TRAIN)
        loader = Trainer.build_train_loader(cfg)
        # As a training that is resumed there.
        loader.batches_consumed = args.step * cfg.SOLVER.ACCUMULATE
        batches = iter(loader)
        report, files = [], []
        for number in range(args.batches):
            path = output / f"batch_{args.step}_{number}.png"
            report.append(_draw(next(batches), cfg, path))
            files.append(path)
    return Done({"batches": report}, [write_json(output / "batches.json", report), *files])


def _draw(batch: List[Dict[str, Any]], cfg: Any, path: Any) -> List[Dict[str, Any]]:
    """A sheet of all pictures of a batch; what is in it, for the report."""
    import math

    from detectron2.data import MetadataCatalog
    from PIL import Image

    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes")
    pictures = [_picture(sample, cfg.INPUT.FORMAT, names) for sample in batch]
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = [pictures[k : k + columns] for k in range(0, len(pictures), columns)]
    width = max(sum(p.width + _GAP for p in row) for row in rows)
    heights = [max(p.height for p in row) + _GAP for row in rows]
    sheet = Image.new("RGB", (width + _GAP, sum(heights) + _GAP), "white")
    top = _GAP
    for row, height in zip(rows, heights):
        left = _GAP
        for picture in row:
            sheet.paste(picture, (left, top))
            left += picture.width + _GAP
        top += height
    sheet.save(path)
    return [
        {
            "image": str(sample.get("file_name", "")),
            "size": list(sample["image"].shape[:0:-1]),
            "objects": len(sample["instances"]) if "instances" in sample else None,
        }
        for sample in batch
    ]


def _picture(sample: Dict[str, Any], image_format: str, names: Any) -> Any:
    import numpy as np
    import torch
    from detectron2.data import detection_utils
    from detectron2.structures import PolygonMasks

    from ..analysis.drawing import class_color, draw_boxes

    pixels = np.ascontiguousarray(sample["image"].permute(1, 2, 0).numpy())
    pixels = detection_utils.convert_image_to_rgb(pixels, image_format)
    objects = sample["instances"]
    labels = objects.gt_classes.tolist()
    masks: Any = objects.gt_masks if objects.has("gt_masks") else None
    if isinstance(masks, PolygonMasks):
        height, width = pixels.shape[:2]
        bits = [detection_utils.polygons_to_bitmask(p, height, width) for p in masks.polygons]
        masks = torch.as_tensor(np.asarray(bits).reshape(-1, height, width))
    elif masks is not None:
        masks = masks.tensor
    return draw_boxes(
        pixels,
        objects.gt_boxes.tensor.numpy(),
        [names[c] if names else str(c) for c in labels],
        [class_color(c) for c in labels],
        masks=None if masks is None else masks.bool().numpy(),
        scale=max(1.0, 320 / min(pixels.shape[:2])),
    )
