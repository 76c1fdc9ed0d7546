"""No file runs code on loading. Each one here would leave a marker file if it did."""

import collections
import io
import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.structures import BoxMode

import d2ext
from d2ext import get_cfg
from d2ext._files import RunError
from d2ext.config.yaml_files import SafeLoader
from d2ext.data.checks.kinds import BadDataError
from d2ext.data.proposals import add_proposals
from d2ext.data.voc_to_coco import voc_to_coco
from d2ext.engine import Checkpointer
from d2ext.engine.batch_file import load_batch
from d2ext.engine.description import config_of, read_description
from d2ext.evaluation.pascal_voc_evaluation import _load_annotations
from d2ext.evaluation.predictions import Predictions
from d2ext.report import load_run, make_page
from d2ext.safe_load import UnsafeFileError, load_arrays, load_tensors

ROOT = Path(__file__).resolve().parents[2]


class Evil:
    """Pickles to a call that leaves a file."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return (exec, (f"open({self.marker!r}, 'w').close()",))


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))


@pytest.fixture
def marker(tmp_path):
    path = tmp_path / "marker"
    yield path
    assert not path.exists()


@pytest.fixture
def evil(tmp_path, marker):
    """Checkpoints with a call in them, in every format that Detectron2 reads."""
    content = {"model": {"weight": torch.ones(3)}, "model_state": {}, "extra": Evil(marker)}
    arrays = {"model": {"weight": np.ones(3)}, "__author__": "x", "extra": Evil(marker)}
    files = {name: tmp_path / f"evil{name}" for name in (".pth", ".old.pth", ".pyth", ".pkl")}
    for name in (".pth", ".pyth"):
        torch.save(content, files[name])
    torch.save(content, files[".old.pth"], _use_new_zipfile_serialization=False)
    files[".pkl"].write_bytes(pickle.dumps(arrays))
    return files


def test_the_examples_would_leave_a_marker(tmp_path):
    """A test of the test: read in full, they do."""
    marker = tmp_path / "left"
    torch.save({"extra": Evil(marker)}, tmp_path / "evil.pth")
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("name", [".pth", ".old.pth", ".pyth", ".pkl"])
def test_checkpoint(evil, name):
    model = Layer()
    with pytest.raises(UnsafeFileError, match="run any code.*--allow-pickle"):
        Checkpointer(model).load(str(evil[name]))
    assert not model.weight.any()


@pytest.mark.parametrize("name", [".pth", ".old.pth", ".pkl"])
def test_the_key_reads_it_and_warns(evil, name, marker, caplog):
    model = Layer()
    with caplog.at_level(logging.WARNING, "d2ext"):
        Checkpointer(model, allow_pickle=True).load(str(evil[name]))
    assert "may run any code" in caplog.text and str(evil[name]) in caplog.text
    assert model.weight.eq(1).all()
    assert marker.exists()
    marker.unlink()


def test_a_file_of_another_kind_is_not_called_a_pickle(tmp_path):
    (tmp_path / "text.pth").write_text("no checkpoint")
    for allowed in (False, True):
        with pytest.raises(ValueError, match="text.pth is not a file that torch.save wrote"):
            Checkpointer(Layer(), allow_pickle=allowed).load(str(tmp_path / "text.pth"))


def test_no_config_turns_the_key_on():
    assert not [key for key in get_cfg().dotted_keys() if "PICKLE" in key]


@pytest.mark.parametrize("name", [".pth", ".old.pth"])
@pytest.mark.parametrize("read", [read_description, load_batch, load_tensors])
def test_other_readers_of_checkpoints(evil, name, read):
    with pytest.raises(ValueError, match="run.* code"):
        read(str(evil[name]))


def test_predictor(evil):
    for weights in (evil[".pth"], evil[".pkl"]):
        with pytest.raises((ValueError, pickle.UnpicklingError)):
            d2ext.Predictor(None, weights)


def test_train_net(evil, marker, tmp_path, monkeypatch):
    """The way of the command line, evaluation and training."""
    from d2ext.data import tiny_dataset
    from d2ext.engine import argument_parser, main

    with tiny_dataset("coco", num_images=2, image_size=64, num_classes=2) as name:
        for words in (["--eval-only"], []):
            args = argument_parser().parse_args([
                "--config-file", str(ROOT / "configs/Demo/retinanet_shapes.yaml"), *words,
                "MODEL.WEIGHTS", str(evil[".pth"]), "MODEL.DEVICE", "cpu",
                "OUTPUT_DIR", str(tmp_path / "out"), "DATALOADER.NUM_WORKERS", "0",
                "DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", f"('{name}',)",
            ])  # fmt: skip
            with pytest.raises(RunError, match="could run any code"):
                main(args)


def test_zoo_files_need_no_key(tmp_path):
    """As Detectron2 wrote them, in old and new protocols, and as Python 2 did."""
    arrays = {"weight": np.arange(3, dtype=np.float32)}
    files = {f"d2.{k}": pickle.dumps({"model": arrays, "__author__": "d2"}, protocol=k)
             for k in range(6)}  # fmt: skip
    files["msra"] = pickle.dumps(collections.OrderedDict(arrays, weight_momentum=np.ones(3)), 2)
    files["caffe"] = pickle.dumps({"blobs": arrays, "cfg": "text", "n": np.float64(3)}, 2)
    for name, content in files.items():
        path = tmp_path / f"{name}.pkl"
        path.write_bytes(content.replace(b"numpy._core", b"numpy.core") if "d2.0" in name
                         else content)  # fmt: skip
        expected, found = Layer(), Layer()
        DetectionCheckpointer(expected).load(str(path))
        Checkpointer(found).load(str(path))
        assert torch.equal(found.weight, expected.weight) and found.weight[2] == 2, name


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy.testing._private.utils\nrunstring\n(S'1'\n}tR.",
        b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93.",
        b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.",
        b"(S'true'\nios\nsystem\n.",
    ],
)
def test_programs_that_name_anything_else(program):
    with pytest.raises(UnsafeFileError, match="Python object of"):
        load_arrays(io.BytesIO(program), "file")


@pytest.mark.parametrize("encoding", ["zip", "rot13", "unicode_escape_x"])
def test_codecs_that_unpack_are_not_there(encoding):
    program = f"c_codecs\nencode\n(Vtext\nV{encoding}\ntR.".encode()
    with pytest.raises(LookupError):
        load_arrays(io.BytesIO(program), "file")


def test_a_program_cannot_change_what_it_may_call():
    """BUILD sets attributes of whatever stands on the stack."""
    for module, name in (("numpy.core.numeric", "_frombuffer"), ("numpy", "ndarray"),
                         ("_codecs", "encode"), ("numpy.core.multiarray", "scalar")):  # fmt: skip
        for state in (b"}S'__doc__'\nS'x'\ns", b"N}S'__doc__'\nS'x'\ns\x86"):
            program = f"c{module}\n{name}\n".encode() + state + b"b."
            with pytest.raises((AttributeError, TypeError)):
                load_arrays(io.BytesIO(program), "file")


def proposals(**extra):
    boxes = np.array([[0, 0, 4, 4], [1, 1, 5, 5]], dtype=np.float32)
    content = {"ids": [7], "boxes": [boxes], "objectness_logits": [np.array([0.1, 0.9])]}
    return {**content, "bbox_mode": BoxMode.XYXY_ABS, **extra}


def test_proposal_files(tmp_path, marker):
    path, item = tmp_path / "proposals.pkl", {"image_id": 7}
    path.write_bytes(pickle.dumps(proposals()))
    add_proposals([item], str(path))
    assert item["proposal_boxes"].tolist() == [[1, 1, 5, 5], [0, 0, 4, 4]]
    assert item["proposal_bbox_mode"] is BoxMode.XYXY_ABS
    with pytest.raises(ValueError, match="proposals.pkl has no proposals for image 8"):
        add_proposals([{"image_id": 8}], str(path))
    path.write_bytes(pickle.dumps(proposals(extra=Evil(marker))))
    with pytest.raises(UnsafeFileError):
        add_proposals([item], str(path))


def test_loaders_read_proposals_without_running_them(tmp_path, marker):
    from d2ext.data import tiny_dataset
    from d2ext.engine import Trainer

    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(proposals(extra=Evil(marker))))
    with tiny_dataset("coco", num_images=2, image_size=64, num_classes=2) as name:
        cfg = get_cfg()
        cfg.MODEL.LOAD_PROPOSALS = True
        cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
        cfg.DATASETS.PROPOSAL_FILES_TRAIN = cfg.DATASETS.PROPOSAL_FILES_TEST = (str(path),)
        cfg.DATALOADER.NUM_WORKERS = 0
        for build in (
            lambda: Trainer.build_train_loader(cfg),
            lambda: Trainer.build_test_loader(cfg, name),
        ):
            with pytest.raises(UnsafeFileError):
                build()


@pytest.mark.parametrize(
    "text",
    [
        'OUTPUT_DIR: !!python/object/apply:os.system ["touch {marker}"]\n',
        "OUTPUT_DIR: !!python/object/new:os.system [touch {marker}]\n",
        "OUTPUT_DIR: !!python/name:os.system\n",
    ],
)
@pytest.mark.parametrize("levels", [0, 1, 2])
def test_config_and_its_bases(tmp_path, marker, text, levels):
    path = tmp_path / "c0.yaml"
    path.write_text(text.format(marker=marker))
    for k in range(levels):
        path = tmp_path / f"c{k + 1}.yaml"
        path.write_text(f"_BASE_: c{k}.yaml\n")
    with pytest.raises(ValueError, match="not plain YAML"):
        get_cfg().merge_from_file(str(path), allow_unsafe=True)


def test_python_configs_are_run_by_lazy_only(tmp_path, marker):
    path = tmp_path / "config.py"
    path.write_text(f"cfg = dict()\nopen({str(marker)!r}, 'w').close()\n")
    with pytest.raises(ValueError, match="config.py"):
        get_cfg().merge_from_file(str(path))
    with open(path) as stream, pytest.raises(Exception):  # noqa: B017  (yacs would run it)
        get_cfg().load_cfg(stream)


def test_config_inside_a_checkpoint(marker):
    import yaml

    with pytest.raises(yaml.YAMLError):
        config_of(f'OUTPUT_DIR: !!python/object/apply:os.system ["touch {marker}"]\n')


def test_values_on_the_command_line_are_literals(marker):
    cfg = get_cfg()
    code = f"__import__('os').system('touch {marker}')"
    cfg.merge_from_list(["OUTPUT_DIR", code])
    assert code == cfg.OUTPUT_DIR
    cfg.merge_from_list(["OUTPUT_DIR", "{[1]: 2}", "MODEL.WEIGHTS", "(" * 5000])
    assert cfg.OUTPUT_DIR == "{[1]: 2}"


def voc_folder(root, head="", name="dog"):
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / part).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "Main" / "val.txt").write_text("one\n")
    (root / "Annotations" / "one.xml").write_text(
        f"<?xml version='1.0'?>{head}<annotation><size><width>9</width><height>9</height></size>"
        f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin>"
        "<xmax>5</xmax><ymax>6</ymax></bndbox></object></annotation>"
    )


LAUGHS = "<!DOCTYPE a [<!ENTITY l0 'ha'>{}]>".format(
    "".join(f"<!ENTITY l{k} '{f'&l{k - 1};' * 10}'>" for k in range(1, 12))
)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (LAUGHS, "&l11;"),
        ("<!DOCTYPE a [<!ENTITY small 'dog'>]>", "&small;"),
        ("<!DOCTYPE a [<!ENTITY out SYSTEM '{secret}'>]>", "&out;"),
        ("<!DOCTYPE a SYSTEM '{secret}'>", "dog"),
        ("<!DOCTYPE a [<!ENTITY % all SYSTEM '{secret}'> %all;]>", "dog"),
    ],
    ids=["laughs", "entity", "file", "document type elsewhere", "parameter entity"],
)
def test_xml(tmp_path, head, name):
    secret = tmp_path / "secret"
    secret.write_text("<!ENTITY x 'cat'>")
    voc_folder(tmp_path, head.format(secret=secret.as_uri()), name)
    with pytest.raises(BadDataError, match=r"one\.xml.* a document type"):
        voc_to_coco(tmp_path, "val")
    with pytest.raises(UnsafeFileError, match=r"one.xml has a document type"):
        _load_annotations(str(tmp_path / "Annotations"), [(0, "one")])


def test_xml_without_a_document_type_is_read(tmp_path):
    voc_folder(tmp_path, name="d&#246;g &amp; &lt;b&gt;<!-- comment -->")
    assert voc_to_coco(tmp_path, "val")["categories"][0]["name"] == "dög & <b>"
    (tmp_path / "Annotations" / "one.xml").write_text("<annotation>")
    with pytest.raises(BadDataError, match="one.xml"):
        voc_to_coco(tmp_path, "val")


def test_voc_in_detectron2s_own_reader(tmp_path):
    """Where the training data of VOC come from; it leaves this to Python's parser."""
    from detectron2.data.datasets.pascal_voc import load_voc_instances

    secret = tmp_path / "secret"
    secret.write_text("dog")
    outside = f"<!DOCTYPE a [<!ENTITY out SYSTEM '{secret.as_uri()}'>]>"
    for head, name in ((LAUGHS, "&l11;"), (outside, "&out;")):
        voc_folder(tmp_path, head, name)
        with pytest.raises(Exception):  # noqa: B017  (amplification, undefined entity, no class)
            load_voc_instances(str(tmp_path), "val", ["dog"])


