"""Methods that no part of a model reads are refused."""

import pytest
from model_kit import build, small_cfg
from torch import nn

from d2ext import model_zoo
from d2ext.modeling.losses.build import build_cls_loss
from d2ext.modeling.methods_in_use import check_methods_in_use


@pytest.mark.parametrize(
    "keys, sentence",
    [
        (
            ("MODEL.ROI_BOX_HEAD.CLS_LOSS", "efl"),
            "has no ROI head that reads it; set MODEL.DENSE.CLS_LOSS",
        ),
        (("MODEL.OHEM.ON_RPN", True), "MODEL.OHEM.ON_RPN is True, but .* has no RPN"),
        (
            ("MODEL.HARMONIC.ENABLED", True, "MODEL.HARMONIC.ON_DENSE", False),
            "off at every place that ExtRetinaNet has; set MODEL.HARMONIC.ON_DENSE to True",
        ),
        (
            ("MODEL.SAMPLING_FREE.ENABLED", True, "MODEL.SAMPLING_FREE.ON_DENSE", False),
            "set MODEL.SAMPLING_FREE.ON_DENSE to True",
        ),
    ],
)
def test_keys_of_other_places(keys, sentence):
    cfg = small_cfg(model_zoo.get_config_file("Base-RetinaNet"), keys)
    with pytest.raises(ValueError, match=sentence):
        check_methods_in_use(cfg, build(cfg))


def test_a_detector_of_your_own_counts_by_its_parts():
    class Mine(nn.Module):
        pass

    cfg = small_cfg(None, ("MODEL.DENSE.CLS_LOSS", "efl", "MODEL.HARMONIC.ENABLED", True))
    model = Mine()
    with pytest.raises(
        ValueError, match="MODEL.DENSE.CLS_LOSS is 'efl', but Mine has no dense head"
    ):
        check_methods_in_use(cfg, model)
    for key, value in (("NORMALIZER", "positives"), ("NORMALIZER_SYNC", "on")):
        other = small_cfg(None, (f"MODEL.DENSE.{key}", value))
        with pytest.raises(ValueError, match=f"MODEL.DENSE.{key} is '{value}', but Mine has no"):
            check_methods_in_use(other, model)
    model.loss = build_cls_loss(cfg, "efl", place="dense", num_classes=3)
    check_methods_in_use(cfg, model)

    free = Mine()
    cfg = small_cfg(None, ("MODEL.SAMPLING_FREE.ENABLED", True))
    with pytest.raises(ValueError, match="Mine has no part that can use it"):
        check_methods_in_use(cfg, free)
    free.sampling_free = None
    check_methods_in_use(cfg, free)
