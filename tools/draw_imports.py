#!/usr/bin/env python
"""Draw which room of d2ext imports which, for docs/architecture.md.

    python tools/draw_imports.py [docs/images/imports.png]

`imports` reads them from the source, without importing any of it; a test holds them to LAYERS.
"""

import ast
import sys
from collections import Counter
from pathlib import Path
from typing import Iterator, List, NamedTuple, Optional, Tuple

ROOT = Path(__file__).resolve().parent.parent


class Import(NamedTuple):
    """One import statement: a module, what it imports, and its line; both with dots."""

    module: str
    target: str
    line: int


def imports(package: Path = ROOT / "d2ext") -> Iterator[Import]:
    """Every import of a package's own modules, those inside of functions too."""
    for path in sorted(package.rglob("*.py")):
        words = path.relative_to(package.parent).with_suffix("").parts
        module = ".".join(words[:-1] if words[-1] == "__init__" else words)
        folder = words[:-1]
        for node in _nodes(ast.parse(path.read_text())):
            for target in _targets(node, folder):
                if target.split(".")[0] == package.name:
                    yield Import(module, target, node.lineno)


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Import statements, without those for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        yield from _nodes(node)


def _targets(node: ast.AST, folder: Tuple[str, ...]) -> List[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = list(folder[: len(folder) - node.level + 1]) if node.level else []
    base += node.module.split(".") if node.module else []
    # What is named may be a module itself: "from .. import model_zoo".
    return [".".join([*base, alias.name]) for alias in node.names]


#: Who may import whom: a room imports what stands in the rows above its own, and itself.
LAYERS = (
    ("ops",),
    ("losses",),
    ("config",),
    ("combinations", "model_zoo"),
    ("data", "modeling"),
    ("evaluation",),
    ("engine",),
    ("convert", "export"),
    ("predictor",),
    ("analysis",),
    ("report",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
#: Small modules without a room: everybody but ops and losses may import them. "" is d2ext itself.
HELPERS = (
    "",
    "_arguments",
    "_array_pickle",
    "_detectron2",
    "_environment",
    "_files",
    "_text",
    "run_index",
    "safe_load",
)
#: What a porter to another framework takes: torch only. Triton is part of its CUDA builds.
TORCH_ONLY = ("ops", "losses")


def room_of(module: str) -> str:
    """ "modeling" for d2ext.modeling.losses, "" for names of d2ext itself."""
    word = module.partition(".")[2].partition(".")[0]
    found = (ROOT / "d2ext" / word).is_dir() or (ROOT / "d2ext" / f"{word}.py").is_file()
    return word if word and found else ""


def level_of(room: str) -> Optional[int]:
    """The row of a room in `LAYERS`; None for a helper."""
    return next((k for k, row in enumerate(LAYERS) if room in row), None)


def violations() -> List[str]:
    """A sentence on every import that goes upward, or that ops and losses may not have."""
    found = []
    for item in imports():
        room, target = room_of(item.module), room_of(item.target)
        if room == target or (room in HELPERS and target in HELPERS):
            continue
        if room == "":  # the root registers the others when it is asked to
            continue
        if target in HELPERS:
            allowed = room not in TORCH_ONLY
        else:
            mine, other = level_of(room), level_of(target)
            allowed = mine is not None and other is not None and other < mine
        if not allowed:
            found.append(f"{item.module}, line {item.line}, imports {item.target}.")
    return found


def draw(path: Path) -> None:
    """The rooms, the most general on top; an arrow leads from a room to what it imports."""
    import matplotlib.pyplot as plt

    arrows = Counter((room_of(item.module), room_of(item.target)) for item in imports())
    present = {room for pair in arrows for room in pair} - {"__main__"}
    rows = [row for row in ([r for r in row if r in present] for row in LAYERS) if row]
    places = {
        room: ((k % 2) * 0.45 + 1.6 * j - 0.8 * (len(row) - 1), -k)
        for k, row in enumerate(rows)
        for j, room in enumerate(row)
    }
    figure, axes = plt.subplots(figsize=(8, 9))
    for (room, target), count in arrows.items():
        if room == target or room not in places or target not in places:
            continue
        bend = 0.12 * (places[room][1] - places[target][1] - 1)
        axes.annotate(
            "",
            places[target],
            places[room],
            arrowprops={
                "arrowstyle": "-|>",
                "color": "#0072b2",
                "alpha": min(0.25 + 0.03 * count, 0.9),
                "linewidth": 0.6 + 0.05 * min(count, 40),
                "connectionstyle": f"arc3,rad={bend:.2f}",
                "shrinkA": 14,
                "shrinkB": 14,
            },
        )
    for room, (x, y) in places.items():
        box = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": "#0072b2"}
        axes.text(x, y, room, ha="center", va="center", fontsize=10, bbox=box)
    xs = [x for x, _ in places.values()]
    axes.set(xlim=(min(xs) - 2.2, max(xs) + 1.2), ylim=(-len(rows) + 0.4, 0.6))
    axes.set_axis_off()
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images" / "imports.png"
    for sentence in violations():
        print(sentence)
    draw(path)
    print(f"Written to {path}.")


if __name__ == "__main__":
    main()
