"""The Triton form of the sigmoid losses against the torch form, interpreted and built."""

import importlib
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from triton_kit import CASES, compute, name_of

from d2ext.ops import sigmoid_kernel
from d2ext.ops.precision import smallest_gradient
from d2ext.ops.sigmoid_kernel import set_sigmoid_kernel, sigmoid_kernel_of

HERE = Path(__file__).resolve().parent
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-6,
    torch.float16: 1e-3,  # the gradient's own rounding
    torch.bfloat16: 8e-3,
}


def run_python(*arguments, **environment):
    """A fresh process: Triton decides on import whether it interprets."""
    path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    process = subprocess.run(
        [sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


# Where the extra "dev" has Triton.
HAS_TRITON = sys.platform == "linux" and platform.machine() == "x86_64"
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is for Linux on x86-64")


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    path = tmp_path_factory.mktemp("triton") / "results.pt"
    run_python(HERE / "triton_kit.py", path, TRITON_INTERPRET="1")
    return torch.load(path)


def compare(case, got, want):
    rounded = TOLERANCE[case[2]]
    accurate = min(rounded, 1e-6)  # all but the gradient is float32 at least
    for x, y, tolerance in zip(got, want, (accurate, rounded, accurate, accurate, accurate)):
        assert x.dtype == y.dtype and x.shape == y.shape
        finite = y[y.isfinite()]
        scale = float(finite.abs().max()) if finite.numel() else 0.0
        torch.testing.assert_close(x, y, rtol=0, atol=tolerance * scale, equal_nan=True)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_interpreted_kernel_equals_the_torch_form(case, interpreted):
    compare(case, interpreted[name_of(case)], compute(case, "torch"))


@needs_triton
@pytest.mark.slow
def test_interpreted_kernel_has_no_subnormal_gradients(interpreted):
    steep = [interpreted[name_of(case)][1] for case in CASES if case[3] == "steep"]
    assert len(steep) == 3
    for gradient in steep:
        size = gradient.abs()
        assert (size > 0).any() and (size == 0).any()
        assert not ((size > 0) & (size < smallest_gradient(torch.float32))).any()


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_kernel_on_a_gpu_equals_the_torch_form(case):
    got = compute(case, "triton", "cuda")
    compare(case, got, compute(case, "torch", "cuda"))
    again = compute(case, "triton", "cuda")
    assert all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(got, again))


@pytest.mark.gpu
def test_a_gpu_uses_the_kernel_by_itself():
    assert sigmoid_kernel_of(torch.zeros(1, device="cuda")) == "triton"


BUILD = """
import sys
import d2ext.modeling
print("imported unasked:", "d2ext.ops.sigmoid_triton" in sys.modules)

import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from d2ext.ops.sigmoid_triton import _sigmoid_loss_kernel as kernel, tile_shape

rows, columns = tile_shape(80)
for logits, power, quality in (("fp32", 2, False), ("fp16", 1, True)):
    types = {name: "i32" for name in kernel.arg_names}
    types.update({n: "*fp32" for n in types if n.endswith("_ptr")})
    types.update({"logits_ptr": "*" + logits, "labels_ptr": "*i64"})
    types.update({n: "*fp64" for n in ("loss_ptr", "pos_ptr", "neg_ptr")})
    types.update({n: "constexpr" for n in types if n.isupper()})
    constants = dict(DTYPE=tl.float32, POWER=power, HAS_QUALITY=quality, NEED_GRAD=True,
                     WITH_SUMS=True, SMALLEST=1e-30, BLOCK_M=rows, BLOCK_C=columns, TILES=4)
    source = ASTSource(fn=kernel, signature=types, constexprs=constants)
    built = triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": 4})
    print(built.asm["ptx"])
"""


@needs_triton
@pytest.mark.slow
def test_it_builds_for_a_gpu_without_float_atomics(tmp_path):
    # Building needs no GPU. Atomics add in an order that is chance, so that no run repeats.
    out = run_python("-c", BUILD, TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    assert "imported unasked: False" in out
    assert out.count(".entry _sigmoid_loss_kernel") == 2
    assert not re.search(r"\b(atom|red)\.", out)


def test_the_choice_of_the_form(monkeypatch):
    cpu = torch.zeros(1)
    monkeypatch.delenv("D2EXT_SIGMOID_KERNEL", raising=False)
    assert sigmoid_kernel_of(cpu) == "torch"
    monkeypatch.setenv("D2EXT_SIGMOID_KERNEL", "triton")
    assert sigmoid_kernel_of(cpu) == "triton"
    set_sigmoid_kernel("torch")
    try:
        assert sigmoid_kernel_of(cpu) == "torch"
    finally:
        set_sigmoid_kernel(None)
    monkeypatch.setenv("D2EXT_SIGMOID_KERNEL", "cuda")
    with pytest.raises(ValueError, match="D2EXT_SIGMOID_KERNEL must be one of"):
        sigmoid_kernel_of(cpu)
    with pytest.raises(ValueError, match="set_sigmoid_kernel takes one of"):
        set_sigmoid_kernel("fast")


def test_without_triton_nothing_imports_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    sigmoid_kernel._triton_works.cache_clear()
    try:
        assert not sigmoid_kernel._triton_works(torch.device("cuda"), torch.float32)
    finally:
        sigmoid_kernel._triton_works.cache_clear()


def test_a_triton_that_does_not_build_is_told_once_and_left_aside(monkeypatch, caplog):
    def refuse(*_args):
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(sigmoid_kernel, "_one_pass", refuse)
    sigmoid_kernel._triton_works.cache_clear()
    try:
        for _ in range(2):
            assert not sigmoid_kernel._triton_works(torch.device("cpu"), torch.float32)
    finally:
        sigmoid_kernel._triton_works.cache_clear()
    assert caplog.text.count("no C compiler") == 1
