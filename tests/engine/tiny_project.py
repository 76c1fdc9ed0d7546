"""A user's module for train_net.py --import: a toy detector, a data set, a few hooks.

The detector has everything that a resume can lose: batch norm, dropout, a buffer of statistics, a
Python float that changes in each step. It learns in seconds and knows nothing about detection.

Shapes: N images, C classes, h x w cells of stride 16.
"""

import contextlib
import json
import os
import shutil
import signal
import time

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, BoxMode, ImageList, Instances
from detectron2.utils import comm
from torch import nn
from torch.nn import functional as F

from d2ext.engine import HOOK_REGISTRY, HookBase

STRIDE = 16


@META_ARCH_REGISTRY.register()
class ToyDetector(nn.Module):
    def __init__(self, cfg, num_classes=3):
        super().__init__()
        self.num_classes = num_classes
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 7, stride=4, padding=3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Conv2d(8, 16, 5, stride=4, padding=2),
            nn.ReLU(),
        )
        self.cls = nn.Conv2d(16, num_classes, 1)
        self.box = nn.Conv2d(16, 4, 1)
        self.register_buffer("seen", torch.zeros(num_classes))
        self.normalizer = 10.0
        self.to(cfg.MODEL.DEVICE if cfg is not None else "cpu")

    def forward(self, batch):
        device = self.seen.device
        images = [(x["image"].to(device).float() - 128) / 64 for x in batch]
        images = ImageList.from_tensors(images, STRIDE)
        features = self.body(images.tensor)
        logits, boxes = self.cls(features), self.box(features)
        if self.training:
            return self.losses(logits, boxes, [x["instances"].to(device) for x in batch])
        return self.detections(logits, boxes, batch)

    def losses(self, logits, boxes, targets):
        num_images, _, height, width = logits.shape
        wanted = torch.zeros_like(logits, dtype=torch.float32)
        distance = boxes.sum() * 0.0
        count = 0
        for n, target in enumerate(targets):
            centers = target.gt_boxes.get_centers() / STRIDE
            columns = centers[:, 0].long().clamp(0, width - 1)
            rows = centers[:, 1].long().clamp(0, height - 1)
            wanted[n, target.gt_classes, rows, columns] = 1.0
            size = (target.gt_boxes.tensor[:, 2:] - target.gt_boxes.tensor[:, :2]) / 32
            found = boxes[n][:, rows, columns].t().float()
            distance = distance + F.l1_loss(found[:, :2], size, reduction="sum")
            count += len(target)
        with torch.no_grad():
            self.seen += wanted.sum((0, 2, 3))
        self.normalizer = 0.9 * self.normalizer + 0.1 * max(count, 1)
        loss_cls = F.binary_cross_entropy_with_logits(logits.float(), wanted, reduction="sum")
        return {
            "loss_cls": loss_cls / self.normalizer,
            "loss_box_reg": distance / self.normalizer,
        }

    def detections(self, logits, boxes, batch):
        results = []
        for n, sample in enumerate(batch):
            scores, index = logits[n].float().sigmoid().flatten().topk(10)
            height, width = logits.shape[2:]
            labels = index // (height * width)
            cell = index % (height * width)
            x, y = (cell % width + 0.5) * STRIDE, (cell // width + 0.5) * STRIDE
            size = boxes[n].flatten(1)[:2, cell].float().clamp(0.1, 4) * 16
            corners = torch.stack([x - size[0], y - size[1], x + size[0], y + size[1]], 1)
            scale_y = sample["height"] / sample["image"].shape[1]
            found = Instances((sample["height"], sample["width"]))
            found.pred_boxes = Boxes(corners * scale_y)
            found.scores, found.pred_classes = scores, labels
            results.append({"instances": found})
        return results


class _Saboteur(HookBase):
    """Does something to the run at one step, named in an environment variable."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_losses(self, loss_dict):
        if self.trainer.iter == self.step:
            return self.action(self.trainer, loss_dict)


def _kill(trainer, loss_dict):
    # In the last micro-step: with accumulation, some gradients of this step exist already.
    if trainer.micro_step == trainer.accumulate - 1:
        os.kill(os.getpid(), signal.SIGKILL)


def _terminate(trainer, loss_dict):
    os.kill(os.getpid(), signal.SIGTERM)


def _kill_in_evaluation(trainer, loss_dict):
    """While the evaluation that ends this step is under way."""
    evaluate = next(h for h in trainer._hooks if type(h).__name__ == "Evaluate")
    evaluate._function = lambda: os.kill(os.getpid(), signal.SIGKILL)


def _hang(trainer, loss_dict):
    print("hanging", flush=True)
    while True:
        time.sleep(0.05)


def _nan(trainer, loss_dict):
    return {**loss_dict, "loss_cls": loss_dict["loss_cls"] * float("nan")}


ACTIONS = {
    "kill": _kill,
    "kill-in-evaluation": _kill_in_evaluation,
    "terminate": _terminate,
    "nan": _nan,
    "hang": _hang,
}


@HOOK_REGISTRY.register()
def Sabotage(cfg):
    """TINY_SABOTAGE="kill 7" sends SIGKILL in step 7; "kill 7 1" does it on rank 1 only."""
    words = os.environ.get("TINY_SABOTAGE", "").split()
    if not words or (len(words) > 2 and int(words[2]) != comm.get_rank()):
        return None
    return _Saboteur(int(words[1]), ACTIONS[words[0]])


def register_json(root):
    """Register the data sets described in ``root``/*.json, in Detectron2's standard format."""
    for name in ("tiny_train", "tiny_val"):
        path = os.path.join(root, f"{name}.json")
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        DatasetCatalog.register(name, lambda path=path: _load(path))
        MetadataCatalog.get(name).set(thing_classes=["a", "b", "c"])


@contextlib.contextmanager
def draw_tiny(root):
    """Draw Shapes images into ``root`` and register them as tiny_train and tiny_val."""
    from d2ext.data import tiny_dataset

    with tiny_dataset("coco", num_images=7, image_size=96, num_classes=3) as name:
        dicts = DatasetCatalog.get(name)
        for element in dicts:
            path = os.path.join(root, os.path.basename(element["file_name"]))
            shutil.copy(element["file_name"], path)
            element["file_name"] = path
            for annotation in element["annotations"]:
                annotation["bbox_mode"] = int(annotation["bbox_mode"])
    for name, part in (("tiny_train", dicts), ("tiny_val", dicts[:3])):
        with open(os.path.join(root, f"{name}.json"), "w") as stream:
            json.dump(part, stream)
    register_json(str(root))
    yield root


def _load(path):
    with open(path) as stream:
        dicts = json.load(stream)
    for element in dicts:
        for annotation in element["annotations"]:
            annotation["bbox_mode"] = BoxMode(annotation["bbox_mode"])
    return dicts


if "TINY_ROOT" in os.environ:
    register_json(os.environ["TINY_ROOT"])
