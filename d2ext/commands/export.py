"""``d2ext export``: a detector as ONNX, TorchScript, for OpenVINO or ``torch.export``, checked."""

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any, Dict, List

from .._arguments import at_least
from .._files import RunError, sentence_of, writing
from .common import (
    Done,
    add_data_arguments,
    add_model_arguments,
    data_set,
    evaluate,
    new_parser,
    quiet,
    training_set,
)

__all__ = ["add_export", "run_export"]

_FORMATS = ("onnx", "openvino", "program", "torchscript", "safetensors")
_OUTPUT = {"onnx": "detector.onnx", "openvino": "detector.xml", "program": "detector.pt2",
           "torchscript": "detector.ts", "safetensors": "detector"}  # fmt: skip
_BATCHES = (1, 3)
_SPLITS = ("val", "test", "train")
# Points of AP that a file of fewer bits may lose.
_LOSS = 1.0


def add_export(commands) -> None:
    """``d2ext export``."""
    parser = new_parser(
        commands,
        "export",
        "export a detector to ONNX, OpenVINO or TorchScript",
        "d2ext export --weights output/model_final.pth --output detector.onnx",
        "d2ext export --weights output/model_final.pth --pixels --output detector.onnx",
        "d2ext export --weights output/model_final.pth --precision int8 --data photos "
        "--output detector.xml",
        "d2ext export --weights output/model_final.pth --format safetensors --card --output cells",
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--format",
        choices=_FORMATS,
        help="default: what --output ends in, else onnx; program is torch.export's: one image size "
        "(--size), no NMS; safetensors is a folder of weights and config, as hubs take it",
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
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="of an OpenVINO file: fp16 halves the weights; int8 also computes in eight bits, in "
        "ranges measured on training images; both print AP before and after on the data given",
    )
    add_data_arguments(parser, _SPLITS)
    parser.add_argument(
        "--images",
        type=at_least(1),
        default=128,
        metavar="N",
        help="training images that int8 measures ranges on (default 128)",
    )
    parser.add_argument(
        "--card", action="store_true", help="also README.md: a model card, from the run's files"
    )
    parser.add_argument("--licence", default="", metavar="ID", help="of the weights, for the card")
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
        about = describe(predictor)
        if format == "safetensors":
            done = Done({"checked": False}, export.write_folder(predictor.model, output, about))
        else:
            output.parent.mkdir(parents=True, exist_ok=True)
            done = _export_graph(predictor, output, format, about, args)
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise RunError(sentence_of(error)) from error
    if not args.card:
        return done
    card = (output if format == "safetensors" else output.parent) / "README.md"
    return done._replace(files=[*done.files, _write_card(card, about, predictor.weights, args)])


def _export_graph(
    predictor: Any, output: Path, format: str, about: Dict[str, Any], args: argparse.Namespace
) -> Done:
    from d2ext import export

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
        precision=args.precision,
        calibration=_calibration(predictor, args) if args.precision == "int8" else (),
        about=about,
        **({} if args.opset is None else {"opset": args.opset}),
    )
    if args.no_check:
        print(f"{output}: not checked")
        return Done({"checked": False}, [output])
    if args.precision != "fp32":
        return _compare_ap(predictor, output, args)
    found = _check(predictor.model, graph, output, args)
    fine = found.acceptable(box=1e-2, score=1e-4)
    return Done({"checked": True, "acceptable": fine, **found}, [output], code=0 if fine else 1)


def _write_card(path: Path, about: Dict[str, Any], weights: str, args: argparse.Namespace) -> Path:
    from ..report.card import make_card
    from ..run_index import run_of

    if path.is_file() and "library_name: d2ext" not in path.read_text(errors="replace")[:500]:
        raise RunError(f"{path} is no model card of d2ext; move it, or choose another --output.")
    with quiet(), writing(path):
        text = make_card(about, run_of(weights), Path(weights), args.licence)
        path.write_text(text, encoding="utf-8")
    return path


def _check(model: Any, graph: Any, output: Path, args: argparse.Namespace) -> Any:
    from d2ext import export

    run, about = export.load_exported(output)
    fixed = about["format"] == "program"
    sizes = (tuple(args.size),) if fixed else export.CHECK_SIZES
    batches = _BATCHES[:1] if fixed else _BATCHES
    total = export.Difference()
    for batch in batches:
        total.add(export.compare(model, graph, run, sizes=sizes, batch=batch))
    what = "detections" if graph.with_nms else "boxes"
    print(
        f"{output}: compared with PyTorch on {len(sizes)} image sizes and batches of "
        f"{' and '.join(map(str, batches))}, {total['detections']:.0f} {what}: boxes within "
        f"{total['box']:.1e} px, scores within {total['score']:.1e}, {total['missing']:.0f} differ"
    )
    return total


def _calibration(predictor: Any, args: argparse.Namespace) -> List[Any]:
    """Training images, evenly spread over their list, in the form of the file's input."""
    from detectron2.data import DatasetCatalog

    from d2ext import export

    items = DatasetCatalog.get(training_set(args, predictor.cfg))
    chosen = items[:: max(1, len(items) // args.images)][: args.images]
    form = {
        "inputs": "pixels" if args.pixels else "images",
        "channel_order": predictor.cfg.INPUT.FORMAT,
    }
    images = (predictor.prepare(item["file_name"])["image"] for item in chosen)
    return [export.as_input(image[None], **form) for image in images]


def _compare_ap(predictor: Any, output: Path, args: argparse.Namespace) -> Done:
    """AP of the detector in PyTorch and of its file, on the data given."""
    from d2ext import export

    name = data_set(args, predictor.cfg, _SPLITS)
    found: Dict[str, float] = {}
    with quiet(), tempfile.TemporaryDirectory() as folder:
        for key, model in (("before", predictor.model), ("after", export.ExportedModel(output))):
            ap = evaluate(predictor.cfg, model, name, folder)["bbox"]["AP"]
            found[key] = 0.0 if math.isnan(ap) else ap  # which it is without a detection
    print(
        f"{output}: AP on {name} {found['before']:.2f} in PyTorch, {found['after']:.2f} in "
        f"{args.precision}"
    )
    fine = found["before"] - found["after"] <= _LOSS
    values = {"checked": True, "acceptable": fine, "dataset": name, "AP": found}
    return Done(values, [output], code=0 if fine else 1)
