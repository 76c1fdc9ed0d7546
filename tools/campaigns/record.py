"""The record of a campaign: JSON lines, one for each attack, that a later call goes on from."""

import json
from pathlib import Path
from typing import Any, Dict, List

__all__ = ["Record", "table"]


class Record:
    """Lines of one campaign in a file.

    Args:
        path: the file; lines that are there count.
        campaign: the name of the campaign; lines of others are left alone.
        seed: lines of another seed are left alone, too.
    """

    def __init__(self, path: Path, campaign: str, seed: int):
        self.path, self._key = Path(path), {"campaign": campaign, "seed": seed}
        self.lines: List[Dict[str, Any]] = []
        if self.path.exists():
            for text in self.path.read_text().splitlines():
                line = json.loads(text)
                if self._key.items() <= line.items():
                    self.lines.append(line)

    def add(self, **values: Any) -> Dict[str, Any]:
        """Append a line, on the disk before the next attack begins."""
        line = {**self._key, **values}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a") as stream:
            stream.write(json.dumps(line) + "\n")
        self.lines.append(line)
        return line


def table(heads: List[str], rows: List[List[Any]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
