"""Losses from configs, ours and a user's, and the places where they were found before."""

import importlib

import pytest

from d2ext import losses
from d2ext.config import get_cfg
from d2ext.losses import BoxLoss, ClsLoss, EqualizedFocalLoss, FocalLoss
from d2ext.modeling.losses.from_config import from_config

HEAD = {"num_classes": 4, "alpha": 0.3, "gamma": 1.5}


class Mine(ClsLoss):
    def __init__(self, width: int, sharp: float):
        super().__init__()
        self.width, self.sharp = width, sharp

    @classmethod
    def from_config(cls, cfg, *, num_classes, alpha, gamma):
        return {"width": num_classes, "sharp": gamma + cfg.MODEL.EFL.SCALE}


class Sharper(Mine):
    """Inherits what is made of the config."""


class MyFocal(FocalLoss):
    """As a subclass of ours is given what ours is given."""


class MyEqualized(EqualizedFocalLoss):
    @classmethod
    def from_config(cls, cfg, *, num_classes, **focal):
        return {"num_classes": num_classes, "scale": 3.0}


class MyBoxLoss(BoxLoss):
    """Needs nothing of the config."""


def test_a_loss_is_given_what_its_class_says():
    cfg = get_cfg()
    for cls in (Mine, Sharper):
        loss = from_config(cls, cfg, **HEAD)
        assert type(loss) is cls and (loss.width, loss.sharp) == (4, 9.5)
    focal = from_config(MyFocal, cfg, **HEAD)
    assert type(focal) is MyFocal and (focal.alpha, focal.gamma) == (0.3, 1.5)
    assert from_config(MyEqualized, cfg, **HEAD).scale == 3.0
    assert type(from_config(MyBoxLoss, cfg, smooth_l1_beta=0.5)) is MyBoxLoss


def test_a_refusal_names_the_key():
    cfg = get_cfg()
    cfg.MODEL.EFL.GAMMA_B = -1.0
    with pytest.raises(ValueError, match=r"^MODEL\.EFL\.GAMMA_B must be above 0, not -1\.0"):
        from_config(EqualizedFocalLoss, cfg, **HEAD)


@pytest.mark.parametrize(
    "module, names",
    [
        ("box_losses", "BoxLoss CIoULoss DIoULoss GIoULoss IoULoss SmoothL1Loss"),
        ("cls_losses", "BCELoss ClsLoss FocalLoss QualityFocalLoss SoftmaxLoss"),
        ("eqlv2", "EQLv2Loss"),
        ("equalized_focal", "EqualizedFocalLoss EqualizedQualityFocalLoss"),
        ("ghm", "GHMCLoss"),
        ("gradient_balanced", "GradientBalancedLoss"),
        ("guided", "GuidedScale"),
        ("harmonic", "HarmonicCoupling HarmonicIoULoss"),
        ("normalizers", "EMANormalizer PositiveNormalizer"),
        ("seesaw", "SeesawLoss"),
    ],
)
def test_old_places_hold_the_same_classes(module, names):
    old = importlib.import_module(f"d2ext.modeling.losses.{module}")
    package = importlib.import_module("d2ext.modeling.losses")
    for name in names.split():
        assert getattr(old, name) is getattr(package, name) is getattr(losses, name)


@pytest.mark.parametrize("module, name", [("criterion", "Criterion"), ("positives", "Positives")])
def test_old_places_hold_detectron2s_form(module, name):
    old = importlib.import_module(f"d2ext.modeling.losses.{module}")
    assert issubclass(getattr(old, name), getattr(losses, name))
    assert importlib.import_module("d2ext.modeling.reduce").reduce_sum
