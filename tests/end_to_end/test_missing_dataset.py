"""A data set that is not there is answered with one sentence, before anything is built."""

from pathlib import Path

from process_kit import call_python

ROOT = Path(__file__).resolve().parents[2]


def test_missing_coco(tmp_path):
    config = ROOT / "configs" / "COCO" / "fcos_R_50_FPN_1x.yaml"
    words = ("--config-file", config, "OUTPUT_DIR", tmp_path)
    done = call_python(ROOT / "train_net.py", *words, cwd=tmp_path)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "coco_2017_train" in last and "instances_train2017.json" in last
    assert "d2ext_shapes_train" in last
    assert not list(tmp_path.glob("*.pth"))
