"""The wheel: built without torch, complete, and of use without the checkout."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog

import d2ext
from d2ext.data import tiny_dataset

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (
    "setup.py", "pyproject.toml", "requirements.txt", "MANIFEST.in", "LICENSE", "README.md",
    "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "Makefile", "train_net.py",
)  # fmt: skip

# Where the name to import is not the name to install.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "faster_coco_eval": "faster-coco-eval",
    "yaml": "pyyaml",
}
# Detectron2 is on no index; onnx, onnxruntime and wandb are extras.
# Triton comes with the builds of PyTorch that can use it.
NOT_IN_REQUIREMENTS = {
    "d2ext",
    "detectron2",
    "onnx",
    "onnxruntime",
    "safetensors",
    "triton",
    "wandb",
}


def build_wheel(source, folder, **env):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True, env={**os.environ, **env}, stdin=subprocess.DEVNULL)
    return next(Path(folder).glob("d2ext-*.whl"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the checkout, so that the build leaves nothing in it, with two configs more."""
    copy = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        shutil.copy2(ROOT / name, copy / name)
    skip = shutil.ignore_patterns("__pycache__")
    for name in ("d2ext", "configs", "tools"):
        shutil.copytree(ROOT / name, copy / name, ignore=skip)
    (copy / "configs" / "Base-Packaging.yaml").write_text("SOLVER: {MAX_ITER: 7}\n")
    (copy / "configs" / "Packaging").mkdir()
    (copy / "configs" / "Packaging" / "a.yaml").write_text("_BASE_: ../Base-Packaging.yaml\n")
    return copy


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """The wheel, built where importing torch or Detectron2 is an error."""
    trap = tmp_path_factory.mktemp("trap")
    for name in ("torch", "torchvision", "detectron2"):
        (trap / f"{name}.py").write_text("raise RuntimeError('imported while building')\n")
    return build_wheel(source, tmp_path_factory.mktemp("wheel"), PYTHONPATH=str(trap))


@pytest.mark.slow
def test_wheel_holds_package_configs_installer_and_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "d2ext").rglob("*.py")}
    configs = {
        f"d2ext/{p.relative_to(ROOT).as_posix()}"
        for kind in ("*.yaml", "*.py")
        for p in (ROOT / "configs").rglob(kind)
    }
    assert "d2ext/configs/lazy/combined.py" in configs
    assert modules | configs | {"d2ext/install_detectron2.py", "d2ext/py.typed"} <= names
    assets = {p.relative_to(ROOT).as_posix() for p in (ROOT / "d2ext/report/assets").iterdir()}
    assert "d2ext/report/assets/page.html" in assets and assets <= names
    assert any(n.endswith("LICENSE") for n in names)
    assert not [n for n in names if n.startswith(("tests/", "tools/", "configs/"))]


@pytest.mark.slow
def test_wheel_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith("dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    assert (metadata["Name"], metadata["Version"]) == ("d2ext", d2ext.__version__)
    assert metadata["Requires-Python"] == ">=3.9"
    assert set(metadata.get_all("Provides-Extra")) == {
        "augment", "dev", "docs", "export", "openvino", "pretrained", "wandb",
    }  # fmt: skip
    requires = metadata.get_all("Requires-Dist")
    for name in ("torch", "torchvision", "lvis", "faster-coco-eval"):
        assert any(re.match(rf"{name}\b", r) for r in requires), name
    assert not [r for r in requires if r.startswith("detectron2")]
    # One torch here and another with torchvision would be a pair that does not fit.
    assert not [r for r in requires if r.startswith("torch") and "==" in r]


@pytest.mark.slow
def test_a_deleted_config_leaves_the_next_wheel(source, wheel, tmp_path):
    copy = tmp_path / "source"
    shutil.copytree(source, copy)  # with the build/ folder that the first wheel left
    (copy / "configs" / "Packaging" / "a.yaml").unlink()
    with zipfile.ZipFile(build_wheel(copy, tmp_path / "wheel")) as archive:
        names = archive.namelist()
    assert "d2ext/configs/Base-Packaging.yaml" in names
    assert "d2ext/configs/Packaging/a.yaml" not in names


@pytest.mark.slow
def test_build_makes_an_sdist_and_from_it_the_same_wheel(source, wheel, tmp_path):
    """``python -m build`` makes the wheel out of the sdist, so that what it lacks is missing."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path)]
    subprocess.run([*command, str(source)], check=True, stdin=subprocess.DEVNULL)
    (sdist,) = tmp_path.glob("d2ext-*.tar.gz")
    (built,) = tmp_path.glob("d2ext-*.whl")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(built) as other:
        expected = {i.filename: i.CRC for i in one.infolist() if "dist-info" not in i.filename}
        assert {
            i.filename: i.CRC for i in other.infolist() if "dist-info" not in i.filename
        } == expected
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {*SOURCES, "tools/install_detectron2.py", "configs/lazy/fcos.py"} <= names


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A virtual environment with the wheel installed, which borrows torch and the like."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    command = [*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    purelib = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.strip()
    # Found behind its own packages. Nobody reads the .pth files there, so that the editable
    # install of this checkout stays out of it.
    paths = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    Path(purelib, "borrowed.pth").write_text("\n".join(paths))
    return folder / "bin"


def call(environment, cwd, *words):
    """Run a command of the environment in a folder that knows nothing of the checkout."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        [str(environment / words[0]), *map(str, words[1:])],
        cwd=str(cwd),
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    )


