"""Literal arithmetic in YAML is computed; nothing of it can run."""

import pytest

from d2ext import get_cfg
from d2ext.config.arithmetic import evaluate_literal

ANCHORS = "[[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [32, 64, 128, 256, 512 ]]"


def test_it_is_what_python_computes():
    nested = "[[x, [y * x for y in (1, 2)]] for x in [3]]"
    for text in (ANCHORS, "1 + 2 * 3 - -4", "(1, [2.5, 7 // 2, 7 % 4])", nested):
        assert evaluate_literal(text) == eval(text)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').getcwd()",
        "open('x')",
        "[x for x in range(9)]",
        "().__class__",
        "'a' * 9",
        "[1] * 10",
        "9**9**9**9",
        "2.0**64**2",
        "(-8)**0.5",
        "1/0",
        "1e308 * 10",
        "[x for x in [1, 2] if x]",
        "[y for x in [1] for y in [2]]",
        "lambda: 1",
        "x",
        "True",
        "1 +",
        "",
        "[" * 900 + "]" * 900,
        "1" + " " * 3000,
        f"[[[[x for x in a] for y in a] for z in a] for a in [{list(range(30))}]]",
        None,
    ],
)
def test_everything_else_is_refused(text):
    with pytest.raises(ValueError):
        evaluate_literal(text)


def test_a_file_may_use_it_and_nothing_else(tmp_path):
    file = tmp_path / "a.yaml"
    tag = "!!python/object/apply"
    file.write_text(f'MODEL:\n  ANCHOR_GENERATOR:\n    SIZES: {tag}:eval ["{ANCHORS}"]\n')
    cfg = get_cfg()
    cfg.merge_from_file(str(file))
    assert eval(ANCHORS) == cfg.MODEL.ANCHOR_GENERATOR.SIZES
    for text in (f"{tag}:eval ['exit(3)']", f"{tag}:eval 1", f"{tag}:eval [1, 2]",
                 f"{tag}:os.getcwd []", "!!python/name:os.system"):  # fmt: skip
        file.write_text(f"OUTPUT_DIR: {text}\n")
        with pytest.raises(ValueError, match="is not plain YAML: .*run code"):
            get_cfg().merge_from_file(str(file))
