"""The loss-weight hook from a config: every key, and what is refused."""

import pytest
import torch

from d2ext.config import get_cfg
from d2ext.engine.hooks.loss_weights import build_loss_weights, build_weighting


def cfg_with(*overrides):
    cfg = get_cfg()
    cfg.merge_from_list(list(overrides))
    return cfg


def test_off_by_default():
    assert build_loss_weights(get_cfg()) is None


def test_every_key_arrives():
    cfg = cfg_with(
        *("SOLVER.ALWA.ENABLED", True, "SOLVER.ALWA.VARIANT", 1, "SOLVER.ALWA.INTERVAL", 7),
        *("SOLVER.ALWA.STATS_ON", "raw", "SOLVER.ALWA.MIN_WEIGHT", 0.1),
        *("SOLVER.ALWA.MAX_WEIGHT", 0.9, "SOLVER.ALWA.START_ITER", 3),
        *("SOLVER.ALWA.INIT_CLS", 0.5, "SOLVER.ALWA.INIT_BOX", 2.0),
    )
    machine = build_weighting(cfg)
    assert (machine.variant, machine.interval, machine.stats_on) == (1, 7, "raw")
    assert (machine.min_weight, machine.max_weight, machine.start_iter) == (0.1, 0.9, 3)
    assert machine.weights == (0.5, 2.0)


@pytest.mark.parametrize("method", ["uncertainty", "dwa"])
def test_comparison_methods_run_behind_the_same_hook(method):
    cfg = cfg_with("SOLVER.ALWA.ENABLED", True, "SOLVER.ALWA.METHOD", method)
    cfg.SOLVER.ALWA.INTERVAL = 3
    weigher = build_loss_weights(cfg)
    for pair in torch.rand(12, 2, generator=torch.Generator().manual_seed(0)):
        weigher.on_losses(dict(zip(("loss_cls", "loss_box_reg"), pair)))
    assert weigher.weights["loss_cls"] != weigher.weights["loss_box_reg"] != 1.0


def test_static_weights_from_yaml(tmp_path):
    file = tmp_path / "weights.yaml"
    file.write_text('SOLVER:\n  LOSS_WEIGHTS: {"loss_box_reg*": 2.0, "loss_mask": 1}\n')
    cfg = get_cfg()
    cfg.merge_from_file(str(file))
    weigher = build_loss_weights(cfg)
    assert weigher.static == {"loss_box_reg*": 2.0, "loss_mask": 1}
    assert weigher.make_weighting is None


@pytest.mark.parametrize(
    "key, value, message",
    [
        (
            "METHOD",
            "pcgrad",
            "METHOD is 'pcgrad'; it must be one of 'alwa'",
        ),
        ("SYNC", "sum", "SYNC is 'sum'; it must be one of 'mean' and 'none'"),
        ("VARIANT", 3, "VARIANT is 3; it must be one of 1 and 2"),
        ("INTERVAL", 1, "at least 2"),
    ],
)
def test_bad_values_are_refused_before_training(key, value, message):
    cfg = cfg_with("SOLVER.ALWA.ENABLED", True, f"SOLVER.ALWA.{key}", value)
    with pytest.raises(ValueError, match=message):
        build_loss_weights(cfg)


def test_raw_and_multiply_is_refused():
    cfg = cfg_with("SOLVER.ALWA.ENABLED", True, "SOLVER.ALWA.STATS_ON", "raw")
    cfg.SOLVER.ALWA.COMPOSE = "multiply"
    with pytest.raises(ValueError, match="down to 0; use COMPOSE replace"):
        build_loss_weights(cfg)


@pytest.mark.parametrize(
    "override",
    [
        ("SOLVER.LOSS_WEIGHTS", "{'loss_box_reg*': 2.0}"),
        ("SOLVER.LOSS_WEIGHTS", {"loss_box_reg*": 2.0}),
        ("SOLVER.LOSS_WEIGHTS.loss_box_reg*", "2.0"),
    ],
)
def test_static_weights_from_the_command_line(override):
    cfg = cfg_with(*override)
    assert build_loss_weights(cfg).static == {"loss_box_reg*": 2.0}
    cfg.freeze()
    with pytest.raises(AttributeError, match="immutable"):
        cfg.merge_from_list(list(override))


def test_static_weights_must_be_a_dict():
    with pytest.raises(ValueError, match="takes a dict such as"):
        cfg_with("SOLVER.LOSS_WEIGHTS", "2.0")
