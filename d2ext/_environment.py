"""What d2ext needs from its surroundings, found out without importing any of it."""

import importlib.machinery
import importlib.util
import os
import platform
import re
from pathlib import Path
from typing import Dict, Optional

__all__ = [
    "find_module",
    "requirement_problem",
    "versions",
]

REQUIRED = ("torch", "torchvision", "detectron2")


def find_module(name: str) -> Optional[importlib.machinery.ModuleSpec]:
    """The spec of an installed top-level module, or None.

    A folder that merely bears the name, such as a clone of Detectron2's repository in the working
    directory, is a namespace package to Python, found but empty. It has no origin.
    """
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return spec if spec is not None and spec.origin is not None else None


def remedy(name: str) -> str:
    """The command that installs a required module."""
    if name == "torch":
        return "pip install torch torchvision"
    if name == "torchvision":
        return "pip install torchvision"
    script = Path(__file__).resolve().parent.parent / "tools" / "install_detectron2.py"
    if not script.exists():  # installed from a wheel, which carries the script as a module
        return "python -m d2ext.install_detectron2"
    beside = os.path.relpath(script)
    return f"python {script if beside.startswith(os.pardir) else beside}"


def requirement_problem() -> Optional[str]:
    """One sentence on the first requirement that is missing, with the command that fixes it."""
    for name in REQUIRED:
        if find_module(name) is None:
            return f"d2ext needs {name}, which is not installed; run '{remedy(name)}' first."
    return None


def versions() -> Dict[str, str]:
    """Versions of Python and of what d2ext requires; what is missing comes with its remedy."""
    found = {"python": platform.python_version()}
    for name in REQUIRED:
        spec = find_module(name)
        if spec is None or spec.origin is None:
            found[name] = f"not installed (run '{remedy(name)}')"
        else:
            found[name] = _version(name, Path(spec.origin))
            if name == "detectron2":
                compiled = any(Path(spec.origin).parent.glob("_C*.*"))
                found[name] += " (compiled operators)" if compiled else " (pure Python)"
    return found


def _version(name: str, init_file: Path) -> str:
    import importlib.metadata  # slow, and --help does not need it

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # on PYTHONPATH, never installed
        match = re.search(r'^__version__ = "([^"]+)"', init_file.read_text(), re.MULTILINE)
        return match.group(1) if match else "of unknown version"
