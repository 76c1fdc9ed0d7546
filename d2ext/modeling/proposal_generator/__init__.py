"""Proposal generators."""

from .rpn import ExtRPN

__all__ = ["ExtRPN"]
