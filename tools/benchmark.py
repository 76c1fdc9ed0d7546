#!/usr/bin/env python
"""Time d2ext beside its peers, in one run and in turns, and write the figures down.

    python tools/benchmark.py                                   # everything, prints tables
    python tools/benchmark.py --components losses steps --rounds 20
    python tools/benchmark.py --device cuda --json figures.json
    python tools/benchmark.py --json docs/benchmarks.json --page docs/benchmarks.md

With --json, what was not measured this time keeps what the file says of it. With --page, the tables
between the markers of that page are rewritten from the figures.
"""

import argparse
import importlib
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any, Dict

sys.path.insert(0, str(Path(__file__).resolve().parent))

COMPONENTS = (
    "assign",
    "losses",
    "rivals",
    "steps",
    "peers",
    "small",
    "trainer",
    "evaluation",
    "data",
    "inference",
    "exported",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--components", nargs="+", choices=COMPONENTS, default=COMPONENTS)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch on the CPU")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--page", type=Path, help="write the tables into this page")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: try the benchmark itself")
    args = parser.parse_args()

    import torch
    from benchmarks import page, runner

    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    figures: Dict[str, Any] = {}
    if args.json is not None and args.json.exists():
        figures = json.loads(args.json.read_text())
    for component in args.components:
        module = importlib.import_module(f"benchmarks.{component}")
        for case in module.cases(args):
            if args.only in case.name:
                result = runner.measure(case, args.rounds, args.device)
                print(page.describe(result), flush=True)
                _keep(figures, component, result, runner.machine(args.device))
                if args.json is not None:
                    args.json.write_text(json.dumps(figures, indent=1) + "\n")
            if case.close is not None:
                case.close()
    if args.page is not None:
        args.page.write_text(page.fill(args.page.read_text(), figures))


def _keep(figures: Dict[str, Any], component: str, result: Dict[str, Any], machine: Any) -> None:
    """Put a case into the figures at once, so that a stopped run keeps what it measured."""
    known = figures.setdefault(component, {"cases": []})
    known["machine"] = machine
    names = [case["case"] for case in known["cases"]]
    if result["case"] in names:
        known["cases"][names.index(result["case"])] = result
    else:
        known["cases"].append(result)


if __name__ == "__main__":
    main()
