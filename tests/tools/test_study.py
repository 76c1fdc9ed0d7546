"""tools/study.py as it is called."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from study_kit import CONFIG, FAKE, STUDY

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Calls the tool in a folder with a stand-in for train_net.py; gives exit code and output."""
    spec = importlib.util.spec_from_file_location("study_tool", ROOT / "tools/study.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train_net.py").write_text(FAKE)
    config = ROOT / CONFIG
    (tmp_path / "s.yaml").write_text(STUDY % (config, config, 2.0))

    def run(*words, errors=False):
        monkeypatch.setattr(sys, "argv", ["study.py", "s.yaml", *words])
        with pytest.raises(SystemExit) as end:
            tool.main()
        said = capsys.readouterr()
        return end.value.code, said.err if errors else said.out

    run.tool = tool
    return run


def test_runs_shows_and_commits(call, tmp_path):
    assert call("--table-only") == (1, "")
    code, text = call("--jobs", "2", "--plot", "--figures", "bbox/AP")
    assert code == 0 and "| b | 2 | 3.0 ± 1.4 | +1.5 ± 6.4 |" in text
    folder = tmp_path / "output/studies/s"
    assert (folder / "plot.png").exists() and not (tmp_path / "s.jsonl").exists()
    code, text = call("--commit-results")
    assert code == 0 and text.count("Written: ") == 3
    assert "| b | 2 | 3.0 ± 1.4 | +1.5 ± 6.4 |" in (tmp_path / "s.md").read_text()
    assert len((tmp_path / "s.jsonl").read_text().splitlines()) == 4
    assert (tmp_path / "s.png").exists()
    (folder / "results.jsonl").unlink()
    code, text = call("--table-only", "--table", "t.md")
    assert code == 0 and "4 finished runs are taken from s.jsonl" in text
    assert (tmp_path / "t.md").read_text() == (tmp_path / "s.md").read_text()


def test_your_own_module_and_words(call, tmp_path):
    """A module of the current folder registers a data set, here and in each run."""
    (tmp_path / "my_study_data.py").write_text(
        "from detectron2.data import DatasetCatalog\n"
        "if 'my_study_train' not in DatasetCatalog.list():\n"
        "    DatasetCatalog.register('my_study_train', list)\n"
    )
    text = (tmp_path / "s.yaml").read_text()
    data = "DATASETS.TRAIN, \"('my_study_train',)\""
    (tmp_path / "s.yaml").write_text(text.replace("MAX_ITER, 7", f"MAX_ITER, 7, {data}"))
    words = tmp_path / "words"
    # It finds the module; importing Detectron2 in each run would take long.
    saving = f"open({str(words)!r}, 'w').write(json.dumps(words))\n"
    saving += "import importlib.util\nassert importlib.util.find_spec('my_study_data')\n"
    fake = FAKE.replace("start = words", saving + "start = words", 1)
    (tmp_path / "train_net.py").write_text(fake)
    code, _ = call()
    assert "my_study_train' is not registered" in code
    try:
        code, _ = call("--import", "my_study_data", "--train-args", "--num-gpus 2")
    finally:
        from detectron2.data import DatasetCatalog

        if "my_study_train" in DatasetCatalog.list():
            DatasetCatalog.remove("my_study_train")
        sys.modules.pop("my_study_data", None)
    assert code == 0
    assert json.loads(words.read_text())[:5] == [
        "--import", "my_study_data", "--num-gpus", "2", "--resume",
    ]  # fmt: skip


def test_a_figure_that_no_run_has_is_named_and_the_results_are_kept(call, tmp_path):
    code, _ = call("--figures", "bbox/APP")
    assert code.startswith("No run has the figure 'bbox/APP'; choose from bbox/AP, bbox/AP-x.\n")
    assert "The results are in " in code and "results.jsonl; --table-only shows them." in code
    assert call("--table-only")[0] == 0


