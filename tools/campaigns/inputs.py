"""Bad inputs of the commands: each has to end in a sentence, and none in silence or a traceback.

Every command is called with every bad file and word that it takes, in a forked process with a time
limit. A good file with bytes flipped may still be good, so that exit code 0 is allowed there.
"""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

from PIL import Image

from .record import Record, table
from .runs import live_in_a_fork

__all__ = ["InputCampaign", "outcome_of"]

SECONDS = 120
"""After so long a call counts as hanging."""

_IMAGE = {"id": 1, "file_name": "a.png", "width": 8, "height": 8}
_BOX = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}
_GOOD = {"images": [_IMAGE], "annotations": [_BOX], "categories": [{"id": 1, "name": "x"}]}
_FOUND = [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "score": 0.5}]
_POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n"


def _bad_json() -> Dict[str, bytes]:
    huge = json.dumps(_GOOD).replace('"width": 8', '"width": ' + "9" * 5000)
    return {
        "empty": b"",
        "cut": json.dumps(_GOOD).encode()[:-9],
        "deep": b"[" * 100_000,
        "long number": huge.encode(),
        "latin1": '{"images": "é"}'.encode("latin1"),
        "number": b"3",
        "nulls": b'{"images": null, "annotations": null, "categories": null}',
        "words": b'{"images": ["a"], "annotations": ["b"], "categories": ["c"]}',
        "binary": bytes(range(256)),
    }


BAD: Dict[str, Dict[str, bytes]] = {
    "json": _bad_json(),
    "yaml": {
        "empty list": b"[]",
        "cut": b"MODEL: {",
        "code": b"!!python/object/apply:os.system ['true']",
        "aliases": b"a: &a [x, x]\nb: &b [*a, *a]\nMODEL: *b",
        "word": b"SOLVER: {MAX_ITER: many}",
        "own base": b"_BASE_: bad.yaml",
        "binary": bytes(range(256)),
    },
    "weights": {"empty": b"", "text": b"weights", "zip": b"PK\x03\x04" + bytes(64)},
    "image": {
        "empty": b"",
        "text": b"image",
        "postscript": _POSTSCRIPT,
        "cut": b"\x89PNG\r\n\x1a\n",
    },
}
_KINDS = {"json": "bad.json", "yaml": "bad.yaml", "weights": "bad.pth", "image": "bad.png"}

FINE = ("sentence", "usage", "unharmed")

# A command with one bad file in it, or with words that mean nothing.
CALLS: Tuple[Tuple[str, str], ...] = (
    ("json", "data check bad.json --output out"),
    ("json", "data stats bad.json --output out"),
    ("json", "data import bad.json new"),
    ("json", "analyze bad.json --dataset good.json --output out"),
    ("json", "analyze found.json --dataset bad.json --output out"),
    ("json", "show predict bad.json --dataset good.json --image-root . --output out"),
    ("json", "show predict found.json --dataset bad.json --image-root . --output out"),
    ("yaml", "doctor bad.yaml --steps 0 --output out"),
    ("yaml", "show assign bad.yaml --output out"),
    ("yaml", "lr-find bad.yaml --output out"),
    ("yaml", "train --config-file bad.yaml OUTPUT_DIR out"),
    ("yaml", "predict --config-file bad.yaml --weights bad.pth good.png --output out"),
    ("weights", "predict --weights bad.pth good.png --output out"),
    ("weights", "val --weights bad.pth --output out"),
    ("weights", "export --weights bad.pth --output out.onnx"),
    ("weights", "lr-find Demo/fcos_shapes --opts MODEL.WEIGHTS bad.pth --output out"),
    ("image", "predict --config-file Demo/fcos_shapes bad.png --output out"),
)
WORDS = (
    "zoo nothing_like_it", "data check no_such_set", "data stats no_such_set", "report nowhere",
    "data voc2coco nowhere", "data import nowhere new", "analyze found.json --dataset nowhere",
    "show predict found.json --dataset nowhere", "show assign Demo/none", "doctor Demo/none",
    "train --config-file Demo/none", "train --config-file .", "predict --weights none.pth x.png",
    "predict nothing.png", "val --weights none.pth", "export --weights none.pth",
    "show assign Demo/fcos_shapes --images -3", "show predict r --dataset d --score 7",
    "analyze r --dataset d --max-detections 0", "lr-find Demo/fcos_shapes --steps 0",
    "data shapes --classes 61 --output out", "train SOLVER.MAX_ITER", "train SOLVER.MAX_ITR 3",
    "train --import no_such_module --config-file Demo/fcos_shapes",
    "train --config-file Demo/fcos_shapes DATASETS.TRAIN ('none',)",
    "train --config-file Demo/fcos_shapes MODEL.META_ARCHITECTURE None_Such",
)  # fmt: skip


