"""Kinds of bad data: how to spoil one thing in a good data set, and what has to come of it."""

import json
import struct
import zlib

import numpy as np
from bad_data_kit import HEIGHT, IMAGES, WIDTH, pixels
from PIL import Image

KINDS_OF_BAD_DATA = {}


def kind(name, form, outcome, words="", found="", left=2 * IMAGES, options=()):
    """Register how to spoil a data set.

    Args:
        name: what is wrong.
        form: "coco", "lvis" or "voc".
        outcome: "refuse" when loaded, "sample" (refused when the image is read), "skip", "note"
            or "right".
        words: part of the error or of the line in the log.
        found: the kind that ``d2ext data check`` reports; "" for none, None if it is refused there
            with the same words.
        left: objects that remain.
        options: of the config.
    """

    def register(spoil):
        KINDS_OF_BAD_DATA[f"{form}: {name}"] = (form, spoil, outcome, words, found, left, options)
        return spoil

    return register


def edit(title, outcome, words, found, rows, index, form="coco", left=2 * IMAGES, **values):
    """A kind that changes fields of one entry; a value of ... takes the field away."""

    @kind(title, form, outcome, words, found, left)
    def spoil(data_set):
        row = data_set.data[rows][index]
        row.update(values)
        for key in [key for key, value in values.items() if value is ...]:
            del row[key]


def text(name, words, content, form="coco"):
    @kind(name, form, "refuse", words, None)
    def spoil(data_set):
        data_set.file.write_bytes(content)


def picture(name, outcome, words, found, save, form="coco", options=()):
    @kind(name, form, outcome, words, found, options=options)
    def spoil(data_set):
        save(data_set.first)


def xml(name, outcome, words, found, old, new, left=2 * IMAGES):
    @kind(name, "voc", outcome, words, found, left)
    def spoil(data_set):
        data_set.change_xml(old, new)


def split(name, outcome, words, found, content):
    @kind(name, "voc", outcome, words, found)
    def spoil(data_set):
        data_set.file.write_text(content)


# ------------------------------------------------------------------ the file itself
text("not JSON", r"annotations.json is not JSON: line 1, column 1", b"<html></html>")
text("cut off", r"annotations.json is not JSON: .*cut off", b'{"images": [{"id": 1')
text("empty", r"annotations.json is not JSON", b"")
text("not text", r"annotations.json is not JSON: .*save it as UTF-8", b'{"a": "\xff\xfe\xff"}')
text("a list", r"annotations.json holds a list, as results are", b"[]")
text("a number", r"annotations.json holds a int", b"3")
text("another shape", r"annotations.json has no 'images'", b'{"frames": []}')
text("no categories", r"has no 'categories'", b'{"images": [{"id": 1}], "annotations": []}')
text("no images", r"'images' is empty", b'{"images": [], "annotations": [], "categories": []}')
text("images no list", r"'images' is not a list", b'{"images": {}, "categories": []}')


@kind("Windows' UTF-16", "coco", "right")
def spoil(data_set):
    data_set.file.write_text(json.dumps(data_set.data), encoding="utf-16")


# ------------------------------------------------------------------ images of a JSON file
BROKEN = "broken entry"
edit("image without id", "refuse", "image number 0 of the list has no 'id'", BROKEN, "images", 0,
     id=...)  # fmt: skip
edit("image without name", "refuse", "image id 1 has no 'file_name'", BROKEN, "images", 0,
     file_name=...)  # fmt: skip
edit("image without size", "refuse", "image id 1 has width None", BROKEN, "images", 0, width=...)
edit("width as text", "refuse", "image id 1 has width '40'", BROKEN, "images", 0, width="40")
edit("height 0", "refuse", "image id 1 has .*height 0", BROKEN, "images", 0, height=0)
edit("ids of two types", "refuse", "image id 2 has no 'id', or one of another type", BROKEN,
     "images", 1, id="2")  # fmt: skip
edit("file twice", "note", "0.jpg: image id 2 and image id 1", "same file twice", "images", 1,
     file_name="0.jpg")  # fmt: skip
