"""Kinds of bad data, what each does to a training, and what is done about it."""

import logging
from collections import defaultdict
from typing import Callable, Dict, Iterable, List, NamedTuple, Sequence

from detectron2.utils.logger import log_first_n

from d2ext._files import RunError

__all__ = ["BAD_ANNOTATIONS", "KINDS", "BadDataError", "Kind", "Problem", "group", "settle"]

logger = logging.getLogger(__name__)

#: Values of DATALOADER.BAD_ANNOTATIONS.
BAD_ANNOTATIONS = ("skip", "refuse")


class BadDataError(RunError, ValueError):
    """Input that cannot be trained on as it is; names file, entry and what to change."""


class Kind(NamedTuple):
    """What is known of a kind.

    Attributes:
        level: "refuse" (always an error), "skip" (left out of the training, counted and printed,
            or an error, as DATALOADER.BAD_ANNOTATIONS says) or "note" (used, counted and printed).
        harm: what it does to a training in plain Detectron2.
        advice: what to change.
    """

    level: str
    harm: str
    advice: str


# "skip" has what well-known data sets do contain (COCO has boxes of zero height); "refuse" has
# signs of a broken file or converter, where other entries cannot be trusted either.
#: Kind of problem -> what is known of it, the worst first.
KINDS: Dict[str, Kind] = {
    "broken entry": Kind("refuse", "loading fails, or a value is misread", "correct the entry"),
    "broken split": Kind("refuse", "images are lost or misread silently", "correct the list"),
    "broken XML": Kind("refuse", "loading fails without naming the file", "repair the file"),
    "duplicate image id": Kind(
        "refuse",
        "one of the images is lost and the other gets its objects",
        "give every image an id of its own, and list it once",
    ),
    "duplicate id": Kind(
        "refuse", "loading fails, or evaluation counts one of them", "renumber the entries"
    ),
    "duplicate class id": Kind(
        "refuse", "one of the classes is lost", "give every class an id of its own"
    ),
    "same class name": Kind(
        "note", "plain Detectron2 tells one AP for both", "give every class a name of its own"
    ),
    "unknown class": Kind(
        "refuse",
        "loading fails, or a label without meaning is learnt",
        "add the class to the data set's classes, or remove the object",
    ),
    "malformed box": Kind("refuse", "the data loader fails", "write four numbers"),
    "not finite": Kind("refuse", "the object is dropped, or losses become NaN", "correct the box"),
    "relative box": Kind(
        "refuse",
        "all objects become specks in the corner",
        "multiply the boxes by width and height of their images",
    ),
    "far outside": Kind(
        "refuse",
        "the box is clipped to something else",
        "check box, box format and image size",
    ),
    "wrong mask size": Kind(
        "refuse", "the data loader fails, or the mask is misplaced", "encode the mask again"
    ),
    "broken mask": Kind(
        "refuse", "the decoded mask holds random memory", "encode the mask again"
    ),
    "no annotations": Kind("refuse", "there is nothing to learn", "annotate some images"),
    "missing file": Kind(
        "refuse",
        "the data loader fails when it comes to this image",
        "put the file there, or correct file name or image folder",
    ),
    "unreadable file": Kind(
        "refuse", "the data loader fails when it comes to this image", "replace the file"
    ),
    "wrong image size": Kind(
        "refuse",
        "the data loader fails when it comes to this image",
        "correct width and height, and see whether the boxes fit",
    ),
    "deep pixels": Kind(
        "refuse", "values above 255 are clipped: most of the image turns white",
        "scale the image to 8 bits",
    ),
    "no such image": Kind(
        "skip", "the object is never seen", "add the image, or remove the annotation"
    ),
    "zero area": Kind("skip", "the object is dropped silently", "correct or remove the box"),
    "outside": Kind("skip", "the object is dropped silently", "correct or remove the box"),
    "short polygon": Kind(
        "skip", "the object is dropped", "give three points or more, x and y each"
    ),
    "short polygon piece": Kind(
        "skip", "this piece of the object is dropped silently",
        "give three points or more, x and y each",
    ),
    "no mask": Kind(
        "skip",
        "the data loader fails when it comes to this image",
        "draw the mask, or set MODEL.MASK_ON False",
    ),
    "broken area": Kind(
        "note", "plain COCO counts by size wrongly or fails; here the box's area is taken",
        "write the area as a number, or leave it out",
    ),
    "partly outside": Kind("note", "the box is clipped to the image", "check the box"),
    "near-duplicate across splits": Kind(
        "note", "figures on one split are too good: the other knows its images",
        "keep them on one side, as 'd2ext data split' does",
    ),
    "class absent from a split": Kind(
        "note", "the class is not learnt, or not measured", "split again, by class"
    ),
    "near-duplicate box": Kind(
        "note", "one object counts twice, and one of the two is always missed", "remove one"
    ),
    "looks unlabelled": Kind(
        "note", "objects in it are learnt as background", "label it, or take it out"
    ),
    "tiny object": Kind(
        "note", "it is smaller than what a detector sees", "use larger images, or tiles"
    ),
    "near-duplicate image": Kind("note", "the image counts twice", "remove one"),
    "same file twice": Kind(
        "note", "the image is seen twice, each time with its entry's objects", "list it once"
    ),
    "turned by EXIF": Kind(
        "note", "the image is turned as its EXIF tag says before boxes are used",
        "see whether the boxes fit the turned image",
    ),
    "alpha channel": Kind(
        "note", "transparency is ignored", "see how the image looks without it"
    ),
}  # fmt: skip


class Problem(NamedTuple):
    """One finding: its kind, the file (an image's, where there is one) and what was seen."""

    kind: str
    file: str
    detail: str


def group(problems: Iterable[Problem]) -> Dict[str, List[Problem]]:
    """Problems by kind, in the order of :data:`KINDS`."""
    by_kind: Dict[str, List[Problem]] = defaultdict(list)
    for problem in problems:
        by_kind[problem.kind].append(problem)
    order: Callable[[str], int] = list(KINDS).index
    return {kind: by_kind[kind] for kind in sorted(by_kind, key=order)}


def settle(
    problems: Sequence[Problem], source: str, *, bad_annotations: str = "skip", done: str = ""
) -> None:
    """Refuse what has to be refused, and say once what else there is.

    Args:
        problems: all findings of one source.
        source: what was looked at: a file, or a data set's name.
        bad_annotations: one of :data:`BAD_ANNOTATIONS`.
        done: what the caller does with problems of the level "skip", for the log.
    """
    refused, told = [], []
    for kind, found in group(problems).items():
        level = KINDS[kind].level
        if level == "refuse" or (level == "skip" and bad_annotations == "refuse"):
            refused.append((kind, found))
        else:
            told.append(_sentence(kind, found) + (f"; {done}" if level == "skip" else ""))
    if refused:
        kind, found = refused[0]
        others = "".join(f", and {len(rest)} x {name}" for name, rest in refused[1:])
        raise BadDataError(
            f"{source}: {_sentence(kind, found)}{others}; {KINDS[kind].advice}. "
            "All of it is listed by 'd2ext data check'."
        )
    for line in told:
        # Once a process: the loader of a run is built several times by some hooks.
        log_first_n(logging.WARNING, f"{source}: {line}.", key="message", name=logger.name)


def _sentence(kind: str, found: List[Problem]) -> str:
    first = f"{found[0].file}: {found[0].detail}"
    return f"{len(found)} x {kind} ({'the first: ' if len(found) > 1 else ''}{first})"
