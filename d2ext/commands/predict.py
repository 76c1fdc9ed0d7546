"""``d2ext predict``: detections of files, folders, globs, videos and addresses of the web.

They are written as pictures, as COCO JSON, as YOLO text and as CSV.
"""

import argparse
import csv
import glob
import itertools
import json
import mimetypes
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple

from .._arguments import at_least, share_or_auto
from .._files import RunError, reason_of, sentence_of, writing
from .._text import printable_lines
from .common import Done, add_model_arguments, new_parser

__all__ = ["add_predict", "coco_records", "fetch", "find_inputs", "run_predict"]

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm"}
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}


def add_predict(commands) -> None:
    """``d2ext predict``."""
    parser = new_parser(
        commands,
        "predict",
        "run a trained detector on images and videos",
        "d2ext predict --weights output/model_final.pth photos/ --output predictions",
        'd2ext predict --weights output/model_final.pth "more/*.jpg" clip.mp4 --threshold 0.5',
    )
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="file, folder, glob, video or http(s) address"
    )
    add_model_arguments(parser)
    parser.add_argument("--output", default="predictions", metavar="DIR", help="where to write")
    parser.add_argument(
        "--threshold",
        type=share_or_auto,
        default=0.3,
        metavar="SCORE",
        help="least score (default 0.3); auto: for each class the score with the highest F1, which "
        "the last evaluation or 'd2ext val' left beside the checkpoint",
    )
    parser.add_argument(
        "--calibrated",
        action="store_true",
        help="scores are probabilities of being right, as 'd2ext calibrate' has fitted them",
    )
    parser.add_argument(
        "--batch-size", type=at_least(1), default=4, help="images at a time (default 4)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; by default the config's")
    parser.add_argument("--no-pictures", action="store_true", help="draw no pictures and videos")
    parser.add_argument(
        "--yolo",
        action="store_true",
        help="also labels/NAME.txt: class, centre and size as shares of the image, score",
    )
    parser.add_argument(
        "--csv", action="store_true", help="also predictions.csv, a row a detection"
    )
    parser.set_defaults(func=run_predict)


def find_inputs(inputs: List[str]) -> Tuple[List[Path], List[Path]]:
    """Images and videos that files, folders and globs name, each once, in order.

    Raises:
        FileNotFoundError: an input names nothing that can be read
    """
    images: Dict[Path, None] = {}
    videos: Dict[Path, None] = {}
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.is_file())
        elif path.is_file():
            found = [path]
        else:
            found = sorted(Path(p) for p in glob.glob(text, recursive=True) if Path(p).is_file())
        known = [p for p in found if p.suffix.lower() in IMAGES | VIDEOS]
        if not known:
            raise FileNotFoundError(
                f"'{text}' names no image or video; give files, folders or a quoted glob of "
                f"{', '.join(sorted(IMAGES | VIDEOS))}."
            )
        for p in known:
            (videos if p.suffix.lower() in VIDEOS else images)[p] = None
    return list(images), list(videos)


def fetch(inputs: Sequence[str], folder: str) -> Dict[str, str]:
    """Inputs with the addresses among them downloaded: where each one is -> its name.

    Raises:
        OSError: an address cannot be read.
    """
    from urllib.request import urlopen

    found: Dict[str, str] = {}
    for text in inputs:
        if not text.lower().startswith(("http://", "https://")):
            found[text] = text
            continue
        name = Path(text.split("?")[0].split("#")[0]).name or "image"
        try:
            with urlopen(text, timeout=30) as answer:
                if Path(name).suffix.lower() not in IMAGES | VIDEOS:
                    name += mimetypes.guess_extension(answer.headers.get_content_type()) or ""
                place = Path(folder) / str(len(found)) / name
                place.parent.mkdir()
                with open(place, "wb") as stream:
                    shutil.copyfileobj(answer, stream)
        except (OSError, ValueError) as error:  # urllib's among them
            raise OSError(
                f"{text} cannot be fetched ({reason_of(error)}); correct the address, or where "
                "there is no network name a file."
            ) from error
        found[str(place)] = text
    return found


def coco_records(instances: Any, image_id: int, first_id: int) -> List[Dict[str, Any]]:
    """Detections of an image as COCO annotations with a score; a class is its index plus 1."""
    boxes = instances.pred_boxes.tensor.tolist()
    records = []
    for k, (x1, y1, x2, y2) in enumerate(boxes):
        record = {
            "id": first_id + k,
            "image_id": image_id,
            "category_id": int(instances.pred_classes[k]) + 1,
            "bbox": [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)],
            "area": round((x2 - x1) * (y2 - y1), 3),
            "iscrowd": 0,
            "score": round(float(instances.scores[k]), 5),
        }
        if instances.has("pred_masks"):
            record["segmentation"] = _rle(instances.pred_masks[k].numpy())
        records.append(record)
    return records


