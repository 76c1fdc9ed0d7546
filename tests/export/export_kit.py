"""Small detectors whose outputs are spread, as a trained one's are."""

import onnx
import torch
from model_kit import SHALLOW, build, small_cfg

from d2ext.model_zoo import get_config_file

# A map of one cell has group norms over two numbers, in which rounding decides; so above 128.
SIZES = ((160, 224), (193, 151), (135, 258))
DENSE = {
    "ExtRetinaNet": "Base-RetinaNet",
    "ExtFCOS": "Base-FCOS",
    "ATSS": "Base-ATSS",
    "ATSS, decoupled": "YOLOX/yolox_ip_s_300e_efl",
    "YOLOX": "YOLOX/yolox_s_300e",
    "DualWeightingFCOS": "DualWeighting/dw_R_50_FPN_1x_refine",
}
# What docs/operators.md of onnx/onnx-tensorrt lists as supported for TensorRT 8.5, of those in use.
TENSORRT = """
    Add And Cast Ceil Clip Concat Constant ConstantOfShape Conv ConvTranspose Div Equal Exp
    Expand Flatten Floor Gather GatherElements GatherND Gemm Greater GreaterOrEqual
    GridSample Identity InstanceNormalization Less LessOrEqual Log MatMul Max MaxPool Min
    Mul Neg NonMaxSuppression NonZero Not Or Pad Pow Range Reciprocal ReduceMax ReduceMean
    ReduceMin ReduceProd ReduceSum Relu Reshape Resize RoiAlign Round ScatterElements
    ScatterND Shape Sigmoid Slice Softmax Split Sqrt Squeeze Sub Tile TopK Transpose
    Unsqueeze Where
""".split()  # noqa: SIM905  (a list would be a line for each)


def unknown_to_tensorrt(path):
    """Operators of an ONNX file that TensorRT 8.5 lacks."""
    return {node.op_type for node in onnx.load(path).graph.node} - set(TENSORRT)


def spread_detector(name, overrides=()):
    """A dense detector in eval mode; class logits and box outputs are far from constant."""
    # More channels than groups: the group norm of a 1x1 map of one channel a group is undefined.
    words = ["MODEL.FPN.OUT_CHANNELS", 64, *SHALLOW, *overrides]
    model = build(small_cfg(get_config_file(DENSE[name]), words), seed=2).eval()
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(3, 160, 160, generator=generator) * 255
    head = model.head
    layers = dict.fromkeys(_levels(head.cls_score), 1.5)
    layers.update(dict.fromkeys(_levels(head.bbox_pred), 0.4))
    if getattr(head, "reg_offset", None) is not None:
        layers[head.reg_offset] = 0.2
    with torch.no_grad():
        for layer in layers:
            layer.weight.normal_(std=0.01, generator=generator)
        for layer, wanted in layers.items():
            # Copies: some detectors turn logits into scores in place. The scale chosen for scores
            # gave FCOS logits of several hundred, whose last digits are 1e-4 of a score.
            seen = []
            hook = layer.register_forward_hook(
                lambda m, i, o, seen=seen: seen.append(o.flatten().clone())
            )
            model([{"image": image}])
            hook.remove()
            layer.weight.mul_(wanted / torch.cat(seen).std())
        for layer in _levels(head.cls_score):
            layer.bias.fill_(-2.0)
        if name in ("ATSS, decoupled", "YOLOX"):  # they start where no score passes a threshold
            for layer in head.quality:
                layer.bias.fill_(0.0)
    return model


def _levels(layer):
    """The layers of a head that has one for each level, or the one that it has."""
    return list(layer) if isinstance(layer, torch.nn.ModuleList) else [layer]