edit("missing file", "refuse", "gone.jpg: no such file", "missing file", "images", 0,
     file_name="gone.jpg")  # fmt: skip
edit("wrong size", "sample", r"0.jpg.* got \(40, 30\), expect \(41, 30\)", "wrong image size",
     "images", 0, width=WIDTH + 1)  # fmt: skip


@kind(
    "image id twice", "coco", "refuse", "1.jpg: image id 1 is that of 0.jpg", "duplicate image id"
)
def spoil_image_ids(data_set):
    data_set.data["images"].append({**data_set.data["images"][1], "id": 1})


# ------------------------------------------------------------------ classes and annotations
@kind("class id twice", "coco", "refuse", "category id 1", "duplicate class id")
def spoil_class_ids(data_set):
    data_set.data["categories"].append({"id": 1, "name": "cow"})


edit("class without name", "refuse", "category id 2 has no 'name'", BROKEN, "categories", 1,
     name=...)  # fmt: skip
edit("annotation id twice", "refuse", "annotation id 1", "duplicate id", "annotations", 1, id=1)
edit("annotation without id", "refuse", "annotation number 1 of the list has no 'id'", BROKEN,
     "annotations", 1, id=...)  # fmt: skip
edit("unknown image", "skip", "image id 99: annotation id 2", "no such image", "annotations", 1,
     image_id=99, left=7)  # fmt: skip
edit("unknown class", "refuse", "0.jpg: annotation id 2: category id 9", "unknown class",
     "annotations", 1, category_id=9)  # fmt: skip
edit("class id as text", "refuse", "category id '2'", "unknown class", "annotations", 1,
     category_id="2")  # fmt: skip
edit("crowd as text", "refuse", "annotation id 2 has '0' as 'iscrowd'", BROKEN, "annotations", 1,
     iscrowd="0")  # fmt: skip
edit("ignore", "refuse", "annotation id 2 has 'ignore'", BROKEN, "annotations", 1, ignore=1)


@kind("no annotation at all", "coco", "refuse", "4 images with no annotation")
def spoil_annotations(data_set):
    data_set.data["annotations"] = []


@kind("crowds only", "coco", "refuse", "4 images with 8 crowd regions")
def spoil_crowds(data_set):
    for thing in data_set.data["annotations"]:
        thing["iscrowd"] = 1


edit("class name twice", "note", "category ids 1 and 2 are both 'cat'", "same class name",
     "categories", 1, name="cat")  # fmt: skip


def area(name, value):
    edit(
        f"area {name}", "note", "annotation id 2: area", "broken area", "annotations", 1, area=value
    )


area("null", None)
area("NaN", float("nan"))
area("a list", [3])
area("a word", "large")
area("negative", -1)
area("beyond floats", 10**400)
edit("no area", "right", "", "", "annotations", 1, area=...)
text("key twice", "has the key 'id' twice", b'{"images": [{"id": 1, "id": 2}]}')
text("nested too deep", "is nested too deep", b"[" * 100000)
text("number of 5000 digits", "a whole number of thousands of digits", b"1" * 5000)


# ------------------------------------------------------------------ boxes
def box(name, outcome, words, found, value, left=2 * IMAGES):
    edit(name, outcome, words, found, "annotations", 1, bbox=value, left=left)


