"""The rules of --data without --config-file: the same figures give the same, written recipe."""

import own_data_kit as kit
import pytest
import yaml

from d2ext._files import RunError
from d2ext.config import get_cfg, validate
from d2ext.engine import own_data, recipe
from d2ext.engine.recipe import Facts, Machine, choose_model, choose_schedule, facts_of, smaller

BCCD = Facts(205, 87, 3, 640, 480, small=44, middle=96, imbalance=12)
BOARDS = Facts(1000, 500, 6, 640, 640, small=28, middle=45, imbalance=1.5)
STEEL = Facts(1400, 370, 6, 200, 200, small=40, middle=80, imbalance=2)
AERIAL = Facts(300, 60, 4, 4000, 3000, small=20, middle=40, imbalance=5)
TAIL = Facts(1500, 500, 60, 256, 256, small=30, middle=60, imbalance=400)
CPU = Machine("cpu", 2, pretrained=True)
GPU = Machine("cuda", 16, 139.0, pretrained=True)


def sizes(chosen):
    return chosen.keys["INPUT.MAX_SIZE_TEST"], chosen.keys["INPUT.MIN_SIZE_TEST"]


def test_small_objects_decide_the_image_size():
    assert sizes(choose_model(BCCD, CPU)) == (352, 256)
    assert sizes(choose_model(BOARDS, CPU)) == (512, 512)
    assert sizes(choose_model(STEEL, CPU)) == (208, 208)  # of 200: as they are
    assert sizes(choose_model(AERIAL, CPU)) == (512, 384)
    assert sizes(choose_model(AERIAL, GPU)) == (1040, 768)


def test_the_method():
    assert choose_model(BCCD, CPU).files == ("Small/dw_lite0.yaml",)
    scratch = choose_model(BCCD, CPU._replace(pretrained=False))
    assert scratch.files == ("Demo/dw_shapes.yaml",)
    assert any("pretrained" in why for _, why in scratch.reasons)
    tail = choose_model(TAIL, CPU)
    assert tail.files == ("Small/atss_lite0.yaml",)
    assert tail.keys["MODEL.DENSE.CLS_LOSS"] == "efl"
    assert choose_model(TAIL, CPU, "fcos").files == ("Small/fcos_lite0.yaml",)


def test_the_batch():
    assert choose_model(BCCD, CPU).keys["SOLVER.IMS_PER_BATCH"] == 8
    assert choose_model(BCCD, GPU).keys["SOLVER.IMS_PER_BATCH"] == 16
    assert choose_model(BCCD._replace(images=5), CPU).keys["SOLVER.IMS_PER_BATCH"] == 4
    assert choose_model(AERIAL, GPU._replace(memory=4)).keys["SOLVER.IMS_PER_BATCH"] == 4


def test_too_little_time_makes_it_smaller():
    chosen = choose_model(BCCD, CPU)
    assert smaller(chosen, BCCD, seconds=1.2, minutes=10) is None
    halved = smaller(chosen, BCCD, seconds=2.0, minutes=10)
    assert halved.keys["SOLVER.IMS_PER_BATCH"] == 4 and sizes(halved) == sizes(chosen)
    tiny = smaller(chosen, BCCD, seconds=4.0, minutes=10)
    assert tiny.keys["SOLVER.IMS_PER_BATCH"] == 4 and sizes(tiny) == (272, 208)
    # Small objects keep 12 px, whatever the time.
    least = smaller(choose_model(BOARDS, CPU), BOARDS, seconds=60.0, minutes=10)
    assert least.keys["INPUT.MIN_SIZE_TEST"] * BOARDS.small / BOARDS.height >= 11.5
    assert len([what for what, _ in least.reasons if what.startswith("images of")]) == 1


def test_a_short_time_is_spent_on_the_slim_backbone():
    assert recipe.from_scratch(BCCD, CPU, "", seconds=1.2, minutes=10) is None
    assert recipe.from_scratch(BCCD, CPU._replace(pretrained=False), "", 5.0, 10) is None
    slim = recipe.from_scratch(BCCD, CPU, "", seconds=1.5, minutes=10)
    assert slim.files == ("Demo/dw_shapes.yaml",) and sizes(slim) == (352, 256)
    assert any("could take 340 steps only" in why for _, why in slim.reasons)
    assert "MODEL.BACKBONE.FREEZE_AT" not in slim.keys