def test_what_the_command_line_cannot_mean_is_said_before_anything_runs(call, tmp_path):
    for words, message in (
        (("--jobs", "0"), "argument --jobs: '0' must be a whole number from 1 on"),
        (("--retry", "-1"), "argument --retry: '-1' must be a whole number from 0 on"),
        (("--table", "x/y.md"), "--table: there is no folder x; make it"),
        (("--plot", "x/y.png"), "--plot: there is no folder x; make it"),
        (("--train-args", '"--num'), "argument --train-args"),
    ):
        code, text = call(*words, errors=True)
        assert code == 2 and message in text
    assert not (tmp_path / "output").exists()


def test_only_who_meets_another_is_told_to_wait(call, tmp_path, monkeypatch):
    from studies import locked

    folder = tmp_path / "output/studies/s"
    folder.mkdir(parents=True)
    with locked(folder / "study.lock"):
        code, _ = call()
    assert "is in use by process" in code and "wait for it, or choose another --output" in code
    monkeypatch.setenv("PATH", str(tmp_path))
    # As it is documented: with "=", because the words begin with a dash.
    code, _ = call("--launcher", "slurm", "--slurm-args=--gres=gpu:1 --time=2:00:00")
    assert code == "There is no sbatch here; use --launcher local, or call this on a login node."


def test_ctrl_c_ends_without_a_traceback(call, monkeypatch):
    from studies import Runner

    def stopped(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "run", stopped)
    message = "The study was stopped; the same command goes on with it."
    code, text = call(errors=True)
    assert code == 130 and message in text and "Traceback" not in text


def test_runs_of_different_code_are_named(call, tmp_path):
    assert call()[0] == 0
    file = tmp_path / "output/studies/s/results.jsonl"
    first, rest = file.read_text().split("\n", 1)
    first = json.loads(first)
    first["versions"]["torch"] = "0"
    file.write_text(json.dumps(first) + "\n" + rest)
    _, text = call("--table-only")
    assert "Not all runs had the same code: versions of torch are 0 (1 runs), " in text


def test_a_bad_config_is_reported_before_anything_runs(call, tmp_path):
    text = (tmp_path / "s.yaml").read_text()
    (tmp_path / "s.yaml").write_text(text.replace("SOLVER.BASE_LR", "SOLVER.BASE_RL"))
    code, _ = call()
    assert code.startswith("Nothing was run, because of\n  b: ") and "SOLVER.BASE_LR" in code
    assert not (tmp_path / "output").exists()


def test_a_run_again_is_compared_with_its_result(call, tmp_path):
    code, text = call("--again", "b", "--seeds", "2")
    assert code == 0 and "b, seed 2: s.jsonl has no result to compare with." in text
    call()
    call("--commit-results")
    (tmp_path / "output/studies/s_again/results.jsonl").unlink()
    code, text = call("--again", "b", "--seeds", "2")
    assert code == 0 and "b, seed 2: all 2 figures are equal." in text
    file = tmp_path / "s.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[-1]["figures"]["bbox/AP"] = 4.5
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, text = call("--again", "b", "--seeds", "2")
    assert "b, seed 2: 1 of 2 figures differ; bbox/AP 4.5 -> 4.0." in text
    assert call("--again", "c")[0] == "s.yaml has no run 'c' with these seeds."
    assert call("--seeds", "1")[0] == 2


def test_tables_go_to_the_page_of_the_folder_too(call, tmp_path, monkeypatch):
    call()
    folder = tmp_path / "board"
    folder.mkdir()
    (tmp_path / "s.yaml").rename(folder / "s.yaml")
    page = tmp_path / "board.md"
    page.write_text("<!-- begin s -->\n<!-- end s -->\n")
    monkeypatch.setattr(sys, "argv", ["study.py", str(folder / "s.yaml"), "--commit-results"])
    with pytest.raises(SystemExit):
        call.tool.main()
    assert "| b | 2 | 3.0 ± 1.4 |" in page.read_text()
    assert not (folder / "s.md").exists() and (folder / "s.jsonl").exists()
