"""How checkpoints are renamed: a source is a list of rules and a few changes of tensors.

A rule has a pattern, which must match a whole name, and a template for the new name, in which
``{1}`` is the first group of the pattern, ``{1+2}`` that number plus 2 and ``{1*3+1}`` three times
that number plus 1. Without a template the tensor is dropped.
"""

import re
from typing import Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence

import torch

__all__ = ["ConvertError", "Rule", "Source", "background_last", "rename", "resnet_rules"]

Tensors = Dict[str, torch.Tensor]


class ConvertError(ValueError):
    """A checkpoint that cannot be converted."""


class Rule(NamedTuple):
    """One line of a map of names.

    Attributes:
        pattern: a regular expression for a whole name.
        target: template of the new name; None: dropped.
        change: what is done to the tensor.
    """

    pattern: str
    target: Optional[str]
    change: Optional[Callable[[torch.Tensor], torch.Tensor]] = None


class Source(NamedTuple):
    """Where checkpoints come from.

    Attributes:
        model: whose detector it is, for messages.
        rules: makes the rules from the config.
        finish: changes the renamed tensors as a whole; called with them and the config.
        optional: pattern of names of the model that a checkpoint need not fill.
    """

    model: str
    rules: Callable[..., Sequence[Rule]]
    finish: Optional[Callable[..., Tensors]] = None
    optional: str = r"$^"


def rename(tensors: Mapping[str, torch.Tensor], rules: Sequence[Rule], whose: str) -> Tensors:
    """Apply rules to every tensor; a name that none of them knows is refused."""
    found: Tensors = {}
    compiled = [(re.compile(rule.pattern), rule) for rule in rules]
    for name, value in tensors.items():
        for pattern, rule in compiled:
            match = pattern.fullmatch(name)
            if match is None:
                continue
            if rule.target is not None:
                new = _fill(rule.target, match)
                if new in found and not torch.equal(found[new], value):
                    raise ConvertError(
                        f"'{name}' and another entry with other numbers both become '{new}'; "
                        "delete the one that is not used."
                    )
                found[new] = value if rule.change is None else rule.change(value)
            break
        else:
            raise ConvertError(
                f"'{name}' is not a parameter of {whose}; choose another --from, or convert the "
                "entry that holds the model alone."
            )
    return found


def _fill(template: str, match: "re.Match[str]") -> str:
    def value(field: "re.Match[str]") -> str:
        group, factor, offset = field.groups()
        text = match.group(int(group))
        if factor is None and offset is None:
            return text
        return str(int(text) * int(factor or 1) + int(offset or 0))

    return re.sub(r"\{(\d)(?:\*(\d+))?(?:\+(\d+))?\}", value, template)


def resnet_rules(prefix: str) -> List[Rule]:
    """A torchvision-like ResNet below ``prefix`` (a pattern), for ``backbone.bottom_up``."""
    ours = "backbone.bottom_up."
    block = rf"{prefix}layer(\d)\.(\d+)\."
    return [
        Rule(rf"{prefix}conv1\.weight", f"{ours}stem.conv1.weight"),
        Rule(rf"{prefix}bn1\.(\w+)", f"{ours}stem.conv1.norm.{{1}}"),
        Rule(
            rf"{block}conv2\.conv_offset\.(weight|bias)",
            f"{ours}res{{1+1}}.{{2}}.conv2_offset.{{3}}",
        ),
        Rule(rf"{block}conv(\d)\.weight", f"{ours}res{{1+1}}.{{2}}.conv{{3}}.weight"),
        Rule(rf"{block}bn(\d)\.(\w+)", f"{ours}res{{1+1}}.{{2}}.conv{{3}}.norm.{{4}}"),
        Rule(rf"{block}downsample\.0\.weight", f"{ours}res{{1+1}}.{{2}}.shortcut.weight"),
        Rule(rf"{block}downsample\.1\.(\w+)", f"{ours}res{{1+1}}.{{2}}.shortcut.norm.{{3}}"),
    ]


def background_last(tensor: torch.Tensor) -> torch.Tensor:
    """Rows (C + 1, ...) with the background first, to the background last."""
    return torch.cat((tensor[1:], tensor[:1]))
