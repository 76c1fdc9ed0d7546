"""What a newcomer meets: a missing requirement is one sentence, versions are always printed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from d2ext import __version__, _environment, cli

ROOT = Path(__file__).resolve().parent.parent

# What Python runs before anything else: the named modules are not there.
HIDE = """
import importlib.abc, importlib.machinery, sys
hidden = {hidden!r}
class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            return None
        return super().find_spec(name, path, target)
index = sys.meta_path.index(importlib.machinery.PathFinder)
sys.meta_path[index] = Finder
"""


@pytest.fixture
def run_without(tmp_path):
    """Runs Python in a process where the given modules cannot be found."""

    def run(hidden, *arguments, cwd=ROOT):
        (tmp_path / "sitecustomize.py").write_text(HIDE.format(hidden=list(hidden)))
        env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=str(cwd),
            env=env,
            capture_output=True,
            text=True,
        )

    return run


@pytest.mark.parametrize(
    "hidden, remedy",
    [
        (["torch", "torchvision", "detectron2"], "pip install torch torchvision"),
        (["torchvision"], "pip install torchvision"),
        (["detectron2"], "python tools/install_detectron2.py"),
    ],
)
def test_import_names_what_is_missing_and_the_command_that_mends_it(run_without, hidden, remedy):
    done = run_without(hidden, "-c", "from d2ext import get_cfg")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == (
        f"ImportError: d2ext needs {hidden[0]}, which is not installed; run '{remedy}' first."
    )


LIGHT = """
import sys
import d2ext
assert not {"torch", "numpy", "yaml"} & set(sys.modules), "a light import"
from d2ext.losses import EqualizedFocalLoss, HarmonicCoupling
from d2ext.ops import boxes, dual_weighting, harmonic, loss_weights, sampling_free, sigmoid_losses
print(d2ext.__version__)
"""


def test_the_package_needs_only_python_and_its_mathematics_only_torch(run_without):
    done = run_without(["torchvision", "detectron2", "fvcore", "pycocotools", "yaml"], "-c", LIGHT)
    assert (done.stdout, done.stderr) == (f"{__version__}\n", "")


REGISTERS = """
import os, sys, warnings
with warnings.catch_warnings():  # most of an import, and d2ext has no part in it
    warnings.simplefilter("ignore")
    import detectron2.data, detectron2.modeling
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        exec(f"from d2ext import {name}")
        from detectron2.data import DatasetCatalog
        from detectron2.modeling import META_ARCH_REGISTRY
        assert "ExtFCOS" in META_ARCH_REGISTRY, name
        assert "d2ext_shapes_train" in DatasetCatalog.list(), name
        sys.exit()
    assert os.waitpid(child, 0)[1] == 0, name
"""


@pytest.mark.slow
def test_what_is_asked_for_by_name_comes_registered(run_without):
    """Each name in a process of its own, where nothing else of d2ext was imported."""
    done = run_without([], "-c", REGISTERS, "get_cfg", "add_d2ext_config", "engine")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_version_is_no_redirection_of_the_shell():
    words = ["make", "--dry-run", "--always-make", "setup", "TORCH=torch>=2.1 numpy<2"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert "pip install --quiet --disable-pip-version-check 'torch>=2.1' 'numpy<2'" in done.stdout


def test_remedy_works_from_another_folder(run_without, tmp_path):
    done = run_without(["detectron2"], "-c", "from d2ext.config import get_cfg", cwd=tmp_path)
    command = re.search(r"run '(.*?)' first", done.stderr).group(1)
    assert Path(command.split(" ", 1)[1]).samefile(ROOT / "tools" / "install_detectron2.py")


def test_version_is_printed_when_everything_is_missing(run_without):
    done = run_without(["torch", "torchvision", "detectron2"], "-m", "d2ext", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["d2ext", __version__]
    assert [line.split()[0] for line in lines] == [
        "d2ext",
        "python",
        "torch",
        "torchvision",
        "detectron2",
    ]
    assert lines[2].endswith("not installed (run 'pip install torch torchvision')")
    assert lines[4].endswith("not installed (run 'python tools/install_detectron2.py')")


def test_other_commands_tell_what_is_missing_without_a_traceback(run_without):
    done = run_without(["detectron2"], "-m", "d2ext", "zoo")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "d2ext needs detectron2, which is not installed; "
        "run 'python tools/install_detectron2.py' first."
    ]


@pytest.mark.slow
def test_import_prints_nothing(run_without):
    done = run_without([], "-c", "import d2ext; print(d2ext.model_zoo.__name__)")
    assert (done.stdout, done.stderr) == ("d2ext.model_zoo\n", "")


def test_another_program_gets_the_error_not_half_a_package(run_without, tmp_path):
    (tmp_path / "program").mkdir()
    (tmp_path / "program" / "__init__.py").write_text("import d2ext.engine\n")
    (tmp_path / "program" / "__main__.py").write_text("print('started')\n")
    done = run_without(["detectron2"], "-m", "program", cwd=tmp_path)
    assert done.returncode == 1
    assert "d2ext needs detectron2" in done.stderr


def test_versions_of_what_is_installed():
    import torch

    found = _environment.versions()
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert re.fullmatch(r"\S+ \((pure Python|compiled operators)\)", found["detectron2"])


@pytest.mark.parametrize("compiled", [False, True])
def test_version_of_a_detectron2_that_pip_does_not_know(monkeypatch, tmp_path, compiled):
    package = tmp_path / "detectron2"
    package.mkdir()
    (package / "__init__.py").write_text('__version__ = "0.7"\n')
    if compiled:
        (package / "_C.cpython-311-x86_64-linux-gnu.so").write_text("")

    def unknown(name):
        raise _environment.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(_environment.importlib.metadata, "version", unknown)
    spec = _environment.importlib.util.spec_from_file_location(
        "detectron2", package / "__init__.py"
    )
    monkeypatch.setattr(_environment, "find_module", lambda name: spec)
    suffix = "(compiled operators)" if compiled else "(pure Python)"
    assert _environment.versions()["detectron2"] == f"0.7 {suffix}"


def test_a_clone_of_detectron2_in_the_working_directory_is_not_detectron2(monkeypatch, tmp_path):
    (tmp_path / "stray_clone").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert _environment.find_module("stray_clone") is None


def test_version_flag(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert f"d2ext       {__version__}" in capsys.readouterr().out
