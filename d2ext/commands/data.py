"""``d2ext data``: make, convert, check and count data sets."""

import argparse
import os
from pathlib import Path
from typing import Any, Dict, List, Tuple

from .._arguments import at_least, share
from .._files import RunError
from .._text import printable
from .common import (
    Done,
    add_dataset_argument,
    add_output_argument,
    default_output,
    new_group,
    new_parser,
    require_data,
    write_json,
)

__all__ = ["add_data"]

_REFUSED = "the set as a whole, before what is refused is corrected"


def add_data(commands: Any) -> None:
    """``d2ext data import|split|shapes|voc2coco|check|stats``."""
    kinds = new_group(
        commands, "data", "make, convert, check and count data sets", "d2ext data stats train.json"
    )
    _add_import(kinds)
    _add_split(kinds)
    _add_tile(kinds)
    _add_shapes(kinds)
    _add_voc2coco(kinds)
    _add_check(kinds)
    _add_stats(kinds)


def _add_import(kinds: Any) -> None:
    parser = new_parser(
        kinds,
        "import",
        "read labelled images of any form and write them as COCO JSON files and a data.yaml",
        "d2ext data import my_photos my_photos_coco",
    )
    _add_own_data(parser, "where there are no splits: ")
    parser.set_defaults(func=run_import, resplit=False)


def _add_split(kinds: Any) -> None:
    parser = new_parser(
        kinds,
        "split",
        "distribute labelled images to new splits, by class, near-duplicates on one side",
        "d2ext data split my_photos my_splits --split 0.7,0.2,0.1",
    )
    _add_own_data(parser, "")
    parser.set_defaults(func=run_import, resplit=True)


def _add_own_data(parser: argparse.ArgumentParser, when: str) -> None:
    parser.add_argument("path", metavar="PATH", help="a folder, a data.yaml or a COCO JSON")
    parser.add_argument("out", metavar="OUT", type=Path, help="a new folder; images are not copied")
    parser.add_argument(
        "--split",
        default=None,
        metavar="SHARE",
        help=f"{when}share of training images (default: 0.8), or shares of training, validation "
        "and test images such as 0.7,0.2,0.1",
    )


def _add_tile(kinds: Any) -> None:
    parser = new_parser(
        kinds,
        "tile",
        "say what tiles of large images would show, for DATASETS.TILES",
        "d2ext data tile my_photos --side 640 --overlap 0.2",
    )
    parser.add_argument("path", metavar="PATH", help="a folder, a data.yaml or a COCO JSON")
    parser.add_argument(
        "--side", type=at_least(32), default=640, help="of a tile, in pixels (default: 640)"
    )
    parser.add_argument(
        "--overlap", type=share, default=0.2, help="of neighbours, below 1 (default: 0.2)"
    )
    parser.set_defaults(func=run_tile)


def _add_shapes(kinds: Any) -> None:
    parser = new_parser(
        kinds,
        "shapes",
        "draw a data set of shapes, to try a training without any download",
        "d2ext data shapes --form coco --train 200 --val 50 --output my_shapes",
    )
    parser.add_argument("--form", choices=("coco", "lvis", "voc"), default="coco")
    parser.add_argument(
        "--train", type=at_least(1), default=200, help="training images (default: 200)"
    )
    parser.add_argument(
        "--val", type=at_least(0), default=50, help="validation images (default: 50)"
    )
    parser.add_argument("--classes", type=at_least(1), default=20, help="1 to 60 (default: 20)")
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="another seed gives other images"
    )
    add_output_argument(parser, "shapes")
    parser.set_defaults(func=run_shapes)


def _add_voc2coco(kinds: Any) -> None:
    parser = new_parser(
        kinds,
        "voc2coco",
        "convert Pascal VOC's XML files into one COCO JSON file",
        "d2ext data voc2coco VOCdevkit/VOC2012 --split trainval --output converted",
    )
    parser.add_argument("folder", metavar="FOLDER", help="with Annotations and ImageSets/Main")
    parser.add_argument("--split", help="a file in ImageSets/Main; all images if not given")
    parser.add_argument("--classes", nargs="+", help="class names in the order of their ids")
    parser.add_argument(
        "--difficult",
        choices=("keep", "crowd", "drop"),
        default="keep",
        help="objects marked difficult (default: keep)",
    )
    add_output_argument(parser, "voc2coco")
    parser.set_defaults(func=run_voc2coco)


