"""Whole detectors on several ranks: after 13 steps all of them hold the same, bit for bit.

One rank in turn has images without objects. What two keys keep apart by design is held to be apart.
"""

import pytest
import torch
from detectron2.utils import comm
from engine_kit import differences, load, run_ranks
from model_kit import SHALLOW, build, make_batch, small_cfg

from d2ext.engine import Trainer
from d2ext.engine.hooks import LossWeights, MeasurePrior, ModelEMA
from d2ext.ops.loss_weights import AdaptiveLossWeight

pytestmark = [pytest.mark.dist, pytest.mark.slow]

STEPS, SIZE = 13, 64
CHANNELS = 64  # two for each group of GroupNorm, which a map of one cell needs
SAMPLING_FREE = [
    "MODEL.SAMPLING_FREE.ENABLED", True,
    "MODEL.SAMPLING_FREE.GUIDE", "frozen",
    "MODEL.SAMPLING_FREE.GUIDE_WARMUP", 5,
]  # fmt: skip
COCO = "configs/COCO/{}_R_50_FPN_1x.yaml"
# name: (config, keys, state that each rank has for itself)
OWN_NORMALISER = {".model.normalizer.value"}
DETECTORS = {
    "retinanet": (COCO.format("retinanet"), [], OWN_NORMALISER),
    "retinanet, normaliser in common": (
        COCO.format("retinanet"),
        ["MODEL.DENSE.NORMALIZER_SYNC", "on", "MODEL.DENSE.CLS_LOSS", "efl"],
        set(),
    ),
    # A rank's own ratio becomes one of all at the end of the warm-up; the average remembers it.
    "retinanet, sampling-free": (
        COCO.format("retinanet"),
        SAMPLING_FREE,
        {".average.criterion.guide.ratio"},
    ),
    "fcos, ghmc": (COCO.format("fcos"), ["MODEL.DENSE.CLS_LOSS", "ghmc"], OWN_NORMALISER),
    "atss, eqfl, alwa": (COCO.format("atss"), ["MODEL.DENSE.CLS_LOSS", "eqfl"], set()),
    "dual weighting": ("configs/DualWeighting/dw_R_50_FPN_1x_refine.yaml", [], set()),
    "faster, seesaw": (
        COCO.format("faster_rcnn"),
        ["MODEL.ROI_BOX_HEAD.CLS_LOSS", "seesaw"],
        set(),
    ),
    "fcos, task-aligned, varifocal, wise iou": (
        COCO.format("fcos"),
        [
            *("MODEL.DENSE.ASSIGNER", "tal_tood", "MODEL.DENSE.CLS_LOSS", "varifocal"),
            *("MODEL.DENSE.BOX_LOSS", "wiou"),
        ],
        set(),
    ),
    "atss, simota, ghm-r, correlation": (
        COCO.format("atss"),
        [
            *("MODEL.DENSE.ASSIGNER", "simota", "MODEL.DENSE.BOX_LOSS", "ghm_r"),
            *("MODEL.GHM_R.MOMENTUM", 0.5, "MODEL.CORRELATION.ENABLED", True),
        ],
        set(),
    ),
}


def batches_of(rank, world_size):
    batches = []
    for step in range(STEPS):
        empty = step % 4 == 0 and step // 4 % world_size == rank
        counts = (0,) if empty else (1 + (step + 2 * rank) % 5,)
        batches.append(make_batch(counts, size=SIZE, seed=100 * step + rank))
    return batches


def train(name, batches):
    path, words, _ = DETECTORS[name]
    cfg = small_cfg(path, [*SHALLOW, "MODEL.FPN.OUT_CHANNELS", CHANNELS, *words])
    model = build(cfg)
    hooks = [ModelEMA(model, decay=0.9)]
    if "sampling-free" in name:
        hooks.append(MeasurePrior(model, lambda: iter(batches), max_batches=10))
    if "alwa" in name:
        hooks.append(LossWeights(make_weighting=lambda: AdaptiveLossWeight(2, interval=5)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    trainer = Trainer(model=model, data_loader=batches, optimizer=optimizer, max_iter=STEPS)
    trainer.register_hooks(hooks)
    trainer.train()
    return {
        "model": {k: v.clone() for k, v in model.state_dict().items()},
        "average": {k: v.clone() for k, v in hooks[0].average.items()},
        "hooks": [hook.state_dict() for hook in hooks[1:]],
    }


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """By detector, the state of each of two ranks."""
    path, world_size = tmp_path_factory.mktemp("ranks") / "states.pt", 2

    def rank_main(rank):
        batches = batches_of(rank, world_size)
        gathered = comm.all_gather({name: train(name, batches) for name in DETECTORS})
        if rank == 0:
            torch.save({name: [x[name] for x in gathered] for name in DETECTORS}, path)

    run_ranks(rank_main, world_size)
    return load(path)


@pytest.mark.parametrize("name", DETECTORS)
def test_state_is_equal_on_all_ranks(states, name):
    first, *others = states[name]
    for other in others:
        assert set(differences(first, other)) == DETECTORS[name][2]
    assert all(torch.isfinite(v).all() for v in first["model"].values())


def test_the_methods_were_at_work(states):
    first = {name: ranks[0]["model"] for name, ranks in states.items()}
    assert first["retinanet, normaliser in common"]["criterion.cls_loss.pos_grad"].min() > 0
    assert first["retinanet, sampling-free"]["criterion.guide.iters"] == 5
    assert first["retinanet, sampling-free"]["criterion.guide.ratio"] > 0
    assert first["retinanet, sampling-free"]["prior"] > 0
    assert first["fcos, ghmc"]["criterion.cls_loss.count"].sum() > 0
    assert states["atss, eqfl, alwa"][0]["hooks"][0]["groups"]["dense"]["num_windows"] == STEPS // 5
    seen = [v for k, v in first["faster, seesaw"].items() if k.endswith("num_seen")]
    assert len(seen) == 1 and seen[0].sum() > 0
