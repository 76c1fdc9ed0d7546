"""A key is declared once, and defaults, rules, arguments and refusals follow from it."""

import subprocess
import sys
from pathlib import Path

import pytest

from d2ext import get_cfg
from d2ext.config import arguments, construct, names_keys
from d2ext.config.keys import Key, Section, all_sections
from d2ext.config.rules import number
from d2ext.modeling.losses import EqualizedFocalLoss

ROOT = Path(__file__).resolve().parents[2]


def test_a_section_feeds_a_constructor():
    cfg = get_cfg()
    cfg.MODEL.EFL.SCALE = 4.0
    given = arguments(cfg, "MODEL.EFL")
    assert given == {"gamma_b": 2.0, "scale": 4.0, "alpha": 0.25, "loss_weight": 1.0}
    loss = construct(EqualizedFocalLoss, cfg, "MODEL.EFL", num_classes=3, alpha=0.5)
    assert (loss.scale, loss.alpha, loss.num_classes) == (4.0, 0.5, 3)
    with pytest.raises(KeyError, match="No section MODEL.NONE"):
        arguments(cfg, "MODEL.NONE")


def test_a_constructor_refuses_in_its_own_words_and_a_config_in_the_names_of_keys():
    with pytest.raises(ValueError, match="^gamma_b must be above 0"):
        EqualizedFocalLoss(3, gamma_b=0)
    cfg = get_cfg()
    cfg.MODEL.EFL.GAMMA_B = 0.0
    with pytest.raises(ValueError, match="^MODEL.EFL.GAMMA_B must be above 0"):
        construct(EqualizedFocalLoss, cfg, "MODEL.EFL", num_classes=3)


def test_only_arguments_are_translated():
    def refuse(**kwargs):
        raise ValueError("scale needs gamma_b='x', on a scale from 1 to x.alpha.")

    with pytest.raises(ValueError) as caught:
        construct(refuse, get_cfg(), "MODEL.EFL")
    assert str(caught.value) == (
        "MODEL.EFL.SCALE needs MODEL.EFL.GAMMA_B 'x', on a scale from 1 to x.alpha."
    )


def test_a_decorated_constructor_knows_whether_it_was_called_with_a_config():
    class Part:
        @names_keys("MODEL.EFL")
        def __init__(self, cfg=None, scale=1.0):
            raise ValueError("scale is refused.")

    with pytest.raises(ValueError, match="^MODEL.EFL.SCALE is refused"):
        Part(get_cfg())
    with pytest.raises(ValueError, match="^scale is refused"):
        Part(scale=2.0)


def test_declarations_are_complete():
    for section in all_sections():
        for key in section.keys:
            name = f"{section.name}.{key.name}"
            assert key.meaning and "\n" not in key.meaning and len(key.meaning) < 90, name
            assert key.name.endswith("*") or key.rule.accepts(key.default), name
    with pytest.raises(ValueError, match="MODEL.A.B is declared twice"):
        Section("MODEL.A", *[Key("B", 1.0, number(), "a number")] * 2)


def test_declarations_import_where_torch_and_detectron2_are_absent():
    code = f"""
import sys, types
package = types.ModuleType("d2ext")
package.__path__ = [{str(ROOT / "d2ext")!r}]
sys.modules["d2ext"] = package
for name in ("torch", "detectron2", "fvcore"):
    sys.modules[name] = None
from d2ext.config import keys, rules
from d2ext.config.validate import OWN_RULES, validate
assert OWN_RULES["MODEL.EFL.SCALE"].accepts(4.0)
from yacs.config import CfgNode
cfg = CfgNode()
keys.add_keys(cfg)
assert keys.arguments(cfg, "MODEL.EFL")["scale"] == 8.0
"""
    subprocess.run([sys.executable, "-c", code], check=True)