def _add_check(kinds: Any) -> None:
    parser = new_parser(
        kinds,
        "check",
        "count bad annotations and images: zero area, outside, NaN, unknown class, missing file",
        "d2ext data check d2ext_shapes_train",
    )
    add_dataset_argument(parser)
    parser.add_argument("--image-root", help="folder of the images, if DATA is a file")
    parser.add_argument(
        "--longest",
        type=at_least(32),
        default=640,
        help="longer side that images are resized to, to tell tiny objects (default: 640)",
    )
    add_output_argument(parser, "data_check")
    parser.set_defaults(func=run_check)


def _add_stats(kinds: Any) -> None:
    parser = new_parser(
        kinds, "stats", "count and draw classes, objects and sizes", "d2ext data stats train.json"
    )
    add_dataset_argument(parser)
    add_output_argument(parser, "data_stats")
    parser.set_defaults(func=run_stats)


def run_import(args: argparse.Namespace) -> Done:
    from ..data.checks.kinds import group
    from ..data.own import write_own_data
    from ..data.sources import parse_shares, read_data

    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise RunError(f"{args.out} already exists; give a new folder.")
    data = read_data(args.path, parse_shares(args.split), resplit=args.resplit)
    write_own_data(data, str(args.out))
    print(f"{data.form}, {len(data.classes)} classes: {', '.join(data.classes[:20])}")
    counts = {
        split: {"images": len(content["images"]), "objects": len(content["annotations"])}
        for split, content in data.splits.items()
    }
    for split, count in counts.items():
        print(f"{split}: {count['images']} images, {count['objects']} objects")
    for note in data.notes:
        print(f"Note: {note}.")
    left_out = group(data.problems)
    for kind, problems in left_out.items():
        print(f"Left out: {len(problems)} x {kind}, the first in {printable(problems[0].file)}.")
    print(f"Train with: d2ext train --data {args.out / 'data.yaml'}")
    found = {
        "form": data.form,
        "classes": data.classes,
        "splits": counts,
        "notes": data.notes,
        "left_out": {kind: len(problems) for kind, problems in left_out.items()},
    }
    return Done(found, [args.out])


def run_tile(args: argparse.Namespace) -> Done:
    from detectron2.data import DatasetCatalog

    from ..data.own import register_own_data
    from ..data.tiles import tiles_of

    data = register_own_data(args.path)
    dicts = DatasetCatalog.get(data.names["train"])
    tiles = tiles_of(dicts, args.side, args.overlap, keep_empty=True)
    shown = sum(len(tile["annotations"]) for tile in tiles)
    objects = sum(len(item["annotations"]) for item in dicts)
    found = {
        "images": len(dicts),
        "tiles": len(tiles),
        "tiles_with_objects": sum(bool(tile["annotations"]) for tile in tiles),
        "objects": objects,
        "objects_in_tiles": shown,
    }
    print(
        f"{found['images']} training images of {objects} objects give {found['tiles']} tiles, "
        f"{found['tiles_with_objects']} of them with objects; an object is in "
        f"{shown / max(objects, 1):.2f} tiles on average."
    )
    print(
        f'Train with: d2ext train --data {args.path} DATASETS.TILES "[{args.side}, {args.overlap}]"'
    )
    return Done(found)


def run_shapes(args: argparse.Namespace) -> Done:
    from ..data.shapes import ShapesSpec, common_classes, long_tail_classes, write_dataset

    pool = common_classes() if args.classes <= 20 else long_tail_classes()
    if args.classes > len(pool):
        raise RunError(f"--classes must be 1 to {len(pool)}.")
    output = default_output(args.output, "shapes", args.form)
    if any(output.iterdir()):
        raise RunError(f"{output} is not empty; give another folder with --output.")
    spec = ShapesSpec(
        folder=output.name,
        form=args.form,
        classes=tuple(pool[: args.classes]),
        splits=(("train", args.train), ("val", args.val)),
        # LVIS' form takes its frequencies from the order of the classes.
        ranks=tuple(range(args.classes)) if args.form == "lvis" else (),
        seed=args.seed,
    )
    write_dataset(spec, str(output))
    print(f"Drew {args.train} and {args.val} images.")
    return Done({"train": args.train, "val": args.val}, [output])


