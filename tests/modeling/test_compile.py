"""``MODEL.COMPILE``: the same numbers, the same keys, and not a compilation for every size."""

import pytest
import torch
from model_kit import SHALLOW, build, make_batch, relative_error, small_cfg, train_step
from process_kit import forked
from torch import nn
from torch._dynamo.testing import CompileCounter

from d2ext.engine import Trainer
from d2ext.engine.hooks import ModelEMA
from d2ext.export import export
from d2ext.modeling.compile import (
    compilable_parts,
    compile_from_config,
    compile_parts,
    uncompiled,
)


def shallow_cfg(*overrides):
    cfg = small_cfg("configs/Base-FCOS.yaml", [*SHALLOW, *overrides])
    # FPN's other levels are there all the same.
    cfg.MODEL.FCOS.IN_FEATURES = ["p3", "p4"]
    return cfg


def compare_steps(compiled, plain, batch, tolerance):
    losses, grads = train_step(compiled, batch)
    want_losses, want_grads = train_step(plain, batch)
    assert set(grads) == set(want_grads)
    for name, want in {**want_losses, **want_grads}.items():
        assert relative_error({**losses, **grads}[name], want) <= tolerance, name


@forked  # the compiler starts threads that no forked process can do without
def test_losses_gradients_and_keys_are_the_same_and_sizes_share_a_graph():
    plain, model = build(shallow_cfg()), build(shallow_cfg())
    keys = list(model.state_dict())
    counter = CompileCounter()
    compile_parts(model, backend=counter)
    assert list(model.state_dict()) == keys
    compare_steps(model, plain, make_batch((3, 0), size=96), 1e-6)
    assert counter.frame_count >= 2  # backbone and head
    train_step(model, make_batch((2, 1, 1), size=128))
    frames = counter.frame_count
    for size in (160, 192):
        train_step(model, make_batch((2, 1, 1), size=size))
    assert counter.frame_count == frames


@pytest.mark.slow
@forked
def test_checkpoints_averages_and_exports_do_not_notice(tmp_path):
    cfg = shallow_cfg("MODEL.COMPILE.ENABLED", True, "MODEL.COMPILE.BACKEND", "eager")
    model, plain = Trainer.build_model(cfg), build(shallow_cfg())
    assert all(part._compiled_call_impl is not None for part in compilable_parts(model).values())
    batch = make_batch((2, 1), size=96)
    options = {"data_loader": [batch], "max_iter": 2, "output_dir": str(tmp_path)}
    trainer = Trainer(model=model, optimizer=torch.optim.SGD(model.parameters(), 1e-3), **options)
    ema = ModelEMA(model)
    trainer.register_hooks([ema])
    trainer.train()
    saved = torch.load(tmp_path / "model_final_ema.pth", weights_only=False)["model"]
    assert set(saved) == set(plain.state_dict())
    plain.load_state_dict(model.state_dict())
    inputs = [{k: v for k, v in x.items() if k != "instances"} for x in batch]
    model.eval(), plain.eval()
    with torch.no_grad():
        for a, b in zip(model(inputs), plain(inputs)):
            assert torch.equal(a["instances"].scores, b["instances"].scores)
    with ema.applied():
        assert not torch.equal(model.state_dict()["head.cls_score.bias"],
                               plain.state_dict()["head.cls_score.bias"])  # fmt: skip
    export(model, tmp_path / "model.ts", with_nms=False)
    image = torch.full((1, 3, 96, 128), 90.0)
    export(plain, tmp_path / "plain.ts", with_nms=False)
    results = [torch.jit.load(str(tmp_path / f"{n}.ts"))(image) for n in ("model", "plain")]
    assert all(torch.equal(a, b) for a, b in zip(*results))
    assert model.backbone._compiled_call_impl is not None  # compiled again afterwards


@forked
def test_uncompiled_ends_with_an_error_too():
    model = build(shallow_cfg())
    compile_parts(model, backend="eager")
    with pytest.raises(KeyError), uncompiled(model):
        assert model.head._compiled_call_impl is None
        raise KeyError
    assert model.head._compiled_call_impl is not None


def test_which_parts_are_compiled():
    two_stage = small_cfg("configs/COCO/cascade_mask_rcnn_R_50_FPN_1x.yaml")
    stages = [f"roi_heads.box_head.{i}" for i in range(3)]
    assert list(compilable_parts(build(two_stage))) == [
        "backbone", "proposal_generator.rpn_head", *stages
    ]  # fmt: skip
    model = nn.Linear(2, 2)
    assert compile_from_config(shallow_cfg(), model) is model
    with pytest.raises(ValueError, match="MODEL.COMPILE knows no part of Linear"):
        compile_parts(model)


@pytest.mark.slow
@forked
def test_inductor_gives_the_same_numbers():
    """The real compiler, on the smallest part there is: it takes seconds for every operation."""

    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Sequential(nn.Linear(4, 3), nn.ReLU())

    model = compile_parts(Detector())
    x = torch.randn(5, 4)
    want = nn.functional.relu(nn.functional.linear(x, *model.head[0].parameters()))
    assert relative_error(model.head(x).detach(), want.detach()) < 1e-5