def run_predict(args: argparse.Namespace) -> Done:
    with tempfile.TemporaryDirectory() as folder:
        return _predict(fetch(args.inputs, folder), args)


def _predict(inputs: Dict[str, str], args: argparse.Namespace) -> Done:
    from d2ext import Predictor

    output = Path(args.output)
    try:
        images, videos = find_inputs(list(inputs))
        if not args.no_pictures:
            _refuse_own_folder(output, [*images, *videos])
        predictor = Predictor(
            args.config_file,
            args.weights,
            device=args.device,
            score_thresh=args.threshold,
            calibrated=args.calibrated,
            batch_size=args.batch_size,
            allow_pickle=args.allow_pickle,
        )
        with writing(output):
            output.mkdir(parents=True, exist_ok=True)
        names = {Path(place): name for place, name in inputs.items() if place != name}
        report = _Report(
            predictor.class_names,
            output,
            pictures=not args.no_pictures,
            yolo=args.yolo,
            names=names,
        )
        failed = _predict_images(predictor, images, report, args)
        for path in videos:
            try:
                _predict_video(predictor, path, report, args.quiet)
            except OSError as error:
                failed.append(_failure(error))
    except (KeyError, ValueError) as error:
        raise RunError(sentence_of(error)) from error
    files = [report.write(), *([report.write_csv()] if args.csv else [])]
    print(f"{len(report.annotations)} detections in {len(report.images)} images.")
    if not args.no_pictures:
        print(f"Pictures are in {output}.")
    found = {"images": len(report.images), "detections": len(report.annotations), "failed": failed}
    return Done(found, files, code=1 if failed else 0)


def _refuse_own_folder(output: Path, inputs: List[Path]) -> None:
    """Pictures beside their sources could replace them, and would be inputs of the next call."""
    if output.resolve() in {path.resolve().parent for path in inputs}:
        raise RunError(
            f"{output} is a folder of inputs, and pictures would be written over them; give "
            "another --output, or --no-pictures for the JSON file alone."
        )


def _predict_images(
    predictor: Any, images: List[Path], report: "_Report", args: argparse.Namespace
) -> List[str]:
    """Predict images in batches; returns a sentence on each one that cannot be read."""
    from tqdm import tqdm

    failed = []
    with tqdm(total=len(images), unit="image", disable=args.quiet or not images) as bar:
        for start in range(0, len(images), args.batch_size):
            batch = images[start : start + args.batch_size]
            try:
                outputs: List[Optional[Dict[str, Any]]] = predictor([str(p) for p in batch])
            except (OSError, ValueError):  # one of them is not an image; the others are predicted
                outputs = []
                for path in batch:
                    try:
                        outputs.append(predictor(str(path)))
                    except (OSError, ValueError) as error:
                        outputs.append(None)
                        failed.append(_failure(error))
            for path, found in zip(batch, outputs):
                if found is not None:
                    report.add_image(path, found["instances"])
            bar.update(len(batch))
    return failed


def _failure(error: Exception) -> str:
    """Say which input cannot be read, also with --quiet: the others are predicted all the same."""
    print(printable_lines(error), file=sys.stderr)
    return str(error)


