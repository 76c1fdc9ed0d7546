"""Number formats, accumulation, clipping, moving average."""

import pytest
import torch
from detectron2.data import build_detection_train_loader
from detectron2.utils import comm
from engine_kit import load, metrics, run_ranks, toy_cfg
from test_trainer_hooks import Line, line_trainer
from torch import nn

from d2ext.engine import GlobalNormClipper, Precision, Trainer
from d2ext.engine.data_loader import check_batch_size
from d2ext.engine.hooks import ModelEMA


def test_float32_is_plain_sgd():
    batches = [torch.randn(4, 3) for _ in range(5)]
    trainer = line_trainer(batches, max_iter=5)
    trainer.train()
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in batches:
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        optimizer.step()
    assert torch.equal(trainer.raw_model.weight, model.weight)


def test_bf16_autocast_on_cpu(tiny, tmp_path):
    """The model computes in bfloat16, hooks on losses do not, weights stay float32."""
    cfg = toy_cfg(tmp_path, "SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "bf16")
    trainer = Trainer(cfg)
    seen = {}

    def look(module, args, output):
        if module.training:
            seen["dtype"] = output.dtype

    trainer.raw_model.cls.register_forward_hook(look)
    trainer.train()
    assert seen["dtype"] == torch.bfloat16
    assert trainer.raw_model.cls.weight.dtype == torch.float32
    assert trainer.storage.latest()["total_loss"][0] < 1e4


def test_fp16_on_cpu_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match="fp16 autocast needs a CUDA device.*bf16"):
        Precision(dtype="fp16", device="cpu")
    with pytest.raises(ValueError, match="choose fp16 or bf16"):
        Precision(dtype="fp8", device="cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_on_cuda(dtype, tmp_path):
    model = nn.Linear(8, 1).cuda()
    wrapper = nn.Module()
    wrapper.model = model
    wrapper.forward = lambda batch: {"loss": model(batch.cuda()).square().mean()}
    wrapper.parameters = model.parameters
    trainer = Trainer(
        model=wrapper,
        data_loader=[torch.randn(4, 8) for _ in range(4)],
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        max_iter=20,
        precision=Precision(dtype=dtype, device="cuda"),
        clipper=GlobalNormClipper(1.0),
    )
    trainer.train()
    history = [v for v, _ in trainer.storage.history("total_loss").values()]
    # Read one step late, but none is lost and each is booked under its own step.
    assert [i for _, i in trainer.storage.history("total_loss").values()] == list(range(20))
    assert history[-1] < history[0]


def test_accumulation_is_the_joined_batch():
    batches = [torch.randn(4, 3) for _ in range(6)]
    joined = [torch.cat(batches[k : k + 3]) for k in (0, 3)]
    apart = line_trainer(batches, max_iter=2, accumulate=3)
    apart.train()
    together = line_trainer(joined, max_iter=2)
    together.train()
    torch.testing.assert_close(apart.raw_model.weight, together.raw_model.weight)
    for name in ("total_loss", "loss_a"):
        a, b = (t.storage.latest()[name][0] for t in (apart, together))
        assert a == pytest.approx(b, rel=1e-6)


def test_images_per_batch_is_shared_by_micro_steps(tiny, tmp_path):
    cfg = toy_cfg(tmp_path, "SOLVER.IMS_PER_BATCH", 6, "SOLVER.ACCUMULATE", 3)
    assert Trainer.build_train_loader(cfg).batch_size == 2
    cfg.SOLVER.IMS_PER_BATCH = 4
    with pytest.raises(ValueError, match="make it a multiple of 3"):
        Trainer.build_train_loader(cfg)


@pytest.mark.parametrize("grouping", [False, True])
def test_a_loader_that_does_not_share_with_micro_steps_is_refused(tiny, tmp_path, grouping):
    class Upstream(Trainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return build_detection_train_loader(cfg)

    words = ("SOLVER.IMS_PER_BATCH", 4, "DATALOADER.ASPECT_RATIO_GROUPING", grouping)
    Upstream(toy_cfg(tmp_path, *words))
    with pytest.raises(ValueError, match="gives batches of 4 images; let it give batches of 2 im"):
        Upstream(toy_cfg(tmp_path, *words, "SOLVER.ACCUMULATE", 2))


def test_a_loader_that_does_not_tell_its_batch_size_is_warned_of(caplog):
    check_batch_size([1, 2], 4, accumulate=1)
    assert not caplog.records
    check_batch_size([1, 2], 4, accumulate=2)
    assert "does not say its batch size; it has to give batches of 2 images" in caplog.text


def test_global_norm_clipping():
    batch = torch.randn(4, 3) * 10
    trainer = line_trainer([batch], max_iter=1, lr=1.0, clipper=GlobalNormClipper(0.5))
    before = trainer.raw_model.weight.detach().clone()
    trainer.train()
    model = Line()
    sum(model(batch).values()).backward()
    norm = model.weight.grad.norm()
    assert norm > 0.5
    assert trainer.storage.latest()["grad_norm"][0] == pytest.approx(norm.item())
    expected = before - model.weight.grad * 0.5 / (norm + 1e-6)
    torch.testing.assert_close(trainer.raw_model.weight, expected)


@pytest.mark.parametrize("kind", ["value", "norm", "global_norm"])
def test_clipping_by_config(tiny, tmp_path, kind):
    trainer = Trainer(
        toy_cfg(
            tmp_path,
            "SOLVER.CLIP_GRADIENTS.ENABLED",
            True,
            "SOLVER.CLIP_GRADIENTS.CLIP_TYPE",
            kind,
            "SOLVER.CLIP_GRADIENTS.CLIP_VALUE",
            1e-3,
            "SOLVER.BASE_LR",
            1.0,
            "SOLVER.WARMUP_ITERS",
            0,
            "SOLVER.MOMENTUM",
            0.0,
            "SOLVER.WEIGHT_DECAY",
            0.0,
            "SOLVER.MAX_ITER",
            1,
            "SOLVER.STEPS",
            (),
        )  # fmt: skip
    )
    before = {k: v.detach().clone() for k, v in trainer.raw_model.named_parameters()}
    trainer.train()
    change = {k: v.detach() - before[k] for k, v in trainer.raw_model.named_parameters()}
    norms = torch.stack([c.norm() for c in change.values()])
    if kind == "value":
        assert max(c.abs().max() for c in change.values()) <= 1.01e-3
        assert norms.norm() > 2e-3
    elif kind == "norm":
        assert norms.max() <= 1.01e-3 and norms.norm() > 1.5e-3
    else:
        assert norms.norm().item() == pytest.approx(1e-3, rel=1e-2)


def test_moving_average_is_exact():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = ModelEMA(model, decay=0.9, warmup=0)
    expected = {k: v.double().clone() for k, v in model.state_dict().items()}
    for _ in range(5):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        model(torch.randn(4, 2))
        ema.update()
        for k, v in model.state_dict().items():
            expected[k] = expected[k] * 0.9 + v.double() * 0.1
    for k, v in ema.average.items():
        if v.is_floating_point():
            torch.testing.assert_close(v.double(), expected[k], rtol=1e-6, atol=1e-7)
    assert ema.average["1.num_batches_tracked"] == 5  # counters are copied


def test_moving_average_leaves_a_constant_alone():
    model = nn.BatchNorm1d(3)
    model.running_mean.fill_(0.1)
    ema = ModelEMA(model, decay=0.999)
    for _ in range(20):
        ema.update()
    assert torch.equal(ema.average["running_mean"], model.running_mean)


@pytest.mark.dist
def test_ranks_resume_their_own_averages_of_batch_norm(tmp_path):
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, batch):
            return {"loss": self.norm(batch).square().mean()}

    def make(rank):
        torch.manual_seed(rank)
        model = Normed()
        trainer = Trainer(
            model=model,
            data_loader=[torch.randn(4, 3) for _ in range(3)],
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            max_iter=3,
            output_dir=str(tmp_path),
        )
        trainer.register_hooks([average := ModelEMA(model)])
        return trainer, average

    def rank_main(rank):
        trainer, average = make(rank)
        trainer.train()
        trainer.save_checkpoint("model_0000002")
        means = comm.all_gather(average.average["norm.running_mean"])
        assert not torch.equal(*means)
        trainer, resumed = make(rank)
        trainer.resume_or_load()
        assert resumed.updates == 3
        for name, value in average.average.items():
            assert torch.equal(resumed.average[name], value), name

    run_ranks(rank_main)
    (own,) = load(tmp_path / "model_0000002.pth")["ranks"][1]["hooks"].values()
    assert "norm.weight" not in own["average"]


def test_average_is_lent_and_taken_back():
    model = nn.Linear(2, 2)
    ema = ModelEMA(model, decay=0.5, warmup=0)
    with torch.no_grad():
        model.weight.fill_(1.0)
    own = model.weight.detach().clone()
    with pytest.raises(RuntimeError), ema.applied():
        assert torch.equal(model.weight, ema.average["weight"])
        raise RuntimeError
    assert torch.equal(model.weight, own)


def test_average_is_evaluated_beside_the_model(tiny, tmp_path):
    words = ("ENGINE.EMA.ENABLED", True, "TEST.EVAL_PERIOD", 3)
    trainer = Trainer(toy_cfg(tmp_path, *words))
    results = trainer.train()
    assert {"bbox", "ema"} <= set(results) and "bbox" in results["ema"]
    keys = set().union(*metrics(tmp_path))
    assert {"bbox/AP", "ema/bbox/AP"} <= keys
    # Neither its predictions nor its weights overwrite the model's.
    assert (tmp_path / "inference" / "tiny_val" / "coco_instances_results.json").exists()
    assert (tmp_path / "ema" / "inference" / "tiny_val" / "coco_instances_results.json").exists()
    raw = load(tmp_path / "model_final.pth")["model"]
    average = load(tmp_path / "model_final_ema.pth")["model"]
    assert list(raw) == list(average)
    assert not torch.equal(raw["cls.weight"], average["cls.weight"])


def test_the_average_follows_a_replaced_buffer():
    """As PreciseBN does it."""
    model = nn.BatchNorm1d(2)
    ema = ModelEMA(model, decay=0.5, warmup=0)
    ema.update()
    model.running_mean = torch.full((2,), 4.0)
    ema.update()
    assert ema.average["running_mean"].tolist() == [2.0, 2.0]
