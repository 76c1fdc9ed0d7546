"""One run at a time in an output folder."""

import errno
import json
import os
import shutil
import signal
import socket

import pytest
from engine_kit import Run, metrics, start_ranks, train
from test_trainer_hooks import line_trainer

from d2ext.engine import (
    HookBase,
    OutputInUseError,
    OutputLock,
    RunError,
    WriteError,
    output_lock,
)
from d2ext.engine.hooks import PeriodicCheckpointer, PeriodicWriter

LONG = ("SOLVER.MAX_ITER", 100000, "SOLVER.STEPS", "()")


def in_a_fork(function):
    """Call a function in a forked process; returns its exit code, 0 for success."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def refused(folder):
    with pytest.raises(OutputInUseError) as error:
        OutputLock(folder).acquire()
    return str(error.value)


def holder_of(folder):
    return json.loads((folder / ".lock").read_text())


def test_a_second_process_is_refused_by_name(tmp_path):
    with OutputLock(tmp_path):

        def other():
            message = refused(tmp_path)
            assert f"{tmp_path} is in use by process {os.getppid()} on {socket.gethostname()}" in (
                message
            )
            assert " since 2" in message and "choose another OUTPUT_DIR" in message

        # Twice: what a refused process does must not free the lock of the holder.
        assert [in_a_fork(other), in_a_fork(other)] == [0, 0]
    assert in_a_fork(lambda: OutputLock(tmp_path).acquire()) == 0


def test_a_process_has_one_lock_on_a_folder(tmp_path):
    """Found again under another name, and given back by the last to release it."""
    link = tmp_path / "link"
    folder = tmp_path / "folder"
    folder.mkdir()
    link.symlink_to(folder)
    first, second = OutputLock(folder).acquire(), OutputLock(link).acquire()
    second.release()
    assert in_a_fork(lambda: refused(folder)) == 0
    first.release()
    assert in_a_fork(lambda: OutputLock(folder).acquire().release()) == 0
    assert not list(folder.iterdir())


def die_holding(folder):
    OutputLock(folder).acquire()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_holder_is_replaced(tmp_path, caplog):
    assert in_a_fork(lambda: die_holding(tmp_path)) == -signal.SIGKILL
    assert (tmp_path / ".lock").exists()
    with OutputLock(tmp_path):
        assert "ended without releasing it" in caplog.text
        assert holder_of(tmp_path)["pid"] == os.getpid()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"pid": 1}'])
def test_a_damaged_lock_file_is_no_lock(tmp_path, content):
    (tmp_path / ".lock").write_bytes(content)
    with OutputLock(tmp_path):
        assert holder_of(tmp_path)["pid"] == os.getpid()


def test_a_file_removed_between_opening_and_locking(tmp_path, monkeypatch):
    """The lock on a file that is gone is worth nothing: the next one would make a new file."""
    lockf, calls = output_lock.fcntl.lockf, []

    def late(file, *args):
        if not calls:
            os.remove(tmp_path / ".lock")
        calls.append(file)
        return lockf(file, *args)

    monkeypatch.setattr(output_lock.fcntl, "lockf", late)
    with OutputLock(tmp_path):
        assert len(calls) == 2
        monkeypatch.undo()
        assert in_a_fork(lambda: refused(tmp_path)) == 0


class TestWithoutRecordLocks:
    """On a file system that has none, the process named in the file decides."""

    @pytest.fixture(autouse=True)
    def no_locks(self, monkeypatch):
        def lockf(*args):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(output_lock.fcntl, "lockf", lockf)

    def test_a_living_holder_keeps_it(self, tmp_path):
        with OutputLock(tmp_path):
            assert in_a_fork(lambda: refused(tmp_path)) == 0

    def test_a_dead_one_does_not(self, tmp_path):
        assert in_a_fork(lambda: die_holding(tmp_path)) == -signal.SIGKILL
        with OutputLock(tmp_path):
            assert holder_of(tmp_path)["pid"] == os.getpid()

    def test_a_new_process_with_the_number_of_a_dead_one(self, tmp_path):
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": "x", "started": "1"}
        (tmp_path / ".lock").write_text(json.dumps(holder))
        with OutputLock(tmp_path):
            assert holder_of(tmp_path)["started"] != "1"

    def test_of_another_machine_nothing_is_known(self, tmp_path):
        holder = {"pid": 1, "host": "elsewhere", "since": "today", "started": ""}
        (tmp_path / ".lock").write_text(json.dumps(holder))
        message = refused(tmp_path)
        assert "process 1 on elsewhere since today" in message
        assert f"if you know that it has ended, delete {tmp_path / '.lock'}" in message


def test_a_trainer_holds_its_folder_while_it_trains(tmp_path):
    trainer = line_trainer(output_dir=str(tmp_path))
    codes = []

    class Other(HookBase):
        def after_step(self):
            codes.append(in_a_fork(lambda: refused(tmp_path)))

    trainer.register_hooks([Other()])
    trainer.train()
    assert codes == [0] * 4 and not (tmp_path / ".lock").exists()


def test_a_run_started_twice(tiny, tmp_path):
    """The second one says why it ends and writes nothing; evaluating beside it is allowed."""
    out = tmp_path / "run"
    words = (*LONG, "SOLVER.CHECKPOINT_PERIOD", 5)
    first = Run(tiny, out, *words)
    first.wait_for("Saved checkpoint")
    text = train(tiny, tmp_path / "second", "--resume", *words, "OUTPUT_DIR", out, code=1)
    assert text.startswith(f"{out} is in use by process {first.pid} on ")
    assert text.count("\n") == 1 and first.ended() is None
    assert (out / "log.txt").read_text().count("Rank of this process") == 1
    weights = ("MODEL.WEIGHTS", out / "last.pth", "OUTPUT_DIR", out)
    os.link(next(out.glob("model_*.pth")), out / "last.pth")  # the run itself may remove its own
    train(tiny, tmp_path / "eval", "--eval-only", *weights)
    first.kill(signal.SIGTERM)
    assert first.wait() == 75, first.text
    # Given back, and the lines of the file are those of one run.
    assert not (out / ".lock").exists()
    steps = [line["iteration"] for line in metrics(out)]
    assert steps == sorted(set(steps))


@pytest.mark.dist
def test_two_ranks_are_refused_together(tiny, tmp_path):
    out = tmp_path / "run"
    with OutputLock(out):
        runs = start_ranks(tiny, out, "SOLVER.MAX_ITER", 2)
        assert [run.wait() for run in runs] == [1, 1], runs[0].text
        assert f"in use by process {os.getpid()}" in runs[0].text
        assert os.listdir(out) == [".lock"]
    runs = start_ranks(tiny, out, "SOLVER.MAX_ITER", 2)
    assert [run.wait() for run in runs] == [0, 0], runs[0].text


@pytest.mark.parametrize("kind", ["symbolic", "hard", "folder", "fifo"])
def test_what_is_no_lock_file_is_left_alone(tmp_path, kind):
    target, path = tmp_path / "precious", tmp_path / "run" / ".lock"
    target.write_text("precious")
    path.parent.mkdir()
    if kind == "symbolic":
        path.symlink_to(target)
    elif kind == "hard":
        os.link(target, path)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(RunError, match=r"\.lock is a link or no regular file.*remove it"):
        OutputLock(path.parent).acquire()
    assert target.read_text() == "precious"


class Do(HookBase):
    """Calls a function at the end of a step."""

    def __init__(self, step, function):
        self.step, self.function = step, function

    def after_step(self):
        if self.trainer.iter == self.step:
            self.function()


def losing_trainer(folder, lose, writers=(), period=1):
    trainer = line_trainer(output_dir=str(folder), max_iter=40)
    hooks = [Do(2, lose), PeriodicWriter(list(writers), period), PeriodicCheckpointer(30)]
    trainer.register_hooks(hooks)
    return trainer


@pytest.mark.parametrize("move", [False, True])
def test_a_folder_that_is_gone_costs_no_work(tmp_path, move):
    """The run ends soon, with its state in a new folder."""
    folder = tmp_path / "run"

    def lose():
        folder.rename(tmp_path / "moved") if move else shutil.rmtree(folder)

    trainer = losing_trainer(folder, lose)
    with pytest.raises(WriteError, match="run was deleted, moved .* is in a new folder"):
        trainer.train()
    assert trainer.completed_steps < 6
    assert [p.name for p in folder.glob("*.pth")] == ["model_0000003.pth"]
    again = line_trainer(output_dir=str(folder), max_iter=40)
    again.resume_or_load()
    assert again.start_iter == trainer.completed_steps


def test_a_folder_that_was_replaced_is_not_written_into(tmp_path):
    folder = tmp_path / "run"

    def lose():
        folder.rename(tmp_path / "moved")
        folder.mkdir()
        (folder / ".lock").write_text("of another run")

    with pytest.raises(WriteError, match="not written into what is there now"):
        losing_trainer(folder, lose).train()
    assert [p.name for p in folder.iterdir()] == [".lock"]
    assert (folder / ".lock").read_text() == "of another run"


def test_a_lock_file_that_is_gone_alone_is_made_again(tmp_path):
    def lose():
        (tmp_path / ".lock").unlink()

    trainer = losing_trainer(tmp_path, lose)
    trainer.register_hooks([Do(5, lambda: in_a_fork(lambda: refused(tmp_path)) and lose())])
    trainer.train()
    assert trainer.finished and not (tmp_path / ".lock").exists()