def test_results_files(tmp_path, marker):
    np.savez(tmp_path / "evil.npz", image_ids=np.array([Evil(marker)], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        Predictions.load(str(tmp_path / "evil.npz"))


def test_data_sets_are_json(tmp_path, marker):
    from d2ext.evaluation.sources import annotation_source

    path = tmp_path / "evil.json"
    path.write_bytes(pickle.dumps(Evil(marker)))
    with pytest.raises(ValueError):
        annotation_source(str(path))


def test_run_folder(tmp_path, marker, evil, caplog):
    """What a report reads: metrics, config, checkpoint; a tag may not lead elsewhere."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.json").write_text(json.dumps({"iteration": 0, "total_loss": 1.0}) + "\n")
    (run / "config.yaml").write_text(f"A: !!python/object/apply:os.system ['touch {marker}']\n")
    torch.save({"model": {"prior": torch.ones(1)}, "x": Evil(marker)}, run / "model_final.pth")
    loaded = load_run(run)
    assert loaded.config == {} and loaded.state() == {}
    torch.save({"model": {"prior": torch.ones(1)}}, tmp_path / "outside.pth")
    (run / "last_checkpoint").write_text("../outside.pth")
    assert load_run(run).state() == {}


def test_report_escapes_every_name(tmp_path):
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    runs = []
    for k in range(2):
        run = tmp_path / f"run{k}"
        (run / "pictures").mkdir(parents=True)
        line = {"iteration": 0, "total_loss": 1.0, f"loss_{evil}": 1.0, f"bbox/AP-{evil}": 3.0,
                f"bbox/{evil}": 2.0, "bbox/AP": 1.0}  # fmt: skip
        (run / "metrics.json").write_text(json.dumps(line) + "\n")
        values = {"MODEL": {"WEIGHTS": f"{evil}{k}", evil: k}, "DATASETS": {"TRAIN": [evil]}}
        (run / "config.yaml").write_text(json.dumps(values))
        runs.append(load_run(run, name=f"{evil}{k}"))
    for chosen in (runs, runs[:1]):
        page = make_page(chosen, title=evil)
        assert "alert(1)" in page
        assert page.count("<script") == 3  # the data, uPlot and the page's own
        for tag in ("<script>alert", "<img src=x", "\"'>"):
            assert tag not in page


def test_no_source_file_reads_in_another_way():
    """A new call of a reader that runs code is noticed here."""
    unsafe = (
        "pickle.load", "yaml.load(", "yaml.unsafe_load(", "yaml.full_load(", "allow_pickle=True)",
        "weights_only=False", "ElementTree.parse(", "ET.parse(", " eval(", "joblib", "marshal.",
        "shelve.", "DetectionCheckpointer(model",
    )  # fmt: skip
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for folder in ("d2ext", "tools", "docs/examples")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for word in unsafe
        if word in path.read_text() and path.name not in ("safe_load.py", "yaml_files.py")
    ]
    assert found == []
    # The one reader of YAML is the safe one, with one tag more: tests/config/test_arithmetic.py.
    assert issubclass(SafeLoader, yaml.SafeLoader)
    tags = set(SafeLoader.yaml_constructors) - set(yaml.SafeLoader.yaml_constructors)
    assert tags == {"tag:yaml.org,2002:python/object/apply:eval"}
    assert SafeLoader.yaml_multi_constructors == yaml.SafeLoader.yaml_multi_constructors