class _Report:
    """Collects detections, and writes pictures as they come."""

    def __init__(
        self,
        class_names: List[str],
        output: Path,
        pictures: bool,
        yolo: bool = False,
        names: Optional[Dict[Path, str]] = None,
    ):
        self.class_names, self.output = class_names, output
        self.pictures, self.yolo, self.names = pictures, yolo, names or {}
        self.images: List[Dict[str, Any]] = []
        self.annotations: List[Dict[str, Any]] = []
        self._taken: Set[str] = set()

    def add(self, path: Path, instances: Any, **more: Any) -> None:
        height, width = instances.image_size
        name = self.names.get(path, str(path))
        record = {"id": len(self.images) + 1, "file_name": name, **more}
        self.images.append({**record, "height": height, "width": width})
        found = coco_records(instances, record["id"], len(self.annotations) + 1)
        self.annotations += found
        if self.yolo:
            stem = f"{path.stem}_{more['frame']:06d}" if "frame" in more else path.stem
            file = self.free_name(stem, ".txt")
            with writing(file):
                file.parent.mkdir(exist_ok=True)
                file.write_text("".join(_yolo_line(row, width, height) for row in found))

    def add_image(self, path: Path, instances: Any) -> None:
        self.add(path, instances)
        if self.pictures:
            from d2ext.analysis.drawing import draw_instances
            from d2ext.predictor import as_bgr

            rgb = as_bgr(path)[:, :, ::-1]
            draw_instances(rgb, instances, self.class_names).save(self.free_name(path.stem, ".png"))

    def free_name(self, stem: str, suffix: str) -> Path:
        """A name in the output folder; files of one name in two folders both have a place."""
        names = itertools.chain([stem], (f"{stem}_{count}" for count in itertools.count(2)))
        # Upper and lower case are the same to some file systems.
        name = next(name for name in names if f"{name}{suffix}".lower() not in self._taken)
        self._taken.add(f"{name}{suffix}".lower())
        folder = self.output / "labels" if suffix == ".txt" else self.output
        return folder / f"{name}{suffix}"

    def write(self) -> Path:
        categories = [{"id": k + 1, "name": name} for k, name in enumerate(self.class_names)]
        file = self.output / "predictions.json"
        data = {
            "images": self.images,
            "categories": categories,
            "annotations": self.annotations,
        }
        with writing(file):
            file.write_text(json.dumps(data), encoding="utf-8")
        return file

    def write_csv(self) -> Path:
        file = self.output / "predictions.csv"
        with writing(file), open(file, "w", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream)
            table.writerow(("file", "frame", "class", "name", "score", "x1", "y1", "x2", "y2"))
            for row in self.annotations:
                image, k = self.images[row["image_id"] - 1], row["category_id"] - 1
                x, y, w, h = row["bbox"]
                box = (round(v, 3) for v in (x, y, x + w, y + h))
                place = (image["file_name"], image.get("frame", ""))
                table.writerow((*place, k, self.class_names[k], row["score"], *box))
        return file


def _yolo_line(row: Dict[str, Any], width: int, height: int) -> str:
    x, y, w, h = row["bbox"]
    shares = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
    numbers = " ".join(f"{share:.6f}" for share in shares)
    return f"{row['category_id'] - 1} {numbers} {row['score']:.5f}\n"


def _predict_video(predictor: Any, path: Path, report: _Report, quiet: bool) -> None:
    import numpy as np
    from tqdm import tqdm

    from d2ext.analysis.drawing import draw_instances

    cv2 = _opencv()
    video = cv2.VideoCapture(str(path))
    if not video.isOpened():
        raise OSError(f"OpenCV cannot open {path}; convert it to a format that it reads.")
    writer, number = None, 0
    count = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    try:
        with tqdm(total=max(count, 0) or None, unit="frame", desc=path.name, disable=quiet) as bar:
            for frames in _frames(video, predictor.batch_size):
                for frame, found in zip(frames, predictor(frames)):
                    report.add(path, found["instances"], frame=number)
                    number += 1
                    if not report.pictures:
                        continue
                    if writer is None:
                        writer = _writer(cv2, report.free_name(path.stem, ".mp4"), video, frame)
                    picture = draw_instances(
                        frame[:, :, ::-1], found["instances"], report.class_names
                    )
                    writer.write(np.ascontiguousarray(np.asarray(picture)[:, :, ::-1]))
                bar.update(len(frames))
    finally:
        video.release()
        if writer is not None:
            writer.release()


def _frames(video: Any, count: int) -> Iterator[List[Any]]:
    frames: List[Any] = []
    while True:
        read, frame = video.read()
        if read:
            frames.append(frame)
        if frames and (len(frames) == count or not read):
            yield frames
            frames = []
        if not read:
            return


def _writer(cv2: Any, file: Path, video: Any, frame: Any) -> Any:
    size = (frame.shape[1], frame.shape[0])
    rate = video.get(cv2.CAP_PROP_FPS) or 25.0
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"mp4v"), rate, size)
    if not writer.isOpened():
        raise OSError(f"OpenCV has no codec for {file.name}; use --no-pictures for the JSON alone.")
    return writer


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise OSError("Videos need OpenCV; run 'pip install opencv-python-headless'.") from error
    return cv2


def _rle(mask: Any) -> Dict[str, Any]:
    import numpy as np
    import pycocotools.mask as mask_util

    code = mask_util.encode(np.asfortranarray(mask.astype("uint8")))
    return {"size": [int(n) for n in code["size"]], "counts": code["counts"].decode()}
