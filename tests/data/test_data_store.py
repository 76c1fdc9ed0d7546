"""Where data sets live, that they appear whole or not at all, and what a missing one says."""

import multiprocessing
import os
import time

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2ext.data import require_dataset
from d2ext.data.builtin import BUILTIN_SHAPES
from d2ext.data.shapes import SceneConfig, ShapesSpec, common_classes, generate, write_dataset
from d2ext.data.store import dataset_folder, is_current, publish


def _build(path):
    with open(os.path.join(path, "data.txt"), "w") as f:
        f.write("whole")


def _stamp(folder, stamp):
    folder.mkdir(parents=True)
    publish(str(folder / "set"), stamp, _build)


def test_own_variable_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").mkdir()
    environ = {"D2EXT_DATA": "mine", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert dataset_folder("set", "1", environ) == str(tmp_path / "mine" / "set")


def test_datasets_folder_where_there_is_one_else_the_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environ = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    cached = str(tmp_path / "cache" / "d2ext" / "set")
    assert dataset_folder("set", "1", environ) == cached
    (tmp_path / "datasets").mkdir()
    assert dataset_folder("set", "1", environ) == str(tmp_path / "datasets" / "set")
    environ["DETECTRON2_DATASETS"] = str(tmp_path / "shared")
    assert dataset_folder("set", "1", environ) == cached
    (tmp_path / "shared").mkdir()
    assert dataset_folder("set", "1", environ) == str(tmp_path / "shared" / "set")


def test_a_folder_that_cannot_be_written_is_passed_over_unless_it_has_the_data(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    environ = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    _stamp(tmp_path / "datasets", "1")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert dataset_folder("set", "1", environ) == str(tmp_path / "datasets" / "set")
    assert dataset_folder("set", "2", environ) == str(tmp_path / "cache" / "d2ext" / "set")


def test_home_is_the_last_resort(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    expected = tmp_path / "home" / ".cache" / "d2ext" / "set"
    assert dataset_folder("set", "1", {}) == str(expected)


def test_data_set_is_built_once_and_again_for_another_version(tmp_path):
    folder, calls = str(tmp_path / "deep" / "set"), []

    def build(path):
        calls.append(path)
        assert not os.path.exists(os.path.join(path, "data.txt"))
        _build(path)

    for stamp, count in (("1", 1), ("1", 1), ("2", 2), ("2", 2)):
        publish(folder, stamp, build)
        assert len(calls) == count and is_current(folder, stamp)
    assert calls[0] != folder
    left = [name for name in os.listdir(tmp_path / "deep") if not name.endswith(".lock")]
    assert left == ["set"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted_build_leaves_nothing(tmp_path, error):
    def build(path):
        _build(path)
        raise error

    with pytest.raises(error):
        publish(str(tmp_path / "set"), "1", build)
    assert [name for name in os.listdir(tmp_path) if not name.endswith(".lock")] == []
    publish(str(tmp_path / "set"), "1", _build)
    assert is_current(str(tmp_path / "set"), "1")


def test_failed_update_keeps_the_old_version(tmp_path):
    publish(str(tmp_path / "set"), "1", _build)
    with pytest.raises(RuntimeError):
        publish(str(tmp_path / "set"), "2", lambda path: (_ for _ in ()).throw(RuntimeError()))
    assert is_current(str(tmp_path / "set"), "1")
    assert (tmp_path / "set" / "data.txt").read_text() == "whole"


def test_remains_of_a_killed_process_are_cleared_away(tmp_path):
    for name in (".set.partial-123", ".set.old-123"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half.jpg").write_text("")
    (tmp_path / ".set_two.partial-9").mkdir()
    publish(str(tmp_path / "set"), "1", _build)
    left = sorted(name for name in os.listdir(tmp_path) if not name.endswith(".lock"))
    assert left == [".set_two.partial-9", "set"]


def _publish_slowly(folder, log):
    def build(path):
        with open(log, "a") as f:
            f.write("built\n")
        time.sleep(0.3)
        _build(path)

    publish(folder, "1", build)
    assert os.path.exists(os.path.join(folder, "data.txt"))


def test_concurrent_processes_build_one_data_set(tmp_path):
    context = multiprocessing.get_context("fork")
    arguments = (str(tmp_path / "set"), str(tmp_path / "log"))
    processes = [context.Process(target=_publish_slowly, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "built\n"
    assert is_current(str(tmp_path / "set"), "1")


def test_unwritable_place_is_one_sentence_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"^Cannot write .*D2EXT_DATA[^\n]*\.$"):
        publish(str(tmp_path / "file" / "set"), "1", _build)


def _spec():
    scene = SceneConfig().for_image_size(48)
    return ShapesSpec("s", "coco", tuple(common_classes()), (("train", 6),), scene)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    "error,expected", [(ValueError("bad pen"), "bad pen"), (OSError(28, "No space left"), "space")]
)
def test_error_while_drawing_reaches_the_caller(tmp_path, monkeypatch, workers, error, expected):
    draw = generate.draw_scene
    calls = []
    before = set(multiprocessing.active_children())

    def fail_later(*args):
        calls.append(None)
        if len(calls) == 3:
            raise error
        return draw(*args)

    monkeypatch.setattr(generate, "draw_scene", fail_later)

    def build(path):
        write_dataset(_spec(), path, num_workers=workers, progress=False)

    with pytest.raises((ValueError, RuntimeError, OSError), match=expected):
        publish(str(tmp_path / "s"), "1", build)
    assert [name for name in os.listdir(tmp_path) if not name.endswith(".lock")] == []
    assert set(multiprocessing.active_children()) <= before


def test_killed_worker_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "draw_scene", lambda *args: os._exit(1))
    with pytest.raises(RuntimeError, match="killed"):
        write_dataset(_spec(), str(tmp_path), num_workers=2, progress=False)


@pytest.mark.parametrize("name", ["coco_2017_train", "lvis_v1_val", "voc_2007_test"])
def test_missing_real_data_set_says_where_it_is_expected(name):
    metadata = MetadataCatalog.get(name)
    place = metadata.get("json_file") or metadata.dirname
    if os.path.exists(place):
        require_dataset(name)
        return
    with pytest.raises(FileNotFoundError) as caught:
        require_dataset(name)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith(".")
    for part in (name, os.path.abspath(place), "DETECTRON2_DATASETS", "d2ext_shapes"):
        assert part in sentence


def test_present_and_built_in_data_sets_pass(tmp_path):
    require_dataset(
        *(f"{s.folder}_{split}" for s in BUILTIN_SHAPES.values() for split, _ in s.splits)
    )
    name = f"d2ext_test_{tmp_path.name}"
    DatasetCatalog.register(name, list)
    try:
        require_dataset(name)  # nothing is known about its files
        MetadataCatalog.get(name).json_file = str(tmp_path / "a.json")
        with pytest.raises(FileNotFoundError, match="a.json"):
            require_dataset(name)
        (tmp_path / "a.json").write_text("{}")
        require_dataset(name)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_misspelt_data_set_names_the_nearest():
    with pytest.raises(KeyError, match="d2ext_shapes_train"):
        require_dataset("d2ext_shape_train")