def test_the_schedule_fills_the_time():
    chosen = choose_schedule(choose_model(BCCD, CPU), BCCD, seconds=1.0, minutes=10)
    steps = chosen.keys["SOLVER.MAX_ITER"]
    evaluation = 87 / 8 / 3
    assert 0.9 * (510 - evaluation) < steps * 1.0 <= 510 - evaluation
    assert steps % 10 == 0 and chosen.keys["SOLVER.WARMUP_ITERS"] == steps // 10
    assert chosen.keys["SOLVER.BASE_LR"] == 0.001
    scratch = choose_model(BCCD, CPU._replace(pretrained=False))
    assert choose_schedule(scratch, BCCD, 1.0, 10).keys["SOLVER.BASE_LR"] == 0.002
    # A little more or less time changes nothing.
    assert choose_schedule(choose_model(BCCD, CPU), BCCD, 1.005, 10) == chosen._replace(
        reasons=choose_schedule(choose_model(BCCD, CPU), BCCD, 1.005, 10).reasons
    )


@pytest.mark.parametrize("method", recipe.METHODS)
@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("facts", [BOARDS, TAIL])
def test_every_recipe_is_a_valid_config(method, pretrained, facts):
    machine = CPU._replace(pretrained=pretrained)
    chosen = choose_schedule(choose_model(facts, machine, method), facts, 1.0, 10)
    cfg = own_data.recipe_config(chosen, [])
    validate(cfg)
    assert chosen == choose_schedule(choose_model(facts, machine, method), facts, 1.0, 10)


def test_the_written_recipe_gives_the_same_config(tmp_path, monkeypatch):
    """What is written needs no other file, and overrides are in it."""
    monkeypatch.setenv("D2EXT_DATA", str(tmp_path / "cache"))
    kit.write_coco(tmp_path / "pets")
    args = _args(tmp_path, "SOLVER.WEIGHT_DECAY", "0.01")
    own_data.prepare_own_data(args)
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    assert (cfg.SOLVER.WEIGHT_DECAY, cfg.DATASETS.TRAIN) == (0.01, ("pets_train",))
    assert cfg.MODEL.DW.NUM_CLASSES == 3 and str(tmp_path / "pets") == cfg.DATASETS.DATA
    text = (tmp_path / "out" / own_data.RECIPE).read_text()
    assert text.startswith("# Chosen by d2ext train --data. The reasons:\n#   method dw: ")
    written = yaml.safe_load(text)
    assert "_BASE_" not in written and written["VERSION"] == cfg.VERSION
    again = _args(tmp_path, "SOLVER.WEIGHT_DECAY", "0.01")
    again.resume = True
    own_data.prepare_own_data(again)
    assert again.config_file == args.config_file


def _args(tmp_path, *opts, words=()):
    from d2ext.engine import argument_parser

    asked = ["--data", str(tmp_path / "pets"), "--minutes", "0.2", "--method", "dw", *words]
    out = ["OUTPUT_DIR", str(tmp_path / "out"), "MODEL.DEVICE", "cpu"]
    return argument_parser().parse_args([*asked, *out, *opts])


def test_facts_of_a_split():
    content = kit.coco(kit.OBJECTS)
    facts = facts_of(content, content)
    assert (facts.images, facts.val_images, facts.classes) == (10, 10, 3)
    assert (facts.width, facts.height) == kit.SIZE
    assert facts.middle == pytest.approx((32 * 22) ** 0.5) and facts.imbalance == 1.0


@pytest.mark.parametrize(
    "words, said",
    [
        (["--minutes", "-3"], "it must be a number above 0"),
        (["--minutes", "nan"], "it must be a number above 0"),
        (["--method", "yolo"], "--method yolo is not known; choose dw, fcos"),
        (["--config-file", "Demo/fcos_shapes"], "--config-file is there"),
        (["--resume"], "recipe.yaml is not there to go on from"),
    ],
)
def test_what_cannot_be_asked_for(tmp_path, monkeypatch, words, said):
    monkeypatch.setenv("D2EXT_DATA", str(tmp_path / "cache"))
    kit.write_coco(tmp_path / "pets")
    args = _args(tmp_path, words=words)
    with pytest.raises(RunError, match=said):
        own_data.prepare_own_data(args)
