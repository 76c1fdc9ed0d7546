"""Run an exported detector with nothing but onnxruntime, NumPy and Pillow.

Made by: d2ext export --weights output/model_final.pth --pixels --output detector.onnx
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["d2ext"])
thresholds = about.get("thresholds") or [0.3] * len(about["class_names"])
for name in sys.argv[2:]:
    pixels = np.asarray(Image.open(name).convert("RGB"))[None]
    boxes, scores, classes, count = session.run(None, {"pixels": pixels})[:4]
    for box, score, k in zip(boxes[0, : count[0]], scores[0], classes[0]):
        if score >= thresholds[k]:
            print(name, about["class_names"][k], f"{score:.3f}", *box.round(1))
