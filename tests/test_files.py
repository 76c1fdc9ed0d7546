"""Files from anywhere: regular ones only, and images in the usual formats only."""

import os
import socket

import pytest
from PIL import Image, UnidentifiedImageError

from d2ext._files import open_image, open_regular
from d2ext.data.checks.images import check_image_file, check_sample
from d2ext.data.checks.json_text import read_json
from d2ext.data.fast_mapper import read_image
from d2ext.safe_load import load_tensors, parse_xml

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture(params=["pipe", "socket", "device"])
def endless(request, tmp_path):
    """A path that a naive reader would wait at for ever, or read without end."""
    path = tmp_path / "endless.png"
    if request.param == "pipe":
        os.mkfifo(path)
        yield path
    elif request.param == "device":
        path.symlink_to("/dev/zero")
        yield path
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            yield path


READERS = {
    "image": lambda path: open_image(path).__enter__(),
    "training image": lambda path: read_image(str(path)),
    "sample": lambda path: check_sample({"file_name": str(path)}),
    "json": lambda path: read_json(str(path)),
    "xml": parse_xml,
    "checkpoint": lambda path: load_tensors(str(path)),
}


@pytest.mark.parametrize("reader", READERS)
def test_what_never_ends_is_refused_at_once(endless, reader):
    with pytest.raises(OSError, match=r"not a regular file|No such device"):
        READERS[reader](endless)
    if reader == "image":
        (problem,) = check_image_file(str(endless))
        assert problem.kind == "unreadable file"


def test_a_folder_and_a_missing_file_are_named_as_such(tmp_path):
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        open_regular(tmp_path / "none.png")


def test_postscript_is_not_handed_to_ghostscript_whatever_its_name(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    def run(*args, **kwargs):
        raise AssertionError("Ghostscript was called")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    path = tmp_path / "a.png"
    path.write_bytes(POSTSCRIPT)
    assert Image.open(path).format == "EPS"  # what Pillow would do by itself
    with pytest.raises(UnidentifiedImageError, match=r"cannot identify image file '.*a\.png'"):
        read_image(str(path))
    with pytest.raises(UnidentifiedImageError):
        check_sample({"file_name": str(path)})


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpg", "png", "ppm", "tiff", "webp"])
def test_usual_formats_open(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (5, 4), "red").save(path)
    with open_image(path) as image:
        assert image.size == (5, 4) and image.convert("RGB").getpixel((0, 0))[0] > 250
