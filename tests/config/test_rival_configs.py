"""The fragments of the rivals add up with detectors to what their names say."""

import pytest

from d2ext import model_zoo
from d2ext.combinations import PARTS, value_of

FRAGMENTS = {
    "Rivals/Base-TAL-TOOD": ("Demo/fcos_shapes", "TAL (TOOD)"),
    "Rivals/Base-TAL-YOLO": ("Demo/atss_shapes", "TAL (YOLO)"),
    "Rivals/Base-SimOTA": ("Demo/fcos_shapes", "SimOTA"),
    "Rivals/Base-DSL": ("Demo/atss_shapes", "DSL"),
    "Rivals/Base-ECM": ("Demo/faster_rcnn_shapes", "ECM"),
    "Rivals/Base-Correlation": ("Demo/atss_shapes", "correlation"),
}


def test_the_fragments_are_complete():
    assert {n for n in model_zoo.list_fragments() if n.startswith("Rivals/")} == {
        f"{name}.yaml" for name in FRAGMENTS
    }


@pytest.mark.parametrize("fragment", list(FRAGMENTS))
def test_a_fragment_switches_its_part_on_and_changes_nothing_else(fragment):
    detector, part = FRAGMENTS[fragment]
    plain, cfg = model_zoo.get_config(detector), model_zoo.get_config(detector, fragment)
    words = PARTS[part].words
    key, value = words["roi" if "rcnn" in detector else "dense"][:2]
    assert str(value_of(cfg, key)) == value != str(value_of(plain, key))
    changed = [k for k in cfg.dotted_keys() if value_of(cfg, k) != value_of(plain, k)]
    assert 1 <= len(changed) <= 2, changed
