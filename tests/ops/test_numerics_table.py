"""No public function of ``d2ext.ops`` is missing in the numerics campaign."""

import importlib
import inspect
import pkgutil
import types
from pathlib import Path

import numerics_kit

import d2ext.ops

HERE = Path(__file__).parent
# Modules with nothing for a campaign to vary, or that not every machine can import, and the tests
# that they have instead.
ELSEWHERE = {
    "column_boxes": "test_prediction_assignment.py",
    "frequency": "../modeling/test_equalized_focal.py",
    "reduce": "../engine/test_messages.py",
    "sigmoid_factors": "test_sigmoid_losses.py",
    "sigmoid_triton": "test_sigmoid_triton.py",
}


def public_functions():
    """Functions and classes that ops define, but for named tuples, which compute nothing."""
    found = {}
    for info in pkgutil.iter_modules(d2ext.ops.__path__):
        if info.name in ELSEWHERE:
            continue
        module = importlib.import_module(f"d2ext.ops.{info.name}")
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", "") != module.__name__:
                continue
            if isinstance(value, types.FunctionType) or (
                inspect.isclass(value) and not hasattr(value, "_fields")
            ):
                found[f"{info.name}.{name}"] = value
    return found


def test_every_public_function_has_a_property_test():
    for path in sorted(HERE.glob("test_numerics_*.py")):
        importlib.import_module(path.stem)
    public = public_functions()
    assert len(public) > 30
    missing = [name for name, value in public.items() if value not in numerics_kit.COVERED]
    assert not missing, f"no test in tests/ops/test_numerics_*.py covers {missing}"
    assert set(numerics_kit.COVERED) <= set(public.values())
    assert all((HERE / test).exists() for test in ELSEWHERE.values())


def test_every_covering_test_is_there():
    tests = {
        name
        for path in HERE.glob("test_numerics_*.py")
        for name in vars(importlib.import_module(path.stem))
        if name.startswith("test_")
    }
    assert {test for names in numerics_kit.COVERED.values() for test in names} <= tests