box("no box", "refuse", "annotation id 2 has no 'bbox'", BROKEN, ...)
box("box of three", "refuse", r"box \[1, 2, 3\]", "malformed box", [1, 2, 3])
box("box of none", "refuse", r"box \[\]", "malformed box", [])
box("box of text", "refuse", r"box \['1'", "malformed box", ["1", "2", "3", "4"])
box("null box", "refuse", "box None", "malformed box", None)
box("NaN", "refuse", "0.jpg: annotation id 2: box nan", "not finite", [float("nan"), 2, 3, 4])
box("infinite", "refuse", "box 1, 2, inf", "not finite", [1, 2, float("inf"), 4])
box("beyond floats", "refuse", "box 1, 2, inf", "not finite", [1, 2, 10**400, 4])
box("huge", "refuse", "box 1, 2, 1e.12", "far outside", [1, 2, 1e12, 4])
box("zero width", "skip", "annotation id 2: box 1, 2, 1, 6", "zero area", [1, 2, 0, 4], 7)
box("negative height", "skip", "box 1, 9, 4, 6", "zero area", [1, 9, 3, -3], 7)
box("thinner than the mapper takes", "skip", "zero area", "zero area", [1, 2, 1e-6, 4], 7)
box("outside", "skip", "box 50, 2, 55, 6 in 40 x 30", "outside", [50, 2, 5, 4], 7)
box("huge and outside", "skip", "outside", "outside", [1e12, 2, 5, 4], 7)
box("touches the border", "skip", "outside", "outside", [40, 2, 5, 4], 7)
box("partly outside", "note", "box 30, 2, 50, 6 in 40 x 30", "partly outside", [30, 2, 20, 4])
box("rounded beyond the border", "right", "", "", [30, 2, 10.6, 4])


@kind("shares of width and height", "coco", "refuse", "no coordinate of the file is above 1",
      "relative box")  # fmt: skip
def spoil_shares(data_set):
    for thing in data_set.data["annotations"]:
        thing["bbox"] = [v / WIDTH for v in thing["bbox"]]


@kind("most boxes bad", "coco", "refuse", r"most annotations are bad\): 8 x zero area", "zero area")
def spoil_all(data_set):
    for thing in data_set.data["annotations"]:
        thing["bbox"][2] = 0  # as a converter with a mistake writes them


# ------------------------------------------------------------------ masks
def mask(name, outcome, words, found, value, left=2 * IMAGES, masks=True):
    options = ("MODEL.MASK_ON", masks)

    @kind(name, "coco", outcome, words, found, left, options)
    def spoil(data_set):
        data_set.data["annotations"][1]["segmentation"] = value
        if value is ...:
            del data_set.data["annotations"][1]["segmentation"]


GOOD = [2, 2, 20, 2, 20, 18]
mask("polygon of two points", "skip", "polygon of 4 coordinates", "short polygon", [GOOD[:4]], 7)
mask("odd polygon", "skip", "polygon of 7 coordinates", "short polygon", [[*GOOD, 1]], 7)
mask("a piece of two points", "skip", "1 x short polygon piece", "short polygon piece",
     [GOOD, GOOD[:4]])  # fmt: skip
mask("flat polygon", "refuse", "its segmentation is not a list of polygons", BROKEN, GOOD)
mask("mask of text", "refuse", "has a str as 'segmentation'", BROKEN, "abc")
mask("NaN in a polygon", "sample", "object 2: its polygon is not finite", "broken mask",
     [[*GOOD[:5], np.nan]])  # fmt: skip
mask("polygon to 1e9", "sample", r"object 2: its polygon reaches to 1e.09", "broken mask",
     [[*GOOD[:4], 1e9, 18]])  # fmt: skip
mask("mask missing", "skip", "object 2: it has no 'segmentation'", "", ..., 7)
mask("mask of nothing", "skip", "object 2: it has no 'segmentation'", "", [], 7)
RUNS = {"size": [HEIGHT, WIDTH], "counts": [100, 10, 1090]}
STRING = {"size": [HEIGHT, WIDTH], "counts": "T3:R2"}
mask("RLE of another size", "refuse", r"mask \[40, 30\], image \[30, 40\]", "wrong mask size",
     {**RUNS, "size": [WIDTH, HEIGHT]})  # fmt: skip
mask("RLE too short", "refuse", "its runs cover 110 of 1200", "broken mask",
     {**RUNS, "counts": [100, 10]})  # fmt: skip
mask("RLE with a negative run", "refuse", "not all whole numbers", "broken mask",
     {**RUNS, "counts": [1200, -1, 1]})  # fmt: skip
mask("RLE string cut off", "sample", "object 2: its runs cover", "broken mask",
     {**STRING, "counts": "T3:"})  # fmt: skip
mask("RLE string damaged", "sample", "object 2: its run-length string is damaged", "broken mask",
     {**STRING, "counts": "zzz~~"})  # fmt: skip
