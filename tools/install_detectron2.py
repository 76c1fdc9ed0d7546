#!/usr/bin/env python
"""Install Detectron2 where no compiled build of it is at hand.

Detectron2 is not published on any package index. If it can be imported already, this script
leaves it alone, and builds a wheel only if --wheel-dir asks for one. Otherwise it takes the
pure-Python copy of Detectron2 0.6 (Apache License 2.0) that the package ``labgym`` 3.1.2 carries as
``LabGym.detectron2``, gives its imports their own name back, builds a wheel and installs it with
pip. Nothing else of that package is used.

The wheel has no compiled operators (``detectron2._C``). RetinaNet, FCOS and the R-CNN family do
not need them; rotated boxes and Detectron2's own deformable convolutions do. For those, follow
https://detectron2.readthedocs.io/tutorials/install.html instead.

A checkout of Detectron2, of whatever version, can be used instead: --source DIR, or the environment
variable D2EXT_DETECTRON2_SOURCE, takes the pure-Python part of it and the configs of its model zoo.

Usage: python tools/install_detectron2.py [--source DIR] [--wheel-dir DIR] [--force]
"""

import argparse
import base64
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

DONOR = "labgym==3.1.2"
DONOR_SHA256 = "a2900cff8a3fb508e1975f19b5f9abd9f261966db87b0c332697fb4138c1cb2b"
DONOR_PACKAGE = "LabGym/detectron2/"
ZOO = "detectron2/model_zoo/configs"
DONOR_VERSION = "0.6"

# What Detectron2's own setup.py asks for, minus its upper bounds on omegaconf and iopath that no
# longer build; setuptools below 81 still has pkg_resources, which detectron2.model_zoo imports.
REQUIRES = [
    "Pillow>=7.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore>=0.1.5",
    "iopath>=0.1.7",
    "omegaconf>=2.1",
    "hydra-core>=1.1",
    "packaging",
    "setuptools<81",
]

NOTICE = """\
Detectron2, Copyright (c) Facebook, Inc. and its affiliates.
Licensed under the Apache License, Version 2.0; you may obtain a copy of it at
http://www.apache.org/licenses/LICENSE-2.0

This wheel repackages the pure-Python part of Detectron2 {origin}.
"""
FROM_DONOR = (
    "0.6 as carried by labgym 3.1.2. The only\nchange made to the sources is that imports of "
    '"LabGym.detectron2" read "detectron2" again'
)

# What pip prints when it never reached the index, as against an index without the package.
NO_NETWORK = re.compile(
    r"NewConnectionError|ConnectTimeout|ReadTimeout|Max retries|Temporary failure|"
    r"Network is unreachable|Failed to establish|ProxyError|SSLError|Connection (refused|reset)"
)


class InstallError(RuntimeError):
    """A failure with a sentence that says what to do."""


def is_installed(module):
    """Whether ``module`` is there, without importing it.

    A folder that merely bears the name, such as a clone of Detectron2's repository in the working
    directory, is a namespace package to Python, found but empty. It has no origin.
    """
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None


def check_import():
    """Raise unless the Detectron2 that is there can be imported.

    In a process of its own, because importing compiled operators built for another PyTorch may end
    the process rather than raise.
    """
    command = [sys.executable, "-W", "ignore", "-c", "import detectron2.config, detectron2.layers"]
    done = _run(command)
    if done.returncode != 0:
        raise InstallError(
            f"Detectron2 is installed but cannot be imported ({_last_line(done)}); remove it with "
            "'pip uninstall detectron2' and run this again, or rebuild it for this PyTorch."
        )


def download_donor(folder):
    """Fetch the donor wheel with pip into ``folder``, check its hash and return its path."""
    # The donor asks for Python 3.9 or 3.10; its copy of Detectron2 runs on later ones as well.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", "3.10", "--dest", str(folder), DONOR]
    done = _run(command)
    wheels = sorted(Path(folder).glob("*.whl"))
    if done.returncode != 0 or not wheels:
        if NO_NETWORK.search(done.stdout):
            why = "pip cannot reach the package index; check the network or your proxy settings"
        else:
            why = f"pip says '{_last_line(done)}'; check which package index pip is set to use"
        raise InstallError(
            f"Could not download {DONOR}: {why}, or install Detectron2 yourself, "
            "and run this again."
        )
    verify(wheels[0])
    return wheels[0]


def verify(wheel, expected=None):
    """Raise unless the file's sha256 is the expected one."""
    expected = expected or DONOR_SHA256
    actual = hashlib.sha256(Path(wheel).read_bytes()).hexdigest()
    if actual != expected:
        raise InstallError(
            f"{Path(wheel).name} has sha256 {actual}, expected {expected}; the download is damaged "
            "or was replaced, nothing was installed. Delete it from pip's cache and try again."
        )


def build_wheel(entries, version, origin, folder):
    """Write the detectron2 wheel with these files into ``folder``; return its path."""
    dist_info = f"detectron2-{version}.dist-info"
    entries = {**entries, **_metadata(dist_info, version, origin)}
    path = Path(folder) / f"detectron2-{version}-py3-none-any.whl"
    record = []
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(data)}")
            _write_entry(archive, name, data)
        record.append(f"{dist_info}/RECORD,,")
        _write_entry(archive, f"{dist_info}/RECORD", ("\n".join(record) + "\n").encode())
    return path


