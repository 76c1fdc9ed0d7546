"""A tiny data set that all tests of the engine, and the processes they start, share."""

import json
import os
import shutil

import pytest


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of the data sets tiny_train and tiny_val, which are registered here as well."""
    from detectron2.data import DatasetCatalog
    from tiny_project import register_json

    from d2ext.data import tiny_dataset

    root = tmp_path_factory.mktemp("tiny")
    with tiny_dataset("coco", num_images=7, image_size=96, num_classes=3) as name:
        dicts = DatasetCatalog.get(name)
        for k, element in enumerate(dicts):
            path = root / os.path.basename(element["file_name"])
            shutil.copy(element["file_name"], path)
            element["file_name"] = str(path)
            for annotation in element["annotations"]:
                annotation["bbox_mode"] = int(annotation["bbox_mode"])
            element["image_id"] = k + 1
    for name, part in (("tiny_train", dicts), ("tiny_val", dicts[:3])):
        (root / f"{name}.json").write_text(json.dumps(part))
    register_json(str(root))
    return root
