"""The one table of what goes together: its words, and who asks it."""

import subprocess
import sys

import pytest

from d2ext.combinations import (
    CHOICES,
    DETECTORS,
    PARTS,
    PLACES,
    RULES,
    changed,
    check,
    listening,
    notes,
    present,
    reason_against,
    refusal,
)
from d2ext.config import get_cfg


def test_it_needs_neither_torch_nor_detectron2():
    code = "import d2ext.combinations, sys; assert not {'torch', 'detectron2'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_key_of_the_table_is_one():
    known = set(get_cfg().dotted_keys())
    words = [pair for part in PARTS.values() for pair in part.words.values()]
    keys = [key for pair in words for key in pair[0::2]]
    keys += [x for choice in CHOICES for x in (choice.key, choice.instead) if x]
    assert set(keys) <= known
    cfg = get_cfg()
    assert not any(choice.is_made(cfg) for choice in CHOICES)


def test_rivals_name_the_method_that_they_rival():
    assert all(part.rivals in ("", *PARTS, *DETECTORS) for part in PARTS.values())
    assert all(set(detector.places) <= set(PLACES) for detector in DETECTORS.values())


def test_facts_in_any_number_meet_the_rules_of_their_subsets():
    assert reason_against("rpn", "ohem") is None
    assert reason_against("sampling free", "rpn", "cls:bce", "ohem") == (
        "one selects anchors, the other takes all"
    )
    with pytest.raises(ValueError, match=r"MODEL\.OHEM\.ON_RPN and .* set one of them to False"):
        check("rpn", *present(ohem=3, sampling_free=True, rotated_boxes=False))


def test_what_is_refused_and_what_is_not():
    assert refusal("RetinaNet", "EFL", "Harmonic", "ALWA") is None
    assert "hard labels" in refusal("Faster R-CNN", "ALWA", "EQFL").reason
    assert refusal("DW", "EFL").reason == "DW is assignment and loss in one"
    assert refusal("any other", "Harmonic").reason == "none of its parts reads the key"


def test_a_config_is_told_what_to_know_of_its_parts():
    cfg = get_cfg()
    assert notes(cfg) == [] and changed(cfg, "dense") == []
    cfg.MODEL.SAMPLING_FREE.ENABLED = cfg.SOLVER.ALWA.ENABLED = True
    assert ["ALWA finds nothing to do" in note.reason for note in notes(cfg)] == [True]
    cfg.MODEL.DENSE.BOX_LOSS = "giou"
    assert changed(cfg, "dense") == ["MODEL.DENSE.BOX_LOSS", "MODEL.SAMPLING_FREE.ENABLED"]


def test_warnings_are_logged_and_notes_are_not(caplog):
    check("sampling free", "alwa")
    assert not caplog.records
    check("harmonic iou", "overlap", alpha=1.5, box_loss="GIoULoss")
    assert "adds the harmonic IoU loss to GIoULoss" in caplog.text
    caplog.clear()
    with listening() as heard:
        check("harmonic iou", "overlap", alpha=1.5, box_loss="GIoULoss")
    assert len(heard) == 1 and not caplog.records


def test_every_rule_has_a_level_and_a_reason():
    assert all(rule.level in ("refuse", "warn", "note") and rule.reason for rule in RULES)
