"""Images that are kept decoded: the same bytes, read once, whoever reads them."""

import logging
import multiprocessing

import numpy as np
import pytest
import torch
from PIL import Image

from d2ext.data import image_cache
from d2ext.data.fast_mapper import read_image
from d2ext.data.image_cache import ImageCache


@pytest.fixture
def dicts(tmp_path):
    rng = np.random.RandomState(0)
    samples = []
    for k, (height, width) in enumerate([(20, 30), (31, 17)]):
        name = str(tmp_path / f"{k}.png")
        Image.fromarray(rng.randint(0, 256, (height, width, 3), dtype=np.uint8)).save(name)
        samples.append({"file_name": name, "height": height, "width": width})
    return samples


class Reader:
    def __init__(self):
        self.names = []

    def __call__(self, name):
        self.names.append(name)
        return read_image(name)


def test_each_image_is_read_once(dicts):
    reader = Reader()
    cache = ImageCache([*dicts, dicts[0]], reader)
    for _ in range(2):
        for sample in dicts:
            assert torch.equal(cache(sample["file_name"]), read_image(sample["file_name"]))
    assert reader.names == [sample["file_name"] for sample in dicts]


def _fill(cache, name):
    cache(name)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_what_a_worker_read_others_have(dicts, method):
    name = dicts[0]["file_name"]
    cache = ImageCache(dicts, read_image)
    worker = multiprocessing.get_context(method).Process(target=_fill, args=(cache, name))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    cache._read = None  # nothing is read here
    assert torch.equal(cache(name), read_image(name))


def test_an_image_of_another_size_is_read_afresh(dicts):
    reader = Reader()
    wrong = dict(dicts[0], height=21)
    cache = ImageCache([wrong, {"file_name": dicts[1]["file_name"]}], reader)
    for sample in dicts * 2:
        assert torch.equal(cache(sample["file_name"]), read_image(sample["file_name"]))
    assert len(reader.names) == 4


@pytest.mark.parametrize(
    "choice, free, sharers, wanted",
    [
        ("off", 10**9, 1, False),
        ("on", 0, 1, True),
        ("auto", 4 * (4 * (20 * 30 + 31 * 17)), 1, True),
        ("auto", 4 * (4 * (20 * 30 + 31 * 17)) - 1, 1, False),
        ("auto", 4 * (4 * (20 * 30 + 31 * 17)), 2, False),
    ],
)
def test_when_images_are_kept(dicts, monkeypatch, caplog, choice, free, sharers, wanted):
    monkeypatch.setattr(image_cache, "free_memory", lambda: free)
    with caplog.at_level(logging.INFO, logger="d2ext"):
        cache = ImageCache.if_wanted(choice, dicts, read_image, sharers=sharers)
    assert (cache is not None) == wanted == ("are kept in memory" in caplog.text)


def test_free_memory_is_known_here():
    assert image_cache.free_memory() > 2**20
