"""``d2ext export``: a detector as ONNX, TorchScript or ``torch.export`` program, and its check."""

import argparse
from pathlib import Path
from typing import Any, Dict

from .._arguments import at_least
from .._files import RunError, sentence_of
from .common import Done, add_model_arguments, new_parser

__all__ = ["add_export", "run_export"]

SUFFIXES = {"onnx": ".onnx", "torchscript": ".ts", "program": ".pt2"}


def add_export(commands) -> None:
    """``d2ext export``."""
    parser = new_parser(
        commands,
        "export",
        "export a detector to ONNX or TorchScript",
        "d2ext export --weights output/model_final.pth --output detector.onnx",
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--format",
        choices=sorted(SUFFIXES),
        default="onnx",
        help="program is torch.export's: one image size (--size), no NMS (default onnx)",
    )
    parser.add_argument("--output", metavar="FILE", help="default: detector.onnx, .ts or .pt2")
    parser.add_argument("--no-nms", action="store_true", help="all boxes and scores, unselected")
    parser.add_argument("--opset", type=at_least(9), help="ONNX operator set (default 17)")
    parser.add_argument(
        "--size",
        type=at_least(1),
        nargs=2,
        default=(256, 256),
        metavar=("H", "W"),
        help="for program",
    )
    parser.add_argument(
        "--image",
        metavar="FILE",
        help="for two-stage models, which are traced: an image with objects to follow",
    )
    parser.add_argument("--no-check", action="store_true", help="do not compare with PyTorch")
    parser.set_defaults(func=run_export)


def run_export(args: argparse.Namespace) -> Done:
    from d2ext import Predictor

    output = Path(args.output or f"detector{SUFFIXES[args.format]}")
    try:
        # Exported on the CPU: constants of a trace stay on the device they were made on.
        predictor = Predictor(
            args.config_file, args.weights, device="cpu", allow_pickle=args.allow_pickle
        )
        output.parent.mkdir(parents=True, exist_ok=True)
        if predictor.cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN":
            return _export_two_stage(predictor, output, args)
        return _export_dense(predictor, output, args)
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise RunError(sentence_of(error)) from error


def _export_dense(predictor: Any, output: Path, args: argparse.Namespace) -> Done:
    from d2ext import export

    model, with_nms = predictor.model, not args.no_nms
    sizes = export.CHECK_SIZES
    if args.format == "onnx":
        options: Dict[str, int] = {} if args.opset is None else {"opset": args.opset}
        export.export_onnx(model, output, with_nms=with_nms, **options)
    elif args.format == "torchscript":
        export.export_torchscript(model, output, with_nms=with_nms)
    else:
        if with_nms:
            raise ValueError(
                "A torch.export program has no NMS, whose result has no fixed size; add --no-nms, "
                "or use --format torchscript."
            )
        export.export_program(model, output, size=tuple(args.size))
        sizes = (tuple(args.size),)
    _describe(predictor, output, with_nms, args)
    if args.no_check:
        print(f"{output}: not checked")
        return Done({"checked": False}, [output])
    found = export.compare(model, export.load_exported(output), with_nms=with_nms, sizes=sizes)
    what = "detections" if with_nms else "boxes"
    print(
        f"{output}: compared with PyTorch on {len(sizes)} image sizes, "
        f"{found['detections']:.0f} {what}: boxes within {found['box']:.1e} px, scores within "
        f"{found['score']:.1e}, {found['missing']:.0f} differ"
    )
    fine = found.acceptable(box=1e-2, score=1e-4)
    return Done({"checked": True, "acceptable": fine, **found}, [output], code=0 if fine else 1)


def _export_two_stage(predictor: Any, output: Path, args: argparse.Namespace) -> Done:
    from d2ext import export

    if args.format != "torchscript" or args.image is None:
        raise ValueError(
            "A two-stage model is traced by Detectron2's exporter while it looks at an image; use "
            "--format torchscript --image FILE."
        )
    image = predictor.prepare(args.image)["image"]
    export.trace_two_stage(predictor.model, output, image)
    _describe(predictor, output, True, args)
    print(f"{output}: traced with {args.image}")
    return Done({"checked": False}, [output])


def _describe(predictor: Any, output: Path, with_nms: bool, args: argparse.Namespace) -> None:
    from d2ext.export.check import write_description

    cfg = predictor.cfg
    write_description(
        output,
        format=args.format,
        nms=with_nms,
        channel_order=cfg.INPUT.FORMAT,
        min_size=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        class_names=predictor.class_names,
        detector=cfg.MODEL.META_ARCHITECTURE,
    )