class InputCampaign:
    """Calls the commands with bad inputs until so many calls are on record; see ``KillCampaign``.

    First each command with each bad file and each meaningless line, then good files with bytes
    flipped.
    """

    def __init__(self, data: Path, folder: Path, record: Record, seed: int = 0):
        self.folder, self.record, self.seed = Path(folder), record, seed
        self._listed = [(words, kind, name) for kind, words in CALLS for name in BAD[kind]]
        self._listed += [(words, "words", "") for words in WORDS]

    def run(self, count: int, report: Callable = print) -> bool:
        """Call until ``count`` calls are on record; returns whether all ended as they have to."""
        while len(self.record.lines) < count:
            line = self.record.add(**self.attack(len(self.record.lines)))
            if line["outcome"] not in FINE:
                report(f"{line['outcome']}: d2ext {line['words']} ({line['input']})")
        return all(line["outcome"] in FINE for line in self.record.lines)

    def attack(self, index: int) -> Dict[str, Any]:
        """One call of one command; what came of it."""
        rng = random.Random(f"{self.seed} {index}")
        if index < len(self._listed):
            words, kind, name = self._listed[index]
            content = BAD.get(kind, {}).get(name, b"")
        else:
            words, kind = rng.choice([(w, k) for k, w in CALLS if k == "json"])[:2]
            good = json.dumps(_FOUND if words.split()[1:2] == ["bad.json"] else _GOOD)
            name, content = "flipped", _flipped(good.encode(), rng)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        (self.folder / "good.json").write_text(json.dumps(_GOOD))
        (self.folder / "found.json").write_text(json.dumps(_FOUND))
        Image.new("RGB", (8, 8)).save(self.folder / "good.png")
        if kind in _KINDS:
            (self.folder / _KINDS[kind]).write_bytes(content)
        code, text = _call(words, self.folder)
        outcome = outcome_of(code, text, name == "flipped")
        return {"words": words, "input": f"{kind} {name}".strip(), "outcome": outcome, "code": code}

    def summary(self) -> str:
        """How many calls ended in what, by the kind of input, as a Markdown table."""
        rows: List[List[Any]] = []
        kinds = sorted({line["input"].split()[0] for line in self.record.lines})
        for kind in kinds:
            lines = [x for x in self.record.lines if x["input"].split()[0] == kind]
            wrong = [sum(x["outcome"] == o for x in lines) for o in ("silent", "traceback", "hang")]
            rows.append([kind, len(lines), *wrong])
        rows.append(["all", *(sum(row[k] for row in rows) for k in range(1, 5))])
        return table(["input", "calls", "silent", "tracebacks", "hangs"], rows)


def _flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 2, 8))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def outcome_of(code: int, text: str, may_be_good: bool) -> str:
    """What a call ended in; those of `FINE` are as they have to be."""
    if code < 0:
        return "hang"
    if "Traceback (most recent call last)" in text:
        return "traceback"
    if code == 0:
        return "unharmed" if may_be_good else "silent"
    return "usage" if code == 2 else "sentence"


def _call_here(words: str, folder: Path) -> int:
    os.chdir(folder)
    from d2ext.cli import main

    return main(words.split())


def _call(words: str, folder: Path) -> Tuple[int, str]:
    """Exit code, or minus a signal after the time limit, and all that was printed."""
    log = folder / "said.txt"
    pid = os.fork()
    if pid == 0:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        live_in_a_fork(output, lambda: _call_here(words, folder))
    deadline = time.monotonic() + SECONDS
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
