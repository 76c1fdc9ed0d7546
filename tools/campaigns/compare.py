"""Whether two runs came to the same, bit for bit."""

import json
from pathlib import Path
from typing import Any, Dict, List, Sequence

import torch

__all__ = ["differences", "load", "metrics", "run_differences", "state_of"]


def load(path: Any) -> Dict[str, Any]:
    """A checkpoint's content."""
    return torch.load(path, map_location="cpu", weights_only=True)


def state_of(path: Any) -> Dict[str, Any]:
    """A checkpoint without what a clock measured, and without the config and the names of other
    checkpoints, which may differ in what must not matter (workers, periods)."""
    data = load(path)
    for key in ("config", "checkpoints"):
        data.pop(key, None)
    storage = data.get("trainer", {}).get("storage", {})  # files of weights alone have none
    for part in storage.values():
        for name in [n for n in part if "time" in n or "eta" in n]:
            del part[name]
    return data


def metrics(output_dir: Any) -> List[Dict[str, Any]]:
    """The lines of metrics.json without what a clock measured."""
    lines = map(json.loads, Path(output_dir, "metrics.json").read_text().splitlines())
    lines = [{k: v for k, v in x.items() if "time" not in k and "eta" not in k} for x in lines]
    # Times of the first steps after a resume are left out of the average, so a line may hold
    # nothing but the last time before.
    return [line for line in lines if set(line) != {"iteration"}]


def differences(a: Any, b: Any, path: str = "") -> List[str]:
    """Paths at which two nested structures of tensors and plain values differ, bit for bit."""
    if type(a) is not type(b):
        return [f"{path}: {type(a)} and {type(b)}"]
    if isinstance(a, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape
        same = same and a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()
        return [] if same else [path]
    if isinstance(a, dict):
        found = [f"{path}.{k}" for k in set(a) ^ set(b)]
        return found + [d for k in a if k in b for d in differences(a[k], b[k], f"{path}.{k}")]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [f"{path}: {len(a)} and {len(b)} items"]
        return [d for k, (x, y) in enumerate(zip(a, b)) for d in differences(x, y, f"{path}.{k}")]
    return [] if a == b or (a != a and b != b) else [f"{path}: {a} and {b}"]


def run_differences(
    a: Path, b: Path, files: Sequence[str] = ("model_final.pth", "model_best.pth")
) -> List[str]:
    """Where the checkpoints and the figures of two runs differ."""
    found = [f"{f}{d}" for f in files for d in differences(state_of(a / f), state_of(b / f))]
    return found + [f"metrics.json{d}" for d in differences(metrics(a), metrics(b))]
