# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From a folder of photographs to a detector in ONNX
#
# This notebook reads labelled photographs, trains a detector for the minutes you give it, shows
# what it finds and where it fails, and writes a file that runs without PyTorch. It runs on a
# laptop without a GPU and on a free cloud GPU (there: *Runtime > Change runtime type > GPU*
# first).
#
# As it stands it draws a small set of shapes and needs no data of yours. `make notebook` makes the
# `.ipynb` of it.

# %% [markdown]
# ## 1. Install
#
# Nothing happens where d2ext is installed. Elsewhere `SOURCE` says where it comes from: a wheel
# that you uploaded beside the notebook, a checkout, or `git+https://` and the address of the
# repository.

# %%
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

SOURCE = os.environ.get("D2EXT_SOURCE") or next(iter(Path().glob("d2ext-*.whl")), "")


def python(*words):
    subprocess.run([sys.executable, "-m", *words], check=True)


if importlib.util.find_spec("d2ext") is None:
    if not SOURCE:
        raise RuntimeError("d2ext is not installed; set SOURCE to where it is.")
    place = str(SOURCE) if "://" in str(SOURCE) else Path(SOURCE).resolve().as_uri()
    python("pip", "install", "--quiet", "torch", "torchvision")
    python("pip", "install", "--quiet", f"d2ext[export,pretrained] @ {place}")
    python("d2ext.install_detectron2")

from d2ext.cli import main


def run(*words):
    """A command of d2ext, as on the command line; a failure stops the notebook."""
    if code := main([str(word) for word in words]):
        raise RuntimeError(f"d2ext {words[0]} ended with {code}; see above.")


# %% [markdown]
# ## 2. Choose
#
# `PHOTOS` is a folder in any form that `docs/data_formats.md` lists: COCO, YOLO, Pascal VOC,
# LabelMe, CSV. For example:
#
#     !git clone https://github.com/Shenggan/BCCD_Dataset
#     PHOTOS = "BCCD_Dataset/BCCD"

# %% tags=["parameters"]
PHOTOS = ""  # empty: shapes are drawn
MINUTES = 5  # for the training and its evaluations
OPTIONS = []  # of 'd2ext train', such as ["--method", "fcos", "SOLVER.BASE_LR", "0.0005"]

# %%
OUTPUT = Path("output/notebook")
WEIGHTS = OUTPUT / "model_final.pth"
if not PHOTOS:
    PHOTOS = "shapes"
    if not Path(PHOTOS).exists():
        run("data", "shapes", "--classes", 6, "--output", PHOTOS)

# %% [markdown]
# ## 3. Look at the data
#
# What is wrong with the labels, before a training finds it. Mistakes in a handful of boxes are
# left out and counted.

# %%
run("data", "check", PHOTOS)

# %% [markdown]
# ## 4. Train
#
# Detector, image size, batch, rate and schedule are chosen for these data, this machine and the
# time; the first lines say why. `recipe.yaml` keeps the choice.

# %%
run("train", "--data", PHOTOS, "--minutes", MINUTES, *OPTIONS, "OUTPUT_DIR", OUTPUT)

# %% [markdown]
# What the model was shown: a batch with its augmentation and boxes.

# %%
from IPython.display import FileLink, Image, display

run("show", "batch", OUTPUT / "recipe.yaml", "--output", OUTPUT / "batch")
for picture in sorted((OUTPUT / "batch").glob("*.png")):
    display(Image(picture, width=800))

# %% [markdown]
# ## 5. How good is it?
#
# On the test split, where there is one, else on the validation split: AP of each class, speed, and
# the score from which on a class is worth showing. The report is one page without a network; open
# it beside the notebook.

# %%
run("val", "--weights", WEIGHTS, "--data", PHOTOS)
run("report", OUTPUT, "--output", OUTPUT / "report")
display(FileLink(OUTPUT / "report" / "report.html"))

# %% [markdown]
# ## 6. What it finds
#
# Images that it was not trained on, with the scores chosen above.

# %%
from detectron2.data import DatasetCatalog

from d2ext.data.own import register_own_data

data = register_own_data(PHOTOS)
IMAGES = [image["file_name"] for image in DatasetCatalog.get(data.names[data.evaluated])[:4]]
FOUND = OUTPUT / "found"
run("predict", "--weights", WEIGHTS, "--threshold", "auto", "--output", FOUND, *IMAGES)
for picture in sorted(FOUND.glob("*.[jp][pn]g")):
    display(Image(picture, width=400))

# %% [markdown]
# ## 7. Take it away
#
# One ONNX file with resizing and NMS inside. It takes RGB bytes of any size, and needs onnxruntime
# alone.

# %%
run("export", "--weights", WEIGHTS, "--pixels", "--output", OUTPUT / "detector.onnx")

# %%
import json

import numpy as np
import onnxruntime
import PIL.Image

session = onnxruntime.InferenceSession(str(OUTPUT / "detector.onnx"))
about = json.loads(session.get_modelmeta().custom_metadata_map["d2ext"])
pixels = np.asarray(PIL.Image.open(IMAGES[0]).convert("RGB"))[None]
boxes, scores, classes, count = session.run(None, {"pixels": pixels})
for box, score, k in list(zip(boxes[0, : count[0]], scores[0], classes[0]))[:5]:
    print(f"{about['class_names'][k]:12} {score:.3f}", box.round(1))
