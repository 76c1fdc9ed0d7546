"""Two ranks with an image each compute what one rank with both images computes."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from detectron2.utils.events import EventStorage
from golden_kit import golden
from process_kit import run_ranks

from d2ext.modeling.meta_arch import DualWeightingFCOS
from d2ext.ops.dual_weighting import DualWeightingConstants

KEYS = ("loss_cls_pos", "loss_cls_neg", "loss_loc")


def losses_of(images):
    """Losses of some images, the gradient of their sum by the class logits, and the divisors."""
    data = golden("dw", "b_overlap")
    points = torch.tensor(data["points"]).double()
    strides = torch.tensor(data["strides"]).double()[torch.tensor(data["point_level"]).long()]
    logits = torch.tensor(data["cls_logits"]).double().requires_grad_()
    ltrb = torch.tensor(data["bbox_ltrb"]).double()
    boxes = torch.cat((points - ltrb[..., :2], points + ltrb[..., 2:]), dim=-1)
    image = torch.tensor(data["gt_image"]).long()
    gt_boxes = torch.tensor(data["gt_boxes"]).double()
    gt_classes = torch.tensor(data["gt_labels"]).long()
    model = SimpleNamespace(constants=DualWeightingConstants(), training=True, log_period=1)
    with EventStorage() as storage:
        losses = DualWeightingFCOS.losses(
            model,
            points=points,
            strides=strides,
            cls_logits=logits[images],
            obj_logits=torch.tensor(data["obj_logits"]).double()[images],
            pred_boxes=boxes[images],
            gt_boxes=[gt_boxes[image == i] for i in images],
            gt_classes=[gt_classes[image == i] for i in images],
        )
    sum(losses.values()).backward()
    divisors = torch.tensor([storage.latest()[f"dw/{name}"][0] for name in ("num_gt", "neg_norm")])
    return torch.stack([losses[k].detach() for k in KEYS]), logits.grad, divisors


def run_rank(rank, folder):
    calls = []
    all_reduce = dist.all_reduce
    dist.all_reduce = lambda tensor, *a, **k: (calls.append(tensor.numel()), all_reduce(tensor))
    losses, grad, divisors = losses_of([rank])
    dist.all_reduce = all_reduce
    saved = {"losses": losses, "grad": grad, "divisors": divisors, "calls": calls}
    torch.save(saved, f"{folder}/{rank}.pt")


@pytest.mark.dist
def test_two_ranks_equal_one(tmp_path):
    run_ranks(lambda rank: run_rank(rank, tmp_path))
    ranks = [torch.load(tmp_path / f"{i}.pt", weights_only=True) for i in range(2)]
    losses, grad, _ = losses_of([0, 1])
    # DistributedDataParallel takes the mean of the ranks' gradients.
    torch.testing.assert_close(
        (ranks[0]["losses"] + ranks[1]["losses"]) / 2, losses, rtol=1e-12, atol=0
    )
    torch.testing.assert_close((ranks[0]["grad"] + ranks[1]["grad"]) / 2, grad)
    # And each rank's loss is its images' sum over the mean normaliser.
    data = golden("dw", "b_overlap")
    num_gt = max(data["num_gt"].mean(), 1)
    neg_norm = max(data["img_neg_avg"].mean(), 1)
    for i in range(2):
        expected = [
            data["img_loss_cls_pos"][i] / num_gt,
            data["img_loss_cls_neg"][i] / neg_norm,
            data["img_loss_loc"][i] / num_gt,
        ]
        assert ranks[i]["losses"].tolist() == pytest.approx(expected, rel=1e-9)
        assert ranks[i]["divisors"].tolist() == pytest.approx([num_gt, neg_norm])
        assert ranks[i]["calls"] == [2]  # one message with both normalisers