mask("no masks, so a damaged one is not used", "right", "", "broken mask",
     {**STRING, "counts": "zzz~~"}, masks=False)  # fmt: skip


# ------------------------------------------------------------------ image files
def cut(path):
    path.write_bytes(path.read_bytes()[:-300])


def save_as(mode, suffix, **options):
    """Save another kind of picture under the name of the first."""

    def save(path):
        Image.fromarray(pixels()).convert(mode).save(path, suffix, **options)

    return save


def rotated(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels()).save(path, exif=exif)


def sixteen(path):
    Image.fromarray((pixels()[..., 0].astype(np.uint16)) * 200).save(path, "PNG")


def sixteen_colours(path):
    """A PNG of three channels of 16 bits, which PIL cannot write."""
    rows = pixels().astype(">u2") * 257
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")):
        checksum = struct.pack(">I", zlib.crc32(name + body))
        content += struct.pack(">I", len(body)) + name + body + checksum
    path.write_bytes(content)


picture("colour of 16 bits", "right", "", "", sixteen_colours)
picture("truncated image", "sample", "0.jpg failed with OSError: .*truncated", "", cut)
picture("empty file", "sample", "0.jpg failed with UnidentifiedImageError", "unreadable file",
        lambda path: path.write_bytes(b""))  # fmt: skip
picture("no image", "sample", "0.jpg failed with UnidentifiedImageError", "unreadable file",
        lambda path: path.write_text("<html>"))  # fmt: skip
picture("16 bit", "sample", "0.jpg failed with .*more than 8 bits", "deep pixels", sixteen)
picture("32 bit", "sample", "more than 8 bits", "deep pixels", save_as("I", "TIFF"))
picture("float", "sample", "more than 8 bits", "deep pixels", save_as("F", "TIFF"))
picture("EXIF rotation", "sample", "turned by its EXIF tag", "wrong image size", rotated)
picture("palette", "right", "", "", save_as("P", "PNG"))
picture("grey", "right", "", "", save_as("L", "JPEG"))
picture("black and white", "right", "", "", save_as("1", "PNG"))
picture("CMYK", "right", "", "", save_as("CMYK", "JPEG"))
picture("RGBA", "right", "", "alpha channel", save_as("RGBA", "PNG"))


@kind("EXIF rotation with the size after it", "coco", "right", "", "turned by EXIF")
def spoil_rotation(data_set):
    rotated(data_set.first)
    data_set.data["images"][0].update(width=HEIGHT, height=WIDTH)
    data_set.data["annotations"][1].update(bbox=[5, 10, 25, 30])


@kind("names beyond ASCII", "coco", "right")
def spoil_names(data_set):
    data_set.first.rename(data_set.first.with_name("Straße 日本.jpg"))
    data_set.data["images"][0]["file_name"] = "Straße 日本.jpg"
    data_set.data["categories"][0]["name"] = "Kätzchen 猫"


# ------------------------------------------------------------------ LVIS
LISTS = "image id 1 lacks the list 'neg_category_ids' or 'not_exhaustive_category_ids'"
edit("no neg_category_ids", "refuse", LISTS, BROKEN, "images", 0, "lvis", neg_category_ids=...)
edit("no not_exhaustive_category_ids", "refuse", LISTS, BROKEN, "images", 0, "lvis",
     not_exhaustive_category_ids=...)  # fmt: skip
edit("no frequency", "refuse", "category id 1 has the frequency None", BROKEN, "categories", 0,
     "lvis", frequency=...)  # fmt: skip
edit("no coco_url", "refuse", "image id 1 has no 'coco_url'", BROKEN, "images", 0, "lvis",
     coco_url=...)  # fmt: skip
edit("no mask", "refuse", "annotation id 1 has no polygons", BROKEN, "annotations", 0, "lvis",
     segmentation=...)  # fmt: skip
edit("unknown class", "refuse", "category id 9", "unknown class", "annotations", 0, "lvis",
     category_id=9)  # fmt: skip
