"""Literal arithmetic in YAML, as Detectron2's model zoo has it, computed without running code.

``!!python/object/apply:eval ["[[x, x * 2**(1.0/3)] for x in [32, 64]]"]`` is a list of numbers. The
text is parsed, and only numbers, lists, tuples, + - * / // % ** and comprehensions over such
lists are computed, in a bounded number of steps. Anything else is refused.
"""

import ast
import math
import operator
from typing import Any, Callable, Dict, List, Tuple, Union

__all__ = ["evaluate_literal"]

_LONGEST = 2000  # letters
_MOST = 10_000  # numbers and operations
_LARGEST = 1e12
_BINARY: Dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: Dict[type, Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}

LiteralValue = Union[int, float, List[Any], Tuple[Any, ...]]


def evaluate_literal(text: str) -> LiteralValue:
    """The value of an arithmetic expression, such as ``"[x * 2 for x in [1, 2]]"``.

    Raises:
        ValueError: it is not arithmetic, or too large
    """
    if not isinstance(text, str) or len(text) > _LONGEST:
        raise ValueError(f"an expression is a text of at most {_LONGEST} letters")
    try:
        tree = ast.parse(text.strip(), mode="eval")
        value: LiteralValue = _Evaluation().value(tree.body, {})
        return value
    except (SyntaxError, ArithmeticError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"'{text[:60]}' is not arithmetic of numbers and lists") from error


class _Evaluation:
    """One expression; counts its steps."""

    def __init__(self) -> None:
        self.steps = 0

    def value(self, node: ast.AST, names: Dict[str, Any]) -> Any:
        self.steps += 1
        if self.steps > _MOST:
            raise ValueError(f"it takes more than {_MOST} steps")
        if isinstance(node, ast.Constant):
            return _number(node.value)
        if isinstance(node, ast.Name) and node.id in names:
            return names[node.id]
        if isinstance(node, (ast.List, ast.Tuple)):
            items = [self.value(item, names) for item in node.elts]
            return tuple(items) if isinstance(node, ast.Tuple) else items
        if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
            return _UNARY[type(node.op)](_number(self.value(node.operand, names)))
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            left, right = (_number(self.value(n, names)) for n in (node.left, node.right))
            if isinstance(node.op, ast.Pow) and abs(right) > 64:
                raise ValueError("an exponent is above 64")
            return _number(_BINARY[type(node.op)](left, right))
        if isinstance(node, ast.ListComp) and len(node.generators) == 1:
            return self.comprehension(node, names)
        raise ValueError(f"{type(node).__name__} is not allowed in it")

    def comprehension(self, node: ast.ListComp, names: Dict[str, Any]) -> List[Any]:
        (loop,) = node.generators
        if loop.ifs or loop.is_async or not isinstance(loop.target, ast.Name):
            raise ValueError("a comprehension has one name and no condition")
        items = self.value(loop.iter, names)
        if not isinstance(items, (list, tuple)):
            raise ValueError("a comprehension goes over a list")
        return [self.value(node.elt, {**names, loop.target.id: item}) for item in items]


def _number(value: Any) -> Union[int, float]:
    """The value, if it is a real number of ordinary size."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{type(value).__name__} is not a number")
    if not math.isfinite(value) or abs(value) > _LARGEST:
        raise ValueError(f"a number is above {_LARGEST:g}")
    return value
