"""Checkpoints of other people's code under the names of this package.

    state_dict, report = convert_checkpoint(torch.load(...), "efl", cfg)

Names and meanings are the source's: order of anchors and channels, where the background is. Nothing
is guessed: a name without a rule, a shape that does not fit and a tensor that stays empty are
refused.
"""

from .convert import SOURCES, ConvertReport, convert_checkpoint
from .names import ConvertError

__all__ = ["SOURCES", "ConvertError", "ConvertReport", "convert_checkpoint"]
