#!/usr/bin/env python
"""Compare exported detectors with PyTorch on many sizes and batches: detectors by formats.

    python tools/export_table.py --sizes 2 --batches 1 --only FCOS       # a look
    python tools/export_table.py --page docs/predict_export.md            # 20 sizes, batches 1 to 4

The detectors are the small ones of tests/export, whose scores are spread like a trained one's.
Finished cells are kept (--cells) and not measured again.
"""

import argparse
import json
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests"), str(ROOT / "tests" / "export")]

FORMATS = {"onnx": "ONNX", "torchscript": "TorchScript", "openvino": "OpenVINO fp32",
           "program": "`torch.export`, one size, no NMS"}  # fmt: skip
Cell = Dict[str, Any]


def detectors() -> Dict[str, Callable[[], Any]]:
    """Name in the table -> what builds the detector."""
    from export_kit import DENSE, spread_detector
    from model_kit import WIDE
    from test_two_stage_export import two_stage

    found: Dict[str, Callable[[], Any]] = {
        name: lambda name=name: spread_detector(name, WIDE) for name in DENSE
    }
    for name in ("faster", "mask", "cascade"):
        found[f"{name.capitalize()} R-CNN"] = lambda name=name: two_stage(name)
    return found


def shapes_of(
    count: int, batches: Sequence[int], in_turn: bool = False
) -> List[Tuple[Tuple[int, int], int]]:
    """Sizes between 129 and 259, always the same ones, each with each batch, or one batch each."""
    import numpy as np

    rng = np.random.RandomState(0)
    sizes = [tuple(int(n) for n in rng.randint(129, 260, 2)) for _ in range(count)]
    if in_turn:
        return [(size, batches[k % len(batches)]) for k, size in enumerate(sizes)]
    return [(size, batch) for size in sizes for batch in batches]


def remembering(model: Any) -> Any:
    """A detector that is asked only once about an image: all formats and batches see the same."""
    import torch

    class Remembering(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.known = model, {}

        def forward(self, batch: List[Dict[str, Any]]) -> Any:
            key = batch[0]["image"].numpy().tobytes()
            if key not in self.known:
                self.known[key] = self.model(batch)
            return self.known[key]

    return Remembering().eval()


def check(
    asked: Any, exact: Any, format: str, shapes: Sequence[Tuple[Tuple[int, int], int]]
) -> Cell:
    """The largest differences, and the number of detections that were compared.

    Args:
        asked, exact: the detector in float32 and float64, of :func:`remembering`.
        format: of the file.
        shapes: of :func:`shapes_of`; a batch begins with the images of the smaller ones of
            its size. A program takes one image of the first.

    Returns:
        A :class:`~d2ext.export.Difference`, or the ``sentence`` that says why there is no file.
    """
    from d2ext import export

    fixed = format == "program"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"detector{export.SUFFIXES[format]}"
        try:
            graph = export.export(asked.model, path, with_nms=not fixed, size=shapes[0][0])
        except ValueError as error:
            return {"sentence": str(error)}
        run, _ = export.load_exported(path)
        total = export.Difference()
        for size, batch in [(shapes[0][0], 1)] if fixed else shapes:
            own = {} if fixed else {"exact": exact}
            options = {"sizes": [size], "batch": batch, "seed": 1000 * size[0] + size[1], **own}
            total.add(export.compare(asked, graph, run, **options))
    return {**total, "acceptable": total.acceptable()}


def table_of(cells: Dict[str, Dict[str, Cell]], formats: Sequence[str]) -> str:
    """Differences from PyTorch; in bold what is beyond 1e-3 px or 1e-5 of a score."""
    lines = [["detector", *(FORMATS[f] for f in formats)]]
    lines.append(["---"] * len(lines[0]))
    for name, row in cells.items():
        lines.append([name, *(_cell(row[format]) for format in formats)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(found: Cell) -> str:
    if "sentence" in found:
        return str(found["sentence"])
    box, score = f"{found['box']:.1e} px", f"{found['score']:.1e}"
    box = f"**{box}**" if found["box"] > 1e-3 else box
    score = f"**{score}**" if found["score"] > 1e-5 else score
    text = f"{box}, {score}; {found['missing']:.0f} of {found['detections']:.0f} differ"
    return text if found["acceptable"] else f"{text}: too far"


def exact_table_of(cells: Dict[str, Dict[str, Cell]], formats: Sequence[str]) -> str:
    """How far PyTorch and the files are from the same detector in float64."""
    formats = [format for format in formats if format != "program"]
    lines = [["detector", "PyTorch", *(FORMATS[f] for f in formats)]]
    lines.append(["---"] * len(lines[0]))
    for name, row in cells.items():
        sides = [(row[formats[0]], "pytorch"), *((row[format], "file") for format in formats)]
        texts = [f"{r[f'{s}_box']:.1e} px, {r[f'{s}_score']:.1e}" for r, s in sides]
        lines.append([name, *texts])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def measure(args: argparse.Namespace) -> Dict[str, Dict[str, Cell]]:
    """Detector -> format -> what :func:`check` found, or what --cells holds already."""
    from d2ext import export

    known = json.loads(args.cells.read_text()) if args.cells.is_file() else {}
    cells: Dict[str, Dict[str, Cell]] = {}
    shapes = shapes_of(args.sizes, args.batches, args.in_turn)
    what = f"{args.sizes} sizes, batches {args.batches}{' in turn' if args.in_turn else ''}"
    for name, build in detectors().items():
        if args.only not in name:
            continue
        keys = {format: f"{name}, {format}, {what}" for format in args.formats}
        if not all(key in known for key in keys.values()):
            model = build()
            sides = remembering(model), remembering(export.ExactDetector(model))
        for format, key in keys.items():
            if key not in known:
                known[key] = check(*sides, format, shapes)
                print(name, format, known[key], flush=True)
                args.cells.parent.mkdir(parents=True, exist_ok=True)
                args.cells.write_text(json.dumps(known, indent=1) + "\n")
        cells[name] = {format: known[key] for format, key in keys.items()}
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, default=20)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument(
        "--in-turn", action="store_true", help="each size in one of the batches only, in turn"
    )
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--only", default="", help="detectors whose name contains this")
    parser.add_argument("--cells", type=Path, default=Path("output/export_table.json"))
    parser.add_argument("--page", type=Path, help="write the tables into this page")
    args = parser.parse_args()

    import torch
    from studies import fill_tables

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    cells = measure(args)
    tables = {
        "export": table_of(cells, args.formats),
        "exact": exact_table_of(cells, args.formats),
    }
    print(*tables.values(), sep="\n")
    if args.page is not None:
        args.page.write_text(fill_tables(args.page.read_text(), tables))


if __name__ == "__main__":
    main()
