"""The figures of a report in TensorBoard, W&B and MLflow."""

import contextlib
import sys
import types

import numpy as np
import pytest
from report_kit import write_data, write_evaluation, write_run

from d2ext.cli import main
from d2ext.report import load_run
from d2ext.report.page import collect
from d2ext.report.trackers import scalars_of


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracked")
    write_evaluation(write_run(folder / "run"), write_data(folder / "data"))
    return folder / "run"


def expected(run):
    _, ((evaluation,),) = collect([load_run(run)])
    found = scalars_of(evaluation)
    assert found["made_val/AP"] == pytest.approx(evaluation.figures["AP"])
    assert found["made_val/AP_of/ball"] > 0 and 0 <= found["made_val/best_score/f1"] <= 1
    assert all(np.isfinite(v) for v in found.values())
    return found


def call(run, tmp_path, tracker):
    return main(["report", str(run), "--output", str(tmp_path), "--trackers", tracker])


def test_tensorboard_has_scalars_and_a_picture(run, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert call(run, tmp_path, "tensorboard") == 0
    events = EventAccumulator(str(run / "report_events"))
    events.Reload()
    for key, value in expected(run).items():
        (event,) = events.Scalars(key)
        assert event.value == pytest.approx(value, rel=1e-5) and event.step == 119
    (picture,) = events.Images("made_val/scores")
    assert picture.width > 1000


def test_wandb_gets_the_same(run, tmp_path, monkeypatch):
    logged = []
    started = types.SimpleNamespace(log=lambda values, step: logged.append((values, step)))
    fake = types.ModuleType("wandb")
    fake.init = lambda **words: contextlib.nullcontext(started)
    fake.Image = lambda pixels: pixels.shape
    monkeypatch.setitem(sys.modules, "wandb", fake)
    assert call(run, tmp_path, "wandb") == 0
    ((values, step),) = logged
    assert step == 119 and values.pop("made_val/scores")[2] == 3
    assert values == expected(run)


def test_mlflow_gets_the_same_under_names_that_it_takes(run, tmp_path, monkeypatch):
    metrics, images = {}, []
    fake = types.ModuleType("mlflow")
    fake.set_experiment = lambda name: None
    fake.start_run = lambda run_name: contextlib.nullcontext()
    fake.log_metrics = lambda values, step: metrics.update(values)
    fake.log_image = lambda pixels, name: images.append(name)
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    assert call(run, tmp_path, "mlflow") == 0
    assert images == ["made_val/scores.png"]
    assert sorted(metrics.values()) == sorted(expected(run).values())
    assert not set("<>=()") & set("".join(metrics))


def test_a_tracker_that_is_not_installed_is_named(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert call(run, tmp_path, "mlflow") == 1
    assert "pip install mlflow" in capsys.readouterr().err