edit("polygon of two points", "skip", "polygon of 4 coordinates", "short polygon", "annotations", 1,
     "lvis", left=7, segmentation=[GOOD[:4]])  # fmt: skip
edit("zero width", "skip", "0.jpg: annotation id 2: box 1, 2, 1", "zero area", "annotations", 1,
     "lvis", left=7, bbox=[1, 2, 0, 4])  # fmt: skip
text("no annotations", "has no 'annotations'", b'{"images": [{}], "categories": [{}]}', "lvis")


@kind("class ids with a gap", "lvis", "refuse", "label 4 of 2 classes")
def spoil_ids(data_set):
    data_set.data["categories"][1]["id"] = 5
    for thing in data_set.data["annotations"][1::2]:
        thing["category_id"] = 5


# ------------------------------------------------------------------ VOC
split("empty list", "refuse", "train.txt: 0 images", "broken split", "")
split("list of one", "refuse", "train.txt: 1 images; Detectron2 reads lists of two", "broken split",
      "0\n")  # fmt: skip
split("image twice", "refuse", "train.txt: '0' is listed twice", "duplicate image id", "0\n1\n0\n")
split("name with #", "refuse", r"entry 1 '0#1'", "broken split", "0#1\n1\n")
split("two columns", "refuse", r"entry 1 '0  1'", "broken split", "0  1\n1 -1\n")
split("no XML of this name", "refuse", "gone.xml", "broken XML", "0\n1\ngone\n")


@kind("missing list", "voc", "refuse", "train.txt does not exist; the splits are not there", None)
def spoil_split(data_set):
    data_set.file.unlink()


@kind("missing image", "voc", "refuse", "0.jpg: no such file", "missing file")
def spoil_image(data_set):
    data_set.first.unlink()


@kind("XML not UTF-8", "voc", "refuse", "0.xml: .*save it as UTF-8", "broken XML")
def spoil_encoding(data_set):
    data_set.xml().write_bytes(data_set.xml().read_bytes().replace(b"cat", b"\xe4"))


SIZE = "<width>40</width><height>30</height>"
xml("malformed XML", "refuse", "0.xml: mismatched tag", "broken XML", "</object>", "")
xml("no size", "refuse", "0.xml: width None and height None", "broken XML", SIZE, "")
xml("size 0", "refuse", "0.xml: width '0'", "broken XML", ">40<", ">0<")
xml("size no whole number", "refuse", "width '40.0'", "broken XML", ">40<", ">40.0<")
xml("no name", "refuse", "0.xml: object 1: it has no <name>", "broken XML", "<name>cat</name>", "")
xml("unknown class", "refuse", "0.xml: object 1: class 'cow'", "unknown class", "cat", "cow")
BOX = "<bndbox><xmin>3</xmin><ymin>3</ymin>\n<xmax>20</xmax><ymax>18</ymax></bndbox>"
xml("no bndbox", "refuse", "object 1: it has no <bndbox>", "broken XML", BOX, "")
xml("no xmax", "refuse", "object 1: <bndbox> has '3', '3', None", "malformed box",
    "<xmax>20</xmax>", "")  # fmt: skip
xml("no number", "refuse", "'x', '18'", "malformed box", ">20<", ">x<")
xml("NaN", "refuse", "object 1: box 2, 2, nan", "not finite", ">20<", ">nan<")
xml("difficult", "refuse", "<difficult> is 'maybe'", "broken XML", ">0</diff", ">maybe</diff")
xml("turned box", "skip", "object 1: box 2, 2, 1, 18", "zero area", ">20<", ">1<", 7)
xml(
    "outside",
    "skip",
    "object 1: box 62, 2, 80, 18",
    "outside",
    "<xmin>3</xmin><ymin>3</ymin>\n<xmax>20<",
    "<xmin>63</xmin><ymin>3</ymin>\n<xmax>80<",
    7,
)
xml("wrong size", "sample", r"0.jpg.*got \(40, 30\), expect \(40, 33\)", "wrong image size",
    ">30</h", ">33</h")  # fmt: skip
xml("pixels that count from 0", "right", "", "", "<xmin>3<", "<xmin>0<")
