"""``d2ext convert``: checkpoints of the papers' authors and of other frameworks, for d2ext."""

import argparse

from .._arguments import add_import_argument, add_pickle_argument
from .._files import RunError, sentence_of
from .common import Done, load_config, new_parser

__all__ = ["add_convert", "run_convert"]

# Those of d2ext.convert.SOURCES, which needs torch to be asked.
SOURCES = ("dw", "efl", "eqlv2", "maskrcnn-benchmark", "mmdet", "sampling-free", "yolox")


def add_convert(commands) -> None:
    """``d2ext convert``."""
    parser = new_parser(
        commands,
        "convert",
        "convert a checkpoint of the authors' code or of mmdetection",
        "d2ext convert authors.pth --from dw --output dw.pth "
        "--config-file DualWeighting/dw_R_50_FPN_1x",
    )
    parser.add_argument("file", metavar="FILE", help="their .pth file; only tensors are read of it")
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        choices=SOURCES,
        help="whose names it has; yolox are mmdetection's, efl knows United-Perception's YOLOX too",
    )
    parser.add_argument(
        "--config-file",
        required=True,
        action="append",
        metavar="F",
        help="the detector's config; may be repeated, later ones over earlier ones",
    )
    parser.add_argument(
        "--class-first",
        action="store_true",
        help="class and box maps have the anchor last, as United-Perception trains since 2022-05",
    )
    parser.add_argument(
        "--rpn-background",
        choices=("first", "last"),
        default="",
        help="of an RPN with two channels an anchor, which is the background",
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="the .pth file to write")
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides of config keys"
    )
    add_import_argument(parser)
    add_pickle_argument(parser)
    parser.set_defaults(func=run_convert)


def run_convert(args: argparse.Namespace) -> Done:
    import torch

    from d2ext.convert import convert_checkpoint
    from d2ext.engine.description import describe_run
    from d2ext.safe_load import load_tensors

    cfg = load_config("+".join(args.config_file), args.opts)
    try:
        checkpoint = load_tensors(args.file, allow_pickle=args.allow_pickle)
        converted, report = convert_checkpoint(
            checkpoint,
            args.source,
            cfg,
            class_first=args.class_first,
            rpn_background=args.rpn_background,
        )
        torch.save({"model": converted, **describe_run(cfg)}, args.output)
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise RunError(sentence_of(error)) from error
    print(f"{report.renamed} tensors of {report.model}")
    # What is never in a foreign checkpoint is not worth a line.
    kept = [name for name in report.kept if not name.endswith("num_batches_tracked")]
    for names, what in ((report.dropped, "not used"), (kept, "not in the file, left as they are")):
        if names:
            print(f"  {what}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}")
    return Done(report._asdict(), [args.output])
