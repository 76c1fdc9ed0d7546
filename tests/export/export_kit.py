"""Small detectors whose outputs are spread, as a trained one's are."""

import torch
from model_kit import WIDE, build, small_cfg

from d2ext.model_zoo import get_config_file

DENSE = {
    "ExtRetinaNet": "Base-RetinaNet",
    "ExtFCOS": "Base-FCOS",
    "ATSS": "Base-ATSS",
    "DualWeightingFCOS": "DualWeighting/dw_R_50_FPN_1x_refine",
}


def spread_detector(name, overrides=()):
    """A dense detector in eval mode; class logits and box outputs are far from constant."""
    # More channels than groups: the group norm of a 1x1 map of one channel a group is undefined.
    words = ["MODEL.FPN.OUT_CHANNELS", 64, *WIDE, *overrides]
    model = build(small_cfg(get_config_file(DENSE[name]), words), seed=2).eval()
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(3, 160, 160, generator=generator) * 255
    head = model.head
    layers = {head.cls_score: 1.5, head.bbox_pred: 0.4}
    if getattr(head, "reg_offset", None) is not None:
        layers[head.reg_offset] = 0.2
    with torch.no_grad():
        for layer in layers:
            layer.weight.normal_(std=0.01, generator=generator)
        for layer, wanted in layers.items():
            seen = []
            hook = layer.register_forward_hook(lambda m, i, o, seen=seen: seen.append(o.flatten()))
            model([{"image": image}])
            hook.remove()
            layer.weight.mul_(wanted / torch.cat(seen).std())
        head.cls_score.bias.fill_(-2.0)
    return model
