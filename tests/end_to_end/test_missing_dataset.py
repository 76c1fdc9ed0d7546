"""A data set that is not there is answered with one sentence, before anything is built."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_missing_coco(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "train_net.py"), "--config-file",
         str(ROOT / "configs" / "COCO" / "fcos_R_50_FPN_1x.yaml"), "OUTPUT_DIR", str(tmp_path)],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "coco_2017_train" in last and "instances_train2017.json" in last
    assert "d2ext_shapes_train" in last
    assert not list(tmp_path.glob("*.pth"))
