"""Two processes on CPU: what they compute together, and that they never wait for each other."""

import os

import pytest
import torch
from detectron2.utils import comm
from engine_kit import run_ranks
from process_kit import fork, wait_for_all
from test_trainer_hooks import Line, line_trainer
from torch import nn

from d2ext.engine import HookBase, NonFiniteGuard, NonFiniteLossError, Trainer, launch
from d2ext.engine.launch import first_slurm_host, free_port, place_from_environment

pytestmark = pytest.mark.dist


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_of_two_ranks_are_those_of_the_joined_batch(accumulate):
    torch.manual_seed(5)
    parts = torch.randn(4, 2, 4, 3)  # step x micro-step, rank, images, features
    count = 4 // accumulate

    def rank_main(rank):
        batches = [parts[k, rank] for k in range(4)]
        apart = line_trainer(batches, max_iter=count, accumulate=accumulate)
        apart.train()
        model = Line()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(count):
            joined = parts[step * accumulate : (step + 1) * accumulate].reshape(-1, 3)
            optimizer.zero_grad()
            losses = model(joined)
            sum(losses.values()).backward()
            optimizer.step()
        torch.testing.assert_close(apart.raw_model.weight, model.weight, rtol=1e-6, atol=1e-7)
        weights = comm.all_gather(apart.raw_model.weight.detach())
        assert torch.equal(weights[0], weights[1])
        # Every rank has the mean over ranks, not rank 0 alone.
        logged = apart.storage.latest()
        assert logged["loss_a"][0] == pytest.approx(losses["loss_a"].item(), rel=1e-5)
        totals = comm.all_gather(logged["total_loss"][0])
        assert totals[0] == totals[1]

    run_ranks(rank_main)


class Sparse(nn.Module):
    """Leaves its second loss, and its second parameter, out on a batch without objects."""

    def __init__(self):
        super().__init__()
        self.cls, self.box = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))

    def forward(self, batch):
        losses = {"loss_cls": (self.cls * batch.sum(0)).square().sum()}
        if len(batch):
            losses["loss_box"] = (self.box * batch).abs().sum()
        return losses


def test_a_rank_without_objects_keeps_no_one_waiting():
    """Also if it returns fewer losses, from the first step on or later."""

    def rank_main(rank):
        empty, full = torch.zeros(0, 3), torch.ones(2, 3)
        batches = [empty if (rank + k) % 2 else full for k in range(4)]
        model = Sparse()
        trainer = Trainer(
            model=model,
            data_loader=batches,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
            max_iter=4,
            find_unused_parameters=True,
        )
        trainer.train()
        history = [v for v, _ in trainer.storage.history("loss_box").values()]
        assert len(history) == 4 and min(history) > 0
        boxes = comm.all_gather(model.box.detach())
        assert torch.equal(boxes[0], boxes[1]) and not torch.equal(boxes[0], torch.ones(3))

    run_ranks(rank_main)


def test_a_loss_that_appears_late_on_one_rank():
    class Late(Line):
        def forward(self, batch):
            losses = super().forward(batch)
            if self.rank == 1 and self.calls >= 2:
                losses["loss_late"] = losses["loss_a"] * 0 + 4.0
            self.calls += 1
            return losses

    def rank_main(rank):
        model = Late()
        model.rank, model.calls = rank, 0
        trainer = Trainer(
            model=model,
            data_loader=[torch.ones(1, 3)],
            optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
            max_iter=5,
        )
        trainer.train()
        totals = [v for v, _ in trainer.storage.history("total_loss").values()]
        # In the step it appears it counts in the total, and from then on by its name.
        assert totals[2] == pytest.approx(totals[1] + 2.0)
        assert trainer.storage.history("loss_late").values()[0][1] == 3
        assert trainer.storage.latest()["loss_late"][0] == pytest.approx(2.0)

    run_ranks(rank_main)


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_all_ranks_act_on_one_ranks_bad_loss(policy):
    def rank_main(rank):
        bad = torch.full((1, 3), float("nan"))
        batches = [bad if rank == 1 and k == 2 else torch.ones(1, 3) for k in range(4)]
        trainer = line_trainer(batches, guard=NonFiniteGuard(policy), accumulate=1)
        if policy == "stop":
            with pytest.raises(NonFiniteLossError, match="iteration 2 .*On rank 1 loss_a is nan"):
                trainer.train()
        else:
            trainer.train()
            assert trainer.guard.skips == 1
        weights = comm.all_gather(trainer.raw_model.weight.detach())
        assert torch.isfinite(weights[0]).all() and torch.equal(weights[0], weights[1])

    run_ranks(rank_main)


