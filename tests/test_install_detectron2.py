"""The script that builds Detectron2 from its pure-Python copy: what it makes, how it fails."""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "tools" / "install_detectron2.py"


@pytest.fixture
def installer(monkeypatch):
    """The script as a module, with a Detectron2 that is missing and a PyTorch that is there."""
    spec = importlib.util.spec_from_file_location("install_detectron2", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "is_installed", lambda name: name != "detectron2")
    return module


@pytest.fixture
def donor(tmp_path):
    """A wheel in the shape of the donor's, of a package that only shares the layout."""
    path = tmp_path / "donor-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("LabGym/__init__.py", "raise RuntimeError('not to be taken along')\n")
        archive.writestr("LabGym/gui.py", "")
        archive.writestr("LabGym/detectron2/__init__.py", "import LabGym.detectron2.config\n")
        archive.writestr("LabGym/detectron2/layers/__init__.py", "")
        archive.writestr(
            "LabGym/detectron2/config/__init__.py",
            "import LabGym.detectron2.layers as layers\nX = 'É'\n",
        )
        archive.writestr("LabGym/detectron2/model_zoo/configs/a.yaml", "_BASE_: b.yaml\n")
        archive.writestr("LabGym/detectron2/data.bin", b"\xffLabGym.detectron2\x00")
    return path


def build_wheel(installer, donor, folder):
    entries = installer.read_donor(donor)
    return installer.build_wheel(entries, installer.DONOR_VERSION, installer.FROM_DONOR, folder)


class Pip:
    """Stands in for ``subprocess.run``: records commands, answers as told."""

    def __init__(self, returncode=0, printed="", delivers=None):
        self.returncode, self.printed, self.delivers = returncode, printed, delivers
        self.commands = []

    def __call__(self, command, **kwargs):
        self.commands.append(command)
        if "download" in command and self.delivers is not None:
            folder = Path(command[command.index("--dest") + 1])
            (folder / "labgym-3.1.2-py3-none-any.whl").write_bytes(self.delivers.read_bytes())
        return subprocess.CompletedProcess(command, self.returncode, stdout=self.printed)


def run_main(installer, monkeypatch, pip, *arguments):
    monkeypatch.setattr(installer.subprocess, "run", pip)
    return installer.main(list(arguments))


# --- the wheel


def test_wheel_takes_detectron2_alone_and_renames_its_imports(installer, donor, tmp_path):
    with zipfile.ZipFile(build_wheel(installer, donor, tmp_path)) as wheel:
        names = wheel.namelist()
        assert not [n for n in names if not n.startswith(("detectron2/", "detectron2-0.6.dist"))]
        assert wheel.read("detectron2/__init__.py") == b"import detectron2.config\n"
        assert "X = 'É'".encode() in wheel.read("detectron2/config/__init__.py")
        assert wheel.read("detectron2/data.bin") == b"\xffLabGym.detectron2\x00"  # not text
        assert b"Requires-Dist: fvcore" in wheel.read("detectron2-0.6.dist-info/METADATA")
        assert b"Apache License" in wheel.read("detectron2-0.6.dist-info/NOTICE")