# Several commands and questions in one process: each would import torch again.
QUESTIONS = """
import json, sys
import d2ext
from d2ext import _environment, cli, model_zoo
print(json.dumps({
    "help": cli.build_parser().format_help(),
    "file": d2ext.__file__,
    "root": str(model_zoo.config_root()),
    "max_iter": model_zoo.get_config("Packaging/a").SOLVER.MAX_ITER,
    "remedy": _environment.remedy("detectron2"),
}))
for words in json.loads(sys.argv[1]):
    assert not cli.main(words), words
"""


@pytest.mark.slow
def test_environment_trains_predicts_and_finds_its_configs_and_its_installer(environment, tmp_path):
    with tiny_dataset(num_images=4, root=str(tmp_path)) as name:
        images = Path(MetadataCatalog.get(name).image_root)
        annotations = MetadataCatalog.get(name).json_file
        (tmp_path / "my_data.py").write_text(
            "from detectron2.data.datasets import register_coco_instances\n"
            f"register_coco_instances('mine', {{}}, {annotations!r}, {str(images)!r})\n"
        )
        done = call(
            environment, tmp_path, "d2ext", "train", "--fast-dev-run", "--import", "my_data",
            "--config-file", "Demo/dw_shapes", "DATASETS.TRAIN", "('mine',)",
            "DATASETS.TEST", "('mine',)", "MODEL.DW.NUM_CLASSES", 3, "SOLVER.IMS_PER_BATCH", 2,
            "DATALOADER.NUM_WORKERS", 0, "ENGINE.TENSORBOARD", False, "OUTPUT_DIR", "out",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        predict = ["predict", "--weights", str(tmp_path / "out" / "model_final.pth")]
        predict += ["--threshold", "0", "--output", "found", str(next(images.glob("*.*")))]
        words = json.dumps([["zoo", "Demo/*"], predict])
        done = call(environment, tmp_path, "python", "-W", "ignore", "-c", QUESTIONS, words)
    assert done.returncode == 0, done.stdout
    assert "detections in 1 images" in done.stdout, done.stdout
    assert (tmp_path / "found" / "predictions.json").is_file()
    # Among warnings of the libraries.
    found = json.loads(next(x for x in done.stdout.splitlines() if x.startswith('{"help"')))
    assert found["file"].startswith(str(environment.parent))
    assert Path(found["root"]) == Path(found["file"]).parent / "configs"
    assert found["max_iter"] == 7
    assert found["remedy"] == "python -m d2ext.install_detectron2"
    commands = {line.split()[0] for line in found["help"].splitlines() if line.strip()}
    assert {"zoo", "train", "predict", "export", "doctor"} <= commands
    shipped = [p.name for p in (ROOT / "configs" / "Demo").glob("*.yaml")]
    shipped = [name for name in shipped if not name.startswith("Base-")]
    assert shipped and all(f"Demo/{name}" in done.stdout for name in shipped)


def _imports(file):
    """Top-level names that a file imports absolutely and cannot do without."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    optional = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Try) and "ImportError" in map(_caught, node.handlers):
            optional.update(ast.walk(node))
    for node in set(ast.walk(tree)) - optional:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


def _caught(handler):
    return getattr(handler.type, "id", None)


def test_requirements_name_everything_the_package_imports():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    required = {re.split(r"[<>=!~;\[ #]", line)[0].lower() for line in lines}
    standard = getattr(sys, "stdlib_module_names", None)
    if standard is None:  # Python 3.9: what lies in its own library folder
        standard = {p.stem for p in Path(os.__file__).parent.iterdir()} | set(
            sys.builtin_module_names
        )
    missing = {}
    for file in (ROOT / "d2ext").rglob("*.py"):
        for name in set(_imports(file)) - set(standard) - NOT_IN_REQUIREMENTS:
            if DISTRIBUTIONS.get(name, name).lower() not in required:
                missing.setdefault(name, []).append(file.relative_to(ROOT).as_posix())
    assert not missing, f"add to requirements.txt: {missing}"


def test_version_is_one_that_setup_reads_as_text():
    text = (ROOT / "d2ext" / "__init__.py").read_text()
    assert re.findall(r'^__version__ = "([^"]+)"', text, re.MULTILINE) == [d2ext.__version__]


def test_continuous_integration_script_can_be_started():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)
