#!/usr/bin/env python
"""Compare exported detectors with PyTorch on many sizes and batches: detectors by formats.

    python tools/export_table.py --sizes 2 --batches 1 --only FCOS       # a look
    python tools/export_table.py --page docs/predict_export.md            # 20 sizes, batches 1 to 4

The detectors are the small ones of tests/export, whose scores are spread like a trained one's.
"""

import argparse
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests"), str(ROOT / "tests" / "export")]

FORMATS = {"onnx": "ONNX", "torchscript": "TorchScript", "openvino": "OpenVINO"}


def detectors() -> Dict[str, Callable[[], Any]]:
    """Name in the table -> what builds the detector."""
    from export_kit import DENSE, spread_detector
    from test_two_stage_export import two_stage

    found: Dict[str, Callable[[], Any]] = {
        name: lambda name=name: spread_detector(name) for name in DENSE
    }
    for name in ("faster", "mask", "cascade"):
        found[f"{name.capitalize()} R-CNN"] = lambda name=name: two_stage(name)
    return found


def sizes_of(count: int) -> List[Tuple[int, int]]:
    """Heights and widths between 129 and 259, always the same ones."""
    import numpy as np

    rng = np.random.RandomState(0)
    return [tuple(int(n) for n in rng.randint(129, 260, 2)) for _ in range(count)]


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
    asked: Any, format: str, sizes: Sequence[Tuple[int, int]], batches: Sequence[int]
) -> Dict[str, float]:
    """The largest differences, and the number of detections that were compared.

    Args:
        asked: of :func:`remembering`.
        format: of the file.
        sizes, batches: of the images; a batch begins with the images of the smaller ones.
    """
    from d2ext import export

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"detector{export.SUFFIXES[format]}"
        graph = export.export(asked.model, path)
        run, _ = export.load_exported(path)
        rows = [
            export.compare(asked, graph, run, sizes=[size], batch=batch, seed=k)
            for k, size in enumerate(sizes)
            for batch in batches
        ]
    summed = ("missing", "detections")
    return {key: (sum if key in summed else max)(row[key] for row in rows) for key in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, default=20)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--only", default="", help="detectors whose name contains this")
    parser.add_argument("--page", type=Path, help="write the table into this page")
    args = parser.parse_args()

    import torch
    from studies import fill_tables

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    head = ["detector", *(FORMATS[f] for f in args.formats)]
    lines = [head, ["---"] * len(head)]
    for name, build in detectors().items():
        if args.only not in name:
            continue
        model, cells = remembering(build()), []
        for format in args.formats:
            found = check(model, format, sizes_of(args.sizes), args.batches)
            print(name, format, found, flush=True)
            cells.append(
                f"{found['box']:.0e} px, {found['score']:.0e}; {found['missing']:.0f} of "
                f"{found['detections']:.0f} differ"
            )
        lines.append([name, *cells])
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    print(table)
    if args.page is not None:
        args.page.write_text(fill_tables(args.page.read_text(), {"export": table}))


if __name__ == "__main__":
    main()