def read_source(folder):
    """The pure-Python files of a checkout by their names in the wheel, and its version."""
    package = folder / "detectron2"
    init = package / "__init__.py"
    if not init.is_file():
        raise InstallError(
            f"{folder} is not a checkout of Detectron2 (there is no detectron2/__init__.py); give "
            "the folder that its repository was cloned to."
        )
    version = re.search(r'^__version__ = "([^"]+)"', init.read_text(encoding="utf-8"), re.M)
    entries = {}
    # Its own setup.py puts the model zoo's configs inside the package in this way.
    for root, place in ((package, "detectron2"), (folder / "configs", ZOO)):
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root).as_posix()
            is_source = path.suffix in (".py", ".pyi", ".yaml", ".txt", ".typed", ".h5")
            if path.is_file() and is_source and not name.startswith("layers/csrc/"):
                entries.setdefault(f"{place}/{name}", path.read_bytes())
    return entries, version.group(1) if version else "0"


def read_donor(donor):
    """The files of the donor's Detectron2 by their names in the new wheel, imports renamed."""
    entries = {}
    with zipfile.ZipFile(donor) as archive:
        for name in archive.namelist():
            if name.endswith("/") or not name.startswith(DONOR_PACKAGE):
                continue
            data = archive.read(name)
            if name.endswith((".py", ".yaml")):
                data = data.replace(b"LabGym.detectron2", b"detectron2")
            entries[name[len("LabGym/") :]] = data
    if "detectron2/__init__.py" not in entries:
        raise InstallError(f"{Path(donor).name} holds no {DONOR_PACKAGE}; nothing was installed.")
    return entries


def _metadata(dist_info, version, origin):
    """The files of the new wheel's dist-info folder, all but RECORD."""
    notice = NOTICE.format(origin=origin)
    lines = ["Metadata-Version: 2.1", "Name: detectron2", f"Version: {version}"]
    lines += ["Summary: Detectron2, pure-Python part", "License: Apache-2.0"]
    lines += [f"Requires-Dist: {requirement}" for requirement in REQUIRES]
    files = {
        "METADATA": "\n".join(lines) + "\n\n" + notice,
        "NOTICE": notice,
        "WHEEL": "Wheel-Version: 1.0\nGenerator: d2ext\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "top_level.txt": "detectron2\n",
    }
    return {f"{dist_info}/{name}": text.encode() for name, text in files.items()}


def _write_entry(archive, name, data):
    # A fixed date, the earliest a zip file can hold: the same donor gives the same wheel.
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    archive.writestr(info, data)


def pip_install(wheel, force=False):
    """Install the built wheel and what it requires."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", str(wheel)]
    if subprocess.run(command).returncode != 0:
        raise InstallError(f"pip could not install {wheel}; its message above says why.")
    if force:  # pip takes a wheel of the version that is there for the same wheel
        subprocess.run([*command, "--force-reinstall", "--no-deps"], check=True)


def _run(command):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _last_line(done):
    """The last line a command printed: the error itself, after any warnings and tracebacks."""
    return (done.stdout.strip().splitlines() or ["no message"])[-1]


def install(source=None, wheel_dir=None, force=False, *, needed=True):
    """Build and, if needed, install; keep the wheel in ``wheel_dir`` when it is given.

    Returns:
        the version
    """
    with tempfile.TemporaryDirectory() as folder:
        built = wheel_dir or Path(folder, "built")
        built.mkdir(parents=True, exist_ok=True)
        if source is None:
            entries, version, origin = read_donor(download_donor(folder)), DONOR_VERSION, FROM_DONOR
        else:
            entries, version = read_source(source)
            origin = f"{version} from a checkout of its repository"
        wheel = build_wheel(entries, version, origin, built)
        if wheel_dir is not None:
            print(f"Built {wheel}.")
        if needed:
            pip_install(wheel, force)
    return version


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--source",
        type=Path,
        default=os.environ.get("D2EXT_DETECTRON2_SOURCE") or None,
        help="build from this checkout of Detectron2 (default: $D2EXT_DETECTRON2_SOURCE)",
    )
    parser.add_argument(
        "--wheel-dir", type=Path, help="keep the built wheel in this folder; always builds one"
    )
    parser.add_argument("--force", action="store_true", help="rebuild even if it can be imported")
    args = parser.parse_args(argv)
    try:
        if not (is_installed("torch") and is_installed("torchvision")):
            raise InstallError(
                "Detectron2 needs PyTorch: run 'pip install torch torchvision' first."
            )
        needed = args.force or not is_installed("detectron2")
        if not needed and args.wheel_dir is None:
            check_import()
            print("Detectron2 is installed already; nothing to do.")
            return 0
        if not is_installed("pip"):
            raise InstallError(
                f"{sys.executable} has no pip: run '{sys.executable} -m ensurepip' first."
            )
        version = install(args.source, args.wheel_dir, args.force, needed=needed)
        if not needed:
            print("Detectron2 is installed already and left as it is.")
            return 0
        check_import()
    except InstallError as error:
        print(f"install_detectron2: {error}", file=sys.stderr)
        return 1
    print(f"Installed Detectron2 {version} (pure Python).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
