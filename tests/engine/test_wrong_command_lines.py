"""What is wrong on a command line ends a training with one sentence before it starts."""

from urllib.error import URLError

import pytest
from detectron2.utils.file_io import PathManager

from d2ext.data import tiny_dataset
from d2ext.engine import argument_parser, run
from d2ext.engine.errors import RunError, mistakes_in_sentences


@pytest.fixture(scope="module")
def tiny():
    with tiny_dataset("coco", num_images=2, image_size=64, num_classes=1) as name:
        yield name


@pytest.fixture
def files(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\x89PNG\x00\xff")
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "code.py").write_text("x = 1\n")
    (tmp_path / "text.pth").write_text("no checkpoint")
    return tmp_path


DEMO = ["--config-file", "Demo/fcos_shapes", "DATASETS.TEST", "()", "DATASETS.TRAIN", "('{tiny}',)",
        "DATALOADER.NUM_WORKERS", "0", "MODEL.FCOS.NUM_CLASSES", "1"]  # fmt: skip
WRONG = [
    (["--config-file", "{tmp}"], "is a folder, not a config; name a YAML file in it"),
    (["--config-file", "nowhere"], "d2ext has no config 'nowhere'"),
    (["--config-file", "{tmp}/code.py"], "holds no mapping of keys"),
    (["--config-file", "{tmp}/binary.yaml"], "is not text, so it is not YAML"),
    (["--config-file", "{tmp}/list.yaml"], "holds no mapping of keys"),
    (["--config-file", "{tmp}/broken.yaml"], "is not plain YAML"),
    ([*DEMO, "SOLVER.BASE_LR"], "SOLVER.BASE_LR has no value"),
    ([*DEMO, "SOLVER.BASELR", "1"], "no config key SOLVER.BASELR. Did you mean SOLVER.BASE_LR"),
    ([*DEMO, "SOLVER.BASE_LR=fast"], "SOLVER.BASE_LR is 'fast'; it must be a number"),
    ([*DEMO, "DATASETS.TRAIN", "('nope',)"], "The data set 'nope' is not registered"),
    ([*DEMO, "SOLVER.GAMMA", "0.1", "--resume"], "--resume is a flag, and flags stand before"),
    (["--import", "no_such_module", *DEMO], "--import no_such_module fails"),
    (["--init-from", "{tmp}/none.pth", *DEMO], "none.pth does not exist"),
    ([*DEMO, "MODEL.WEIGHTS", "{tmp}"], "is a folder, not a file"),
    ([*DEMO, "MODEL.WEIGHTS", "{tmp}/text.pth"], "is not a file that torch.save wrote"),
    ([*DEMO, "MODEL.META_ARCHITECTURE", "Nope"], "No object named 'Nope'"),
    ([*DEMO, "MODEL.FPN.OUT_CHANNELS", "48"], "must be divisible by num_groups"),
    ([*DEMO, "MODEL.DEVICE", "gpu"], "MODEL.DEVICE is 'gpu'; it must be a device"),
    (["--eval-only", *DEMO], "There are no weights to evaluate"),
    (["--lazy"], "--lazy takes one --config-file"),
    (["--lazy", *DEMO[:2]], "is not a Python file as a LazyConfig is"),
    (["--lazy", "--config-file", "lazy/fcos.py", "train.max_iter"], "train.max_iter is not one"),
    (["--lazy", "--config-file", "lazy/fcos.py"], "The data set 'coco_2017_train' is missing"),
]


@pytest.mark.parametrize(("words", "sentence"), WRONG, ids=lambda v: str(v)[-40:])
def test_it_is_one_sentence(words, sentence, files, tiny, monkeypatch, capsys, caplog):
    monkeypatch.chdir(files)
    words = [word.format(tmp=files, tiny=tiny) for word in words]
    assert run(argument_parser().parse_args(words)) == 1
    said = capsys.readouterr()
    assert sentence in said.err + said.out + caplog.text
    assert "Traceback" not in said.err + said.out


def test_weights_that_cannot_be_fetched(files, tiny, monkeypatch, capsys, caplog):
    def no_network(path, **_):
        if "://" in path:
            raise URLError("no network")
        return path

    monkeypatch.chdir(files)
    monkeypatch.setattr(PathManager, "get_local_path", no_network)
    demo = [word.format(tiny=tiny) for word in DEMO]
    words = [*demo, "MODEL.WEIGHTS", "detectron2://ImageNetPretrained/MSRA/R-50.pkl"]
    assert run(argument_parser().parse_args(words)) == 1
    said = capsys.readouterr()
    text = said.err + said.out + caplog.text
    assert "R-50.pkl cannot be fetched (" in text and "no network" in text
    assert "where there is a network, download http" in text and "Traceback" not in said.err


def test_what_is_no_sentence_keeps_its_traceback():
    with pytest.raises(KeyError) as caught, mistakes_in_sentences():
        raise KeyError("p2")
    assert not isinstance(caught.value, RunError)
    with pytest.raises(KeyError) as caught, mistakes_in_sentences():
        raise KeyError("There is no such thing.")
    assert isinstance(caught.value, RunError) and str(caught.value) == "There is no such thing."
    with pytest.raises(ZeroDivisionError), mistakes_in_sentences():
        raise ZeroDivisionError("a bug of somebody's own")
