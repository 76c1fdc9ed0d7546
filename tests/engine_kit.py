"""What the engine's tests share: configs of the toy detector, runs of train_net.py, ranks."""

from campaigns.compare import differences, load, metrics, state_of
from campaigns.runs import ROOT, Run, start_ranks, start_subprocess, train
from campaigns.toy import toy_options
from process_kit import run_ranks

from d2ext import get_cfg

__all__ = [
    "ROOT",
    "Run",
    "differences",
    "load",
    "metrics",
    "run_ranks",
    "start_ranks",
    "start_subprocess",
    "state_of",
    "toy_cfg",
    "toy_options",
    "train",
]


def toy_cfg(output_dir, *words):
    """The toy detector's config, with more KEY VALUE words."""
    cfg = get_cfg()
    cfg.merge_from_list([*toy_options(output_dir), *words])
    return cfg
