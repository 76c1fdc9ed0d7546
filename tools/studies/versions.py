"""Versions of what a run depends on, and whether the runs of a study had the same ones."""

import collections
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

__all__ = ["code_commit", "version_notes", "versions"]


def versions() -> Dict[str, str]:
    """Versions of what a run depends on, with the commit where the code is in a checkout."""
    import torch
    import torchvision

    import d2ext

    found = {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "d2ext": d2ext.__version__,
    }
    commit = code_commit(Path(d2ext.__file__).parent)
    return {**found, "commit": commit} if commit else found


def code_commit(folder: Path) -> str:
    """The commit of a package, with "+changes" if its files differ from it; empty without git."""

    def git(*words: str) -> str:
        # Without locks: somebody may be committing at this moment.
        command = ["git", "--no-optional-locks", "-C", str(folder), *words]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return answer.stdout.strip()

    try:
        # A package that is installed inside the checkout of another project does not belong to it.
        git("ls-files", "--error-unmatch", "__init__.py")
        commit = git("rev-parse", "--short=12", "HEAD")
        return commit + ("+changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def version_notes(results: List[Dict[str, Any]]) -> List[str]:
    """A sentence for each of torch, d2ext and its commit in which the runs differ.

    Runs are paired seed by seed, which other code or another torch makes less of a pair. Results
    from before commits were noted have none, and say nothing about it.
    """
    notes = []
    for key in ("torch", "d2ext", "commit"):
        known = (record.get("versions", {}).get(key) for record in results)
        counts = collections.Counter(value for value in known if value)
        if len(counts) > 1:
            shown = ", ".join(f"{value} ({n} runs)" for value, n in counts.items())
            what = "commits of d2ext" if key == "commit" else f"versions of {key}"
            notes.append(f"Not all runs had the same code: {what} are {shown}.")
    return notes
