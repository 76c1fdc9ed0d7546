"""d2ext.ops and d2ext.losses work where nothing but torch is installed."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

BLOCK = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("detectron2", "fvcore", "iopath", "pycocotools", "torchvision"):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, Absent())
"""


def run(code: str) -> str:
    """What a fresh interpreter prints that finds none of those packages."""
    command = [sys.executable, "-c", BLOCK + textwrap.dedent(code)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_is_imported_without_detectron2():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for room in ("ops", "losses")
        for path in sorted((ROOT / "d2ext" / room).glob("*.py"))
        if path.name not in ("__init__.py", "sigmoid_triton.py")  # the latter needs Triton
    ]
    assert len(modules) > 20
    out = run(
        f"""
        import importlib
        for name in {modules!r}:
            importlib.import_module(name)
        allowed = ("d2ext", "d2ext.ops", "d2ext.losses", "d2ext._environment")
        print([m for m in sys.modules if m.split(".")[0] == "d2ext"
               and m not in allowed and m not in {modules!r}])
        """
    )
    assert out.strip() == "[]"


def test_losses_train_without_detectron2():
    out = run(
        """
        from types import SimpleNamespace
        import torch
        from d2ext import losses
        from d2ext.losses import EqualizedFocalLoss

        transform = SimpleNamespace(
            apply_deltas=lambda deltas, priors: priors + deltas,
            get_deltas=lambda priors, boxes: boxes - priors,
        )
        logits = torch.zeros(6, 3, requires_grad=True)
        deltas = torch.zeros(6, 4, requires_grad=True)
        labels = torch.tensor([0, 1, 3, 3, -1, 2])
        index = torch.tensor([0, 1, 5])
        priors = torch.tensor([[0.0, 0.0, 4.0, 4.0]]).repeat(6, 1)
        positives = losses.Positives(
            index, deltas[index], priors[index], priors[index] + 1, transform
        )
        criterion = losses.Criterion(
            cls_loss=EqualizedFocalLoss(3),
            box_loss=losses.GIoULoss(),
            coupling=losses.HarmonicCoupling(place="dense"),
            guide=losses.GuidedScale(sync=True),
        )
        criterion.coupling.recording = True
        out = criterion(logits, labels, positives, cls_normalizer=3.0, box_normalizer=3.0)
        sum(out.values()).backward()
        assert logits.grad.any() and deltas.grad.any() and not logits.grad[4].any()
        assert criterion.cls_loss.neg_grad.sum() > 0
        print(sorted(criterion.coupling.record))
        """
    )
    assert "harmonic/dense/score_iou_gap" in out


def test_what_needs_detectron2_says_so():
    with pytest.raises(AssertionError, match="d2ext needs torchvision|d2ext needs detectron2"):
        run("from d2ext import get_cfg")
