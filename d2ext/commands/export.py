"""``d2ext export``: a detector as ONNX, TorchScript, for OpenVINO or ``torch.export``, checked."""

import argparse
from pathlib import Path
from typing import Any, Dict

from .._arguments import at_least
from .._files import RunError, sentence_of
from .common import Done, add_model_arguments, new_parser

__all__ = ["add_export", "run_export"]

_FORMATS = ("onnx", "openvino", "program", "torchscript")
_OUTPUT = {"onnx": "detector.onnx", "openvino": "detector.xml", "program": "detector.pt2",
           "torchscript": "detector.ts"}  # fmt: skip
_BATCHES = (1, 3)


def add_export(commands) -> None:
    """``d2ext export``."""
    parser = new_parser(
        commands,
        "export",
        "export a detector to ONNX, OpenVINO or TorchScript",
        "d2ext export --weights output/model_final.pth --output detector.onnx",
        "d2ext export --weights output/model_final.pth --pixels --output detector.onnx",
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--format",
        choices=_FORMATS,
        help="default: what --output ends in, else onnx; program is torch.export's: one image size "
        "(--size), no NMS",
    )
    parser.add_argument("--output", metavar="FILE", help="default: detector.onnx, .xml, .ts, .pt2")
    parser.add_argument("--no-nms", action="store_true", help="all boxes and scores, unselected")
    parser.add_argument(
        "--pixels",
        action="store_true",
        help="take bytes (batch, height, width, RGB) of any size and resize them inside",
    )
    parser.add_argument("--opset", type=at_least(16), help="ONNX operator set (default 17)")
    parser.add_argument(
        "--size",
        type=at_least(1),
        nargs=2,
        default=(256, 256),
        metavar=("H", "W"),
        help="for program",
    )
    parser.add_argument("--no-check", action="store_true", help="do not compare with PyTorch")
    parser.set_defaults(func=run_export)


def run_export(args: argparse.Namespace) -> Done:
    from d2ext import Predictor, export
    from d2ext.export.about import describe

    format = args.format or export.format_of(args.output or "") or "onnx"
    output = Path(args.output or _OUTPUT[format])
    try:
        # Exported on the CPU: constants of a trace stay on the device they were made on.
        predictor = Predictor(
            args.config_file, args.weights, device="cpu", allow_pickle=args.allow_pickle
        )
        output.parent.mkdir(parents=True, exist_ok=True)
        node = predictor.cfg.INPUT
        graph = export.export(
            predictor.model,
            output,
            format=format,
            with_nms=not args.no_nms,
            inputs="pixels" if args.pixels else "images",
            channel_order=node.FORMAT,
            sizes=(node.MIN_SIZE_TEST, node.MAX_SIZE_TEST),
            size=tuple(args.size),
            about=describe(predictor, args.weights),
            **({} if args.opset is None else {"opset": args.opset}),
        )
        if args.no_check:
            print(f"{output}: not checked")
            return Done({"checked": False}, [output])
        found = _check(predictor.model, graph, output, args)
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise RunError(sentence_of(error)) from error
    fine = found.acceptable(box=1e-2, score=1e-4)
    return Done({"checked": True, "acceptable": fine, **found}, [output], code=0 if fine else 1)


def _check(model: Any, graph: Any, output: Path, args: argparse.Namespace) -> Any:
    from d2ext import export

    run, about = export.load_exported(output)
    fixed = about["format"] == "program"
    sizes = (tuple(args.size),) if fixed else export.CHECK_SIZES
    batches = _BATCHES[:1] if fixed else _BATCHES
    total: Dict[str, float] = {}
    for batch in batches:
        found = export.compare(model, graph, run, sizes=sizes, batch=batch)
        for key, value in found.items():
            summed = key in ("missing", "detections")
            total[key] = total.get(key, 0) + value if summed else max(total.get(key, 0), value)
    what = "detections" if graph.with_nms else "boxes"
    print(
        f"{output}: compared with PyTorch on {len(sizes)} image sizes and batches of "
        f"{' and '.join(map(str, batches))}, {total['detections']:.0f} {what}: boxes within "
        f"{total['box']:.1e} px, scores within {total['score']:.1e}, {total['missing']:.0f} differ"
    )
    return export.Difference(total)