def test_wheel_is_the_same_every_time(installer, donor, tmp_path):
    digests = set()
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        wheel = build_wheel(installer, donor, tmp_path / folder)
        digests.add(hashlib.sha256(wheel.read_bytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.slow
def test_wheel_is_one_that_pip_installs_and_python_imports(installer, donor, tmp_path):
    wheel, target = build_wheel(installer, donor, tmp_path), tmp_path / "target"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True)
    code = (
        "import detectron2, importlib.metadata as m, pathlib;"
        "d = m.distribution('detectron2');"
        "assert all(f.locate().exists() for f in d.files), d.files;"
        "print(d.version, detectron2.config.X, detectron2.__file__)"
    )
    run = [sys.executable, "-X", "utf8", "-c", code]
    done = subprocess.run(run, env={"PYTHONPATH": str(target)}, stdout=subprocess.PIPE, check=True)
    printed = done.stdout.decode("utf-8").split()
    assert printed[:2] == ["0.6", "É"]
    assert printed[2].startswith(str(target))


def test_donor_without_detectron2_is_refused(installer, tmp_path):
    empty = tmp_path / "empty.whl"
    with zipfile.ZipFile(empty, "w") as archive:
        archive.writestr("LabGym/__init__.py", "")
    with pytest.raises(installer.InstallError, match="empty.whl holds no LabGym/detectron2/"):
        build_wheel(installer, empty, tmp_path)


# --- the whole run


def test_installs_what_it_built_and_keeps_it_if_asked(installer, donor, monkeypatch, tmp_path):
    monkeypatch.setattr(installer, "DONOR_SHA256", hashlib.sha256(donor.read_bytes()).hexdigest())
    pip, kept = Pip(delivers=donor), tmp_path / "kept"
    assert run_main(installer, monkeypatch, pip, "--wheel-dir", str(kept)) == 0
    download, install, try_import = pip.commands
    assert download[-1] == "labgym==3.1.2"
    assert install[1:4] == ["-m", "pip", "install"]
    assert install[-1] == str(kept / "detectron2-0.6-py3-none-any.whl")
    assert (kept / "detectron2-0.6-py3-none-any.whl").exists()
    assert "import detectron2" in try_import[-1]


def test_a_detectron2_that_works_is_left_alone(installer, monkeypatch, capsys):
    monkeypatch.setattr(installer, "is_installed", lambda name: True)
    pip = Pip()
    assert run_main(installer, monkeypatch, pip) == 0
    assert not [c for c in pip.commands if "pip" in c]
    assert "nothing to do" in capsys.readouterr().out


def test_a_wheel_is_built_if_asked_where_detectron2_works(
    installer, donor, monkeypatch, capsys, tmp_path
):
    """For another machine, say; what is installed here, compiled perhaps, stays."""
    monkeypatch.setattr(installer, "is_installed", lambda name: True)
    monkeypatch.setattr(installer, "DONOR_SHA256", hashlib.sha256(donor.read_bytes()).hexdigest())
    pip = Pip(delivers=donor)
    assert run_main(installer, monkeypatch, pip, "--wheel-dir", str(tmp_path / "kept")) == 0
    wheel = tmp_path / "kept" / "detectron2-0.6-py3-none-any.whl"
    assert wheel.exists()
    assert len(pip.commands) == 1 and "download" in pip.commands[0]
    assert f"Built {wheel}" in (printed := capsys.readouterr().out) and "left as it is" in printed


def test_a_folder_that_only_bears_the_name_does_not_count(tmp_path, monkeypatch, installer):
    monkeypatch.undo()
    (tmp_path / "only_a_folder").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not installer.is_installed("only_a_folder")
    assert not installer.is_installed("no_such_module_at_all")
    assert installer.is_installed("json")


# --- failures: one sentence, exit status 1, nothing installed

TRACEBACK = "Traceback (most recent call last):\nImportError: undefined symbol _ZN2at"
UNREACHABLE = "WARNING: Retrying after connection broken by 'NewConnectionError'\nERROR: No match"


def test_broken_detectron2_is_named(installer, monkeypatch, capsys):
    monkeypatch.setattr(installer, "is_installed", lambda name: True)
    assert run_main(installer, monkeypatch, Pip(1, TRACEBACK)) == 1
    error = capsys.readouterr().err
    assert "cannot be imported (ImportError: undefined symbol _ZN2at)" in error
    assert "pip uninstall detectron2" in error


@pytest.mark.parametrize("absent", ["torch", "torchvision"])
def test_missing_torch_is_named(installer, monkeypatch, capsys, absent):
    monkeypatch.setattr(installer, "is_installed", lambda name: name != absent)
    pip = Pip()
    assert run_main(installer, monkeypatch, pip) == 1
    assert "pip install torch torchvision" in capsys.readouterr().err
    assert not pip.commands


def test_missing_pip_is_named(installer, monkeypatch, capsys):
    monkeypatch.setattr(installer, "is_installed", lambda name: name not in ("pip", "detectron2"))
    assert run_main(installer, monkeypatch, Pip()) == 1
    assert "-m ensurepip" in capsys.readouterr().err


@pytest.mark.parametrize(
    "printed, told",
    [
        (UNREACHABLE, "cannot reach the package index"),
        ("ERROR: No matching distribution", "pip says 'ERROR: No matching distribution'"),
        ("", "pip says 'no message'"),
    ],
)
def test_failed_download_says_why(installer, monkeypatch, capsys, printed, told):
    pip = Pip(1, printed)
    assert run_main(installer, monkeypatch, pip) == 1
    assert told in capsys.readouterr().err
    assert len(pip.commands) == 1


def test_wrong_hash_installs_nothing(installer, donor, monkeypatch, capsys):
    pip = Pip(delivers=donor)
    assert run_main(installer, monkeypatch, pip) == 1
    error = capsys.readouterr().err
    assert hashlib.sha256(donor.read_bytes()).hexdigest() in error
    assert "nothing was installed" in error
    assert len(pip.commands) == 1


def test_failed_installation_is_named(installer, donor, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(installer, "download_donor", lambda folder: donor)
    assert run_main(installer, monkeypatch, Pip(1)) == 1
    assert "pip could not install" in capsys.readouterr().err


@pytest.fixture
def checkout(tmp_path):
    """A copy of Detectron2 laid out as its repository, of a version that does not exist."""
    import detectron2

    package = Path(detectron2.__file__).parent
    folder = tmp_path / "checkout"
    ignored = shutil.ignore_patterns("__pycache__", "configs", "*.so")
    shutil.copytree(package, folder / "detectron2", ignore=ignored)
    shutil.copytree(package / "model_zoo" / "configs", folder / "configs")
    init = folder / "detectron2" / "__init__.py"
    text = re.sub(r'__version__ = ".*"', '__version__ = "0.6.9"', init.read_text())
    init.write_text(text)
    (folder / "detectron2" / "layers" / "csrc").mkdir(exist_ok=True)
    (folder / "detectron2" / "layers" / "csrc" / "build.py").write_text("")
    (folder / "README.md").write_text("")
    return folder


def test_a_checkout_gives_a_wheel_that_works(installer, checkout, monkeypatch, tmp_path, capsys):
    kept, target = tmp_path / "kept", tmp_path / "target"
    pip = Pip()
    monkeypatch.setenv("D2EXT_DETECTRON2_SOURCE", str(checkout))
    assert run_main(installer, monkeypatch, pip, "--wheel-dir", str(kept)) == 0
    assert "Installed Detectron2 0.6.9 (pure Python)." in capsys.readouterr().out
    assert not any("download" in command for command in pip.commands)
    monkeypatch.undo()
    with zipfile.ZipFile(kept / "detectron2-0.6.9-py3-none-any.whl") as wheel:
        names = wheel.namelist()
        wheel.extractall(target)
    assert not any("csrc" in name or "README" in name for name in names)
    assert "detectron2/model_zoo/configs/Base-RetinaNet.yaml" in names
    assert "Version: 0.6.9" in (target / "detectron2-0.6.9.dist-info" / "METADATA").read_text()
    code = "import detectron2, detectron2.model_zoo as zoo; print(detectron2.__file__, "
    code += "zoo.get_config_file('Base-RCNN-FPN.yaml'))"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(target)}, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(str(target)) == 2


def test_a_folder_that_is_no_checkout_is_refused(installer, monkeypatch, tmp_path, capsys):
    assert run_main(installer, monkeypatch, Pip(), "--source", str(tmp_path)) == 1
    assert "is not a checkout of Detectron2" in capsys.readouterr().err