def test_one_rank_asks_to_stop_and_all_do():
    class Ask(HookBase):
        def after_step(self):
            if self.trainer.iter == 1 and comm.get_rank() == 1:
                self.trainer.request_stop("rank 1 has seen enough")

    def rank_main(rank):
        trainer = line_trainer(max_iter=8)
        trainer.register_hooks([Ask()])
        trainer.train()
        assert trainer.completed_steps == 3

    run_ranks(rank_main)


def test_two_machines():
    """One process on each, as --num-machines 2 --machine-rank K --dist-url URL."""

    def machine(number):
        assert comm.get_world_size() == 2 and comm.get_rank() == number
        assert comm.get_local_rank() == 0 and comm.get_local_size() == 1
        assert comm.all_gather(number) == [0, 1]
        return 7 + number

    urls = [f"tcp://127.0.0.1:{free_port()}" for _ in range(2)]

    def twice(number):
        """In one process: the second group is another one."""
        for url in urls:
            assert launch(machine, 1, 2, number, url, (number,)) == 7 + number

    assert wait_for_all([fork(lambda k=k: twice(k)) for k in range(2)]) == [0, 0]


TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node0", "MASTER_PORT": "29500",
}  # fmt: skip
SLURM = {
    "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_JOB_ID": "12345",
}  # fmt: skip


def test_torchruns_variables():
    assert place_from_environment(TORCHRUN) == (5, 8, 1, 4, "env://")
    assert place_from_environment({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"}) is None


def test_variables_that_count_machines_are_not_torchruns(monkeypatch, caplog):
    """Kubeflow's PyTorchJob sets them for each machine, for the flags to name."""
    for key, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "node0"}.items():
        monkeypatch.setenv(key, value)
    assert place_from_environment(os.environ) is None
    assert launch(comm.get_world_size) == 1
    assert "pass --num-machines $WORLD_SIZE --machine-rank $RANK" in caplog.text
    caplog.clear()
    monkeypatch.setattr(torch.distributed, "init_process_group", join)
    with pytest.raises(Joined) as joined:
        launch(comm.get_world_size, 1, 2, 1, "tcp://node0:1234")
    assert joined.value.args[1:] == (2, 1) and not caplog.records


class Joined(Exception):
    pass


def join(backend, *, world_size, rank, **place):
    raise Joined(backend, world_size, rank)


@pytest.mark.parametrize(
    "env, count, device, expected",
    [
        ("torchrun", 4, "cuda", ("nccl", 1)),
        ("slurm", 4, "cuda", ("nccl", 1)),
        # --gpus-per-task 1: each process sees its own, under the same number.
        ("slurm", 1, "cuda", ("nccl", 0)),
        ("torchrun", 1, "cpu", ("gloo", None)),
        ("torchrun", 1, "cuda", "4 processes were asked for on a machine with 1 GPU.s.; start few"),
        ("torchrun", 2, "cuda", "4 processes were asked for on a machine with 2 GPU.s.; start few"),
    ],
)
def test_the_gpu_of_a_process(monkeypatch, env, count, device, expected):
    variables = TORCHRUN if env == "torchrun" else {**SLURM, "CUDA_VISIBLE_DEVICES": "3"}
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", join)
    if isinstance(expected, str):
        with pytest.raises(RuntimeError, match=expected):
            launch(comm.get_world_size, device=device)
        return
    with pytest.raises(Joined) as joined:
        launch(comm.get_world_size, device=device)
    assert (joined.value.args[0], chosen[0] if chosen else None) == expected


def test_slurms_variables():
    assert place_from_environment(SLURM) == (5, 8, 1, 4, "tcp://gpu07:32345")
    chosen = place_from_environment({**SLURM, "MASTER_ADDR": "head", "MASTER_PORT": "77"})
    assert chosen.url == "tcp://head:77"
    # The batch script itself is one process, though the job has eight tasks.
    script = {k: v for k, v in SLURM.items() if "STEP" not in k}
    assert place_from_environment(script) is None
    assert place_from_environment({}) is None


@pytest.mark.parametrize(
    "nodes, first",
    [("gpu[07-09,12],cpu3", "gpu07"), ("a1,a2", "a1"), ("single", "single"), ("n[3]x", "n3x")],
)
def test_the_first_host_of_a_node_list(nodes, first):
    assert first_slurm_host(nodes) == first
