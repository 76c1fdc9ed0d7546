"""What d2ext needs from its surroundings, found out without importing any of it."""

import importlib.machinery
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
import warnings
from pathlib import Path
from typing import Dict, Optional

__all__ = [
    "find_module",
    "import_detectron2_quietly",
    "requirement_problem",
    "started_as_command",
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
    """One sentence on the first requirement that is missing, with the command that mends it."""
    for name in REQUIRED:
        if find_module(name) is None:
            return f"d2ext needs {name}, which is not installed; run '{remedy(name)}' first."
    return None


def started_as_command() -> bool:
    """Whether Python was started as ``python -m d2ext...`` or through the ``d2ext`` script.

    Python imports the package before it runs the command, and the command that reports what is
    missing must not fail for that very reason. While ``-m`` looks for its module, ``sys.argv[0]``
    is documented to be "-m".
    """
    program = sys.argv[0] if sys.argv else ""
    if program == "-m":
        words = getattr(sys, "orig_argv", ["d2ext"])  # Python 3.10 and later
        return any(word.split(".")[0] in ("d2ext", "-md2ext") for word in words)
    return Path(program).stem == "d2ext"


def import_detectron2_quietly() -> None:
    """Import Detectron2's models without the warnings that recent PyTorch gives for them.

    They and fvcore compile small functions with ``torch.jit.script`` on import, which nobody who
    uses d2ext can change. torch comes first, outside: the filters it sets itself have to last.
    """
    import torch  # noqa: F401

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".torch\.jit\.script. is deprecated")
        import detectron2.modeling  # noqa: F401


def versions() -> Dict[str, str]:
    """Versions of Python and of what d2ext requires; what is missing comes with its remedy."""
    found = {"python": platform.python_version()}
    for name in REQUIRED:
        spec = find_module(name)
        if spec is None:
            found[name] = f"not installed (run '{remedy(name)}')"
        else:
            found[name] = _version(name, Path(spec.origin))
            if name == "detectron2":
                compiled = any(Path(spec.origin).parent.glob("_C*.*"))
                found[name] += " (compiled operators)" if compiled else " (pure Python)"
    return found


def _version(name: str, init_file: Path) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # on PYTHONPATH, never installed
        match = re.search(r'^__version__ = "([^"]+)"', init_file.read_text(), re.MULTILINE)
        return match.group(1) if match else "of unknown version"