def run_voc2coco(args: argparse.Namespace) -> Done:
    from ..data.voc_to_coco import voc_to_coco

    output = default_output(args.output, "voc2coco", args.folder)
    data = voc_to_coco(Path(args.folder), args.split, args.classes, args.difficult)
    path = write_json(output / f"instances_{args.split or 'all'}.json", data)
    counts = {key: len(data[key]) for key in ("images", "annotations", "categories")}
    told = ", ".join(f"{count} {key}" for key, count in counts.items())
    print(f"{told}; the images stay in {Path(args.folder) / 'JPEGImages'}.")
    return Done(counts, [path])


def run_check(args: argparse.Namespace) -> Done:
    from ..analysis.annotation_check import KINDS, MILD, summarize_problems

    output = default_output(args.output, "data_check", args.dataset)
    problems, skipped = _problems(args)
    summary = summarize_problems(problems)
    for kind, row in summary.items():
        print(f"{row['count']} x {kind} in {row['files']} files: {KINDS[kind]}.")
        for example in row["examples"]:
            print(f"    {printable(example)}")
    if not summary:
        print("No bad annotation.")
    if skipped:
        print(f"Not checked: {'; '.join(map(printable, skipped))}.")
    path = write_json(output / "check.json", summary)
    code = 1 if set(summary) - set(MILD) else 0
    return Done({"problems": summary, "not_checked": skipped}, [path], code=code)


def _problems(args: argparse.Namespace) -> Tuple[List[Any], List[str]]:
    """All findings, and what was not checked."""
    from ..analysis.annotation_check import MAX_OPENED, check_coco
    from ..analysis.doctor import data_problems
    from ..analysis.set_check import Split, check_sets
    from ..data.checks.json_text import read_json
    from ..data.own import register_own_data
    from ..evaluation.sources import annotation_source

    name, root = args.dataset, args.image_root
    found: List[Any] = []
    notes: List[str] = []
    if os.path.isdir(name) or name.endswith((".yaml", ".yml", ".csv")):
        data = register_own_data(name)
        found, notes = list(data.problems), list(data.notes)
        root = data.root
        paths = {split: os.path.join(data.folder, f"{split}.json") for split in data.names}
        splits = [Split(split, read_json(path), root) for split, path in paths.items()]
        for split in splits:
            found += check_coco(split.data, root, path=paths[split.name])
    elif os.path.isfile(name):
        splits = [Split(Path(name).stem, read_json(name), root or "")]
        found += check_coco(splits[0].data, root, path=name)
    else:
        require_data([name])
        found += data_problems(name)
        if _is_refused(found):
            return found, [_REFUSED]
        splits = [Split(name, annotation_source(name), _image_root(name))]
    for note in notes:
        print(f"Note: {printable(note)}.")
    if _is_refused(found):
        return found, [_REFUSED]
    more, skipped = check_sets(splits, args.longest)
    images = sum(len(split.data["images"]) for split in splits)
    if images > MAX_OPENED:
        skipped.append(f"the headers of {images - MAX_OPENED} of {images} image files")
    return found + more, skipped


def _is_refused(problems: List[Any]) -> bool:
    from ..data.checks import KINDS

    return any(KINDS[problem.kind].level == "refuse" for problem in problems)


def _image_root(name: str) -> str:
    from detectron2.data import MetadataCatalog

    return MetadataCatalog.get(name).get("image_root") or ""


def run_stats(args: argparse.Namespace) -> Done:
    from ..analysis.data_stats import data_stats, draw_stats
    from ..evaluation.sources import annotation_source

    output = default_output(args.output, "data_stats", args.dataset)
    data: Dict[str, Any] = annotation_source(args.dataset)
    stats = data_stats(data)
    picture = output / "stats.png"
    draw_stats(stats, data, Path(args.dataset).name, picture)
    for key in ("images", "images_without_objects", "objects", "crowds"):
        print(f"{key.replace('_', ' '):24}{stats[key]}")
    groups = ", ".join(f"{v} {k}" for k, v in stats["frequency_groups"].items())
    sizes = ", ".join(f"{v} {k}" for k, v in stats["sizes"].items())
    print(f"{'classes':24}{len(stats['classes'])} ({groups})")
    print(f"{'objects by size':24}{sizes}")
    return Done(stats, [write_json(output / "stats.json", stats), picture])
